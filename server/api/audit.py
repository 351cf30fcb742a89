"""The changes of models, cameras and keys: each is recorded; GET /v1/audit lists them."""

from collections.abc import Callable
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec
from flask import request
from msgspec import UNSET, UnsetType

from server.errors import (
    CameraNotFoundError,
    KeyNotFoundError,
    LinesideError,
    ModelNotFoundError,
    StorageError,
)
from server.http.body.image import read_options
from server.http.routes import ADMIN, route
from server.http.wsgi import current
from server.store.audit import Audit, Change, now
from server.store.bundles.repository import BundleRepository

T = TypeVar("T")
Policy: TypeAlias = dict[str, Any] | UnsetType | None


class AuditQuery(msgspec.Struct, frozen=True, kw_only=True):
    """The query of /v1/audit. limit: most changes, the newest first."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100


class AuditPage(msgspec.Struct, frozen=True):
    """Some changes, the newest first."""

    changes: tuple[Change, ...]


class Auditor:
    """Makes changes of cameras, of keys, and of the models of `store`, for requests, and records
    them in `audit`."""

    def __init__(self, audit: Audit, store: BundleRepository) -> None:
        self._audit = audit
        self._store = store

    def make(
        self,
        action: str,
        model: str,
        how: Callable[[], object],
        version: int | None = None,
        policy: Callable[[], Policy] = lambda: UNSET,
        product: Callable[[], str | UnsetType | None] = lambda: UNSET,
    ) -> None:
        """Call `how`, which changes `model`, and record the result, with what `policy` and
        `product` returned before and after. Raises what `how` raises. A change of a model that does
        not exist is not recorded."""
        before, policy_before, product_before = self._serving(model), policy(), product()

        def keep(code: str = "") -> None:
            self._record(
                action,
                code,
                model=model,
                version=version,
                before=before,
                after=self._serving(model),
                policy_before=policy_before,
                policy_after=policy(),
                product_before=product_before,
                product_after=product(),
            )

        _make(how, keep)

    def change_camera(self, action: str, camera: str, how: Callable[[], T], model: str = "") -> T:
        """Return what `how` does, which changes `camera`, for `model` if one is named, and record
        the result. Raises what `how` raises. A change of a camera that does not exist is not
        recorded."""
        return _make(how, lambda code="": self._record(action, code, camera=camera, model=model))

    def change_key(
        self, action: str, key: str, how: Callable[[], T], rights: tuple[str, ...] | UnsetType
    ) -> T:
        """Return what `how` does, which changes the key of the name `key`, and record the result
        with its `rights`. Raises what `how` raises. A change of a key that does not exist is not
        recorded."""
        return _make(how, lambda code="": self._record(action, code, key=key, rights=rights))

    def _record(self, action: str, code: str, **fields: Any) -> None:
        context = current()
        self._audit.record(
            Change(
                at=now(),
                action=action,
                caller=context.caller_name,
                address=request.remote_addr or "",
                request_id=context.request_id,
                code=code,
                **fields,
            )
        )

    def _serving(self, model: str) -> int | None:
        serving = self._store.served().get(model)
        return serving.manifest.version if serving else None


def _make(how: Callable[[], T], keep: Callable[..., None]) -> T:
    """Return what `how` does; call `keep`, with the code of the error that `how` raised, if any."""
    try:
        result = how()
    except (ModelNotFoundError, CameraNotFoundError, KeyNotFoundError):
        raise
    except LinesideError as error:
        keep(error.code)
        raise
    keep()
    return result


class AuditRoutes:
    """Answers the changes that `audit` keeps."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit

    @route("GET", "/v1/audit", rights=ADMIN, query=AuditQuery, errors=(400, 403, 503))
    def read(self) -> AuditPage:
        """Return who changed which model, verdict policy, product, camera or key, when, from where,
        and what held before and after."""
        query = read_options(AuditQuery, request)
        try:
            return AuditPage(self._audit.newest(query.limit))
        except OSError as error:
            raise StorageError(f"the journal of administration can't be read: {error}") from None
