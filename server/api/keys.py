"""/v1/keys: the API keys, listed, made and revoked as `python -m server key` does."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
from flask import Response, request
from msgspec import UNSET

from server.api.audit import Auditor
from server.config.settings import Settings
from server.errors import (
    BodyTooLargeError,
    InvalidFieldError,
    KeyExistsError,
    KeyNameError,
    KeyNotFoundError,
    KeysError,
    KeysOffError,
    LastAdminKeyError,
    StorageError,
)
from server.http.access.auth import Authenticator
from server.http.body.image import need_length
from server.http.body.json_body import decode_json, read_body
from server.http.routes import ADMIN, route, to_json
from server.http.wsgi import current
from server.store.keys import (
    NAME_PATTERN,
    RATE,
    Key,
    Moment,
    Right,
    add_key,
    expired,
    read_keys,
    revoke_key,
)
from server.system.clock import rfc3339

# Bytes of a body that describes a key.
BODY_BYTES_MAX = 10_000


class NewKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key to be made. name: who uses it. expires: RFC 3339, null for never. rate: requests
    allowed, such as `100/second`, in place of the setting `rate_per_key`."""

    name: Annotated[str, msgspec.Meta(pattern=f"^{NAME_PATTERN}$")]
    rights: Annotated[list[Right], msgspec.Meta(min_length=1, max_length=20)]
    expires: Moment | None = None
    rate: Annotated[str, msgspec.Meta(pattern=RATE)] = ""


class MadeKey(msgspec.Struct, frozen=True):
    """A key that was made. key: itself, which is shown this once; the server keeps its hash."""

    name: str
    rights: tuple[Right, ...]
    key: str


class KeyState(msgspec.Struct, frozen=True):
    """A key, without itself. created, expires, last_used: RFC 3339. expires: null for never.
    last_used: null if not since the server's start. own: the request was made with it."""

    name: str
    rights: tuple[Right, ...]
    created: str
    expires: str | None
    expired: bool
    rate: str
    digest_login: bool
    last_used: str | None
    own: bool


class KeyList(msgspec.Struct, frozen=True):
    """The keys of the file. keys_asked: the server asks for keys. changeable: they can be made and
    revoked by requests."""

    keys_asked: bool
    changeable: bool
    keys: tuple[KeyState, ...]


class KeyRoutes:
    """Lists the keys of the settings' file, and changes them by `auditor`."""

    def __init__(self, settings: Settings, authenticator: Authenticator, auditor: Auditor) -> None:
        self._path = Path(settings.keys_file)
        self._changeable = settings.auth != "off"
        self._authenticator = authenticator
        self._auditor = auditor

    def _state(self, key: Key) -> KeyState:
        used = self._authenticator.last_used(key)
        return KeyState(
            key.name,
            key.rights,
            rfc3339(key.created.timestamp()),
            rfc3339(key.expires.timestamp()) if key.expires else None,
            expired(key),
            key.rate,
            bool(key.digest),
            None if used is None else rfc3339(used),
            current().caller_name == key.name,
        )

    @route("GET", "/v1/keys", rights=ADMIN, errors=(503,))
    def read(self) -> KeyList:
        """Return the keys: their names, rights and last use, but never a key itself."""
        try:
            keys = read_keys(self._path)
        except KeysError as error:
            raise StorageError(str(error)) from None
        states = tuple(self._state(key) for key in keys)
        return KeyList(self._authenticator.closed(), self._changeable, states)

    @route(
        "POST",
        "/v1/keys",
        rights=ADMIN,
        body=NewKey,
        example={"name": "line-4", "rights": ["recognize"]},
        answer=MadeKey,
        errors=(400, 409, 413, 503),
    )
    def make(self) -> Response:
        """Make a key and answer it, this once. The first key closes the server to everyone without
        one, so it needs the right admin."""
        need_length(request)
        data = read_body()
        if len(data) > BODY_BYTES_MAX:
            raise BodyTooLargeError(f"a key is described by at most {BODY_BYTES_MAX:,} bytes")
        new = decode_json(NewKey, data)
        # Patterns end before a line's end as well.
        if new.name.endswith("\n") or new.rate.endswith("\n"):
            raise InvalidFieldError("name and rate can't end with the end of a line")
        now = datetime.now(UTC).replace(microsecond=0)
        if new.expires and new.expires <= now:
            raise InvalidFieldError("expires can't be in the past")
        rights = tuple(dict.fromkeys(new.rights))

        def add() -> str:
            self._need_changeable()
            try:
                return add_key(
                    self._path,
                    new.name,
                    rights,
                    now=now,
                    expires=new.expires,
                    rate=new.rate,
                    check=lambda keys: self._need_admin(
                        keys, "the first key needs the right admin, or nobody could make another"
                    ),
                )
            except KeyNameError:
                raise KeyExistsError(
                    f"there is a key named {new.name} already: revoke it, or use another name"
                ) from None
            except KeysError as error:
                raise StorageError(str(error)) from None

        made = self._auditor.change_key("add", new.name, add, rights)
        response = to_json(MadeKey(new.name, rights, made))
        response.headers["Cache-Control"] = "no-store"
        return response

    @route("DELETE", "/v1/keys/<name>", rights=ADMIN, errors=(404, 409, 503))
    def revoke(self, name: str) -> KeyList:
        """Revoke a key: it opens nothing from now on, and sessions of it end. The last key with the
        right admin can be revoked on the device only."""

        def revoke() -> None:
            self._need_changeable()
            try:
                revoke_key(
                    self._path,
                    name,
                    check=lambda keys: self._need_admin(
                        keys,
                        f"{name} is the last key with the right admin, without which nobody could"
                        " make another: make one first, or use `python -m server key revoke` on the"
                        " device",
                    ),
                )
            except KeyNameError:
                raise KeyNotFoundError("there is no key of this name") from None
            except KeysError as error:
                raise StorageError(str(error)) from None

        self._auditor.change_key("revoke", name, revoke, UNSET)
        return self.read()

    def _need_changeable(self) -> None:
        if not self._changeable:
            raise KeysOffError(
                "auth is off, so that everybody could make a key for later: use `python -m server"
                " key` on the device"
            )

    def _need_admin(self, keys: Sequence[Key], sentence: str) -> None:
        """Raise LastAdminKeyError if none of `keys` opens this, nor a token."""
        if self._authenticator.takes_tokens():
            return
        if not any("admin" in key.rights and not expired(key) for key in keys):
            raise LastAdminKeyError(sentence)
