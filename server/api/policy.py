"""/v1/models/NAME/policy: the verdict's thresholds, changed on the device without a new bundle."""

import threading
from contextlib import suppress
from typing import Annotated, Any

import msgspec
from flask import request

from server.api.audit import Auditor
from server.api.models import MODEL_PATH, VersionBody, change_route
from server.errors import BodyTooLargeError, LinesideError, ModelNotFoundError, NotReadyError
from server.http.body.image import need_length, read_options
from server.http.body.json_body import decode_json, read_body
from server.http.routes import ADMIN, KNOWN, route
from server.http.wsgi import current
from server.store.audit import now
from server.store.bundles.layout import versions_of
from server.store.bundles.policies import PolicyState
from server.store.bundles.repository import BundleRepository
from server.store.bundles.serving_models import LOAD_TIMEOUT_S

# Bytes of a body: the journal of administration keeps each policy twice.
POLICY_BYTES_MAX = 100_000


class PolicyBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A verdict policy for a version; null for the version that serves.

    policy: all of it, with the fields that `verdict` has in a bundle.json of the model's task; null
    returns to the bundle's. All tasks: accept, min_probability. A classifier with familiarity:
    min_familiarity. anomaly: threshold. detect: expected, minimum, maximum, forbidden, region.
    """

    policy: dict[str, Any] | None
    version: Annotated[int, msgspec.Meta(ge=1)] | None = None


class PolicyRoutes:
    """Answers and changes the verdict policies of the models in `store`, the latter by
    `auditor`."""

    def __init__(self, store: BundleRepository, auditor: Auditor) -> None:
        self._store = store
        self._auditor = auditor
        # Held by one change, so that its answer and its record are of no other's policy.
        self._changing = threading.Lock()

    def _change(self, name: str, version: int | None, policy: dict[str, Any] | None) -> PolicyState:
        number = version or self._store.get(name).manifest.version

        def in_force() -> dict[str, Any] | None:
            with suppress(LinesideError):  # damaged: perhaps the reason for the change
                return self._store.policy(name, number).policy
            return None

        def change() -> None:
            self._store.set_policy(name, number, policy, now(), current().caller_name)

        if not self._changing.acquire(timeout=LOAD_TIMEOUT_S):
            raise NotReadyError("other policies are being changed", retry_after=5)
        try:
            self._auditor.make("policy", name, change, number, in_force)
            return self._store.policy(name, number)
        finally:
            self._changing.release()

    @route(
        "GET", f"{MODEL_PATH}/policy", rights=KNOWN, query=VersionBody, errors=(400, 404, 422, 503)
    )
    def read(self, name: str) -> PolicyState:
        """Return the verdict policy of the version that serves, or of the one named."""
        return self._store.policy(name, read_options(VersionBody, request).version)

    @change_route(
        f"{MODEL_PATH}/policy",
        body=PolicyBody,
        example={"policy": {"accept": ["setosa"], "min_probability": 0.8}},
    )
    def change(self, name: str) -> PolicyState:
        """Judge by this verdict policy from the next frame on, also after a restart."""
        need_length(request)
        if not versions_of(self._store.folder, name):
            raise ModelNotFoundError(f"there is no model {name}")
        data = read_body()
        if len(data) > POLICY_BYTES_MAX:
            raise BodyTooLargeError(f"a policy has at most {POLICY_BYTES_MAX:,} bytes")
        body = decode_json(PolicyBody, data)
        return self._change(name, body.version, body.policy)

    @route(
        "DELETE",
        f"{MODEL_PATH}/policy",
        rights=ADMIN,
        query=VersionBody,
        errors=(400, 403, 404, 422, 503),
    )
    def remove(self, name: str) -> PolicyState:
        """Judge by the bundle's verdict policy again."""
        return self._change(name, read_options(VersionBody, request).version, None)
