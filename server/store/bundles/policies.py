"""Verdict policies that were set on this device in place of the bundles' own.

`models/NAME/policy-VERSION.json` keeps the policy of one version, with the sha256 of the model's
file, which it was made for, and its own. A file that is damaged or does not fit judges no part: its
version is refused, since the bundle's policy may pass what the lost one did not.
"""

import hashlib
import logging
from pathlib import Path
from typing import Any

import msgspec

from server.errors import BundleError, InvalidFieldError, StorageError
from server.recognition.manifest import Bundle, DevicePolicy, VerdictPolicy
from server.store.bundles.layout import policy_path
from server.system.files import read_plain_file, sync, write_whole
from server.values import json_values
from server.values.validation import InvalidValueError

logger = logging.getLogger(__name__)


class PolicyChange(msgspec.Struct, frozen=True):
    """Who changed the policy of a version on this device. at: RFC 3339. caller: the name of the
    key or token, empty without."""

    at: str
    caller: str = ""


class PolicyState(msgspec.Struct, frozen=True):
    """The verdict policy of a version. policy: the one in force, null if frames are not judged.
    bundle: the one that bundle.json has. changed: who put another than the bundle's in force, and
    when; null if the bundle's is in force."""

    model: str
    version: int
    policy: dict[str, Any] | None
    bundle: dict[str, Any] | None
    changed: PolicyChange | None


class _Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    policy: dict[str, Any]
    at: str
    caller: str
    model_sha256: str


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    content: msgspec.Raw
    sha256: str


def policy_state(bundle: Bundle, device: DevicePolicy | None) -> PolicyState:
    """Return the state of a version's policy; device: the one that was set on this device."""
    own = bundle.manifest.verdict
    return PolicyState(
        bundle.manifest.name,
        bundle.manifest.version,
        msgspec.to_builtins(device.policy if device else own),
        msgspec.to_builtins(own),
        PolicyChange(device.at, device.caller) if device else None,
    )


def make_policy(value: object, bundle: Bundle) -> VerdictPolicy:
    """Return the policy for `bundle` that `value`, of plain values, describes. Raises
    InvalidFieldError that names the field."""
    # Imports the runtime of models, which a server's start does beside other work.
    from server.recognition.tasks.task import read_policy

    try:
        return read_policy(value, bundle)
    except InvalidValueError as error:
        raise InvalidFieldError(str(error)) from None


def load_policy(bundle: Bundle) -> DevicePolicy | None:
    """Read the policy that was set for `bundle` on this device; None if there is none, or if it was
    set for another model under this number (logged). Raises BundleError if it can't be used."""
    path = policy_path(bundle.folder)
    try:
        file = json_values.decode(read_plain_file(path), _File, name="it", lenient=False)
        content = bytes(file.content)
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise InvalidValueError("its content differs from its sha256")
        stored = json_values.decode(content, _Content, name="content", lenient=False)
        if stored.model_sha256 != bundle.model_sha256():
            fields = {"file": str(path), "reason": "it was set for another model"}
            logger.warning("a kept verdict policy is ignored", extra={"fields": fields})
            return None
        return DevicePolicy(make_policy(stored.policy, bundle), stored.at, stored.caller)
    except FileNotFoundError:
        return None
    except (OSError, InvalidValueError, InvalidFieldError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        name, version = bundle.manifest.name, bundle.manifest.version
        raise BundleError(
            f"the verdict policy in {path} can't be used: {reason}. DELETE"
            f" /v1/models/{name}/policy?version={version} returns to the bundle's"
        ) from None


def keep_policy(bundle: Bundle, device: DevicePolicy) -> None:
    """Keep the policy of `bundle`, on the disk once this returns. Raises StorageError."""
    path = policy_path(bundle.folder)
    try:
        policy, sha256 = msgspec.to_builtins(device.policy), bundle.model_sha256()
        stored = _Content(policy, device.at, device.caller, sha256)
        content = msgspec.json.encode(stored)
        file = _File(msgspec.Raw(content), hashlib.sha256(content).hexdigest())
        write_whole(path, msgspec.json.encode(file))
    except OSError as error:
        raise StorageError(
            f"the verdict policy can't be kept in {path}, and is not changed: {error.strerror}"
        ) from None


def remove_policy(folder: Path) -> None:
    """Remove the policy of the version in `folder`, if one was set. Raises StorageError."""
    path = policy_path(folder)
    try:
        path.unlink()
        sync(path.parent)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(
            f"the verdict policy in {path} can't be removed, and is not changed: {error.strerror}"
        ) from None
