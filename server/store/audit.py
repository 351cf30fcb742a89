"""The journal of administration, `data/audit.jsonl`: who changed what, when and from where.

One JSON object a line, on the disk before the change is answered. A full file is put aside as
`audit.1.jsonl`, in place of the one before.
"""

import logging
import os
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from server.observe.logs import ProblemLog
from server.system.clock import rfc3339
from server.system.files import make_folder, sync

logger = logging.getLogger(__name__)

FILE, OLD_FILE = "audit.jsonl", "audit.1.jsonl"
FILE_BYTES_MAX = 1_000_000
# `action` of a version that took over without anybody's request, by watch_models_s.
WATCH = "watch"


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One change. at: RFC 3339. action: load, unload, activate, rollback, upload, policy, product,
    add, change or remove of a camera, image_health for a camera that learns anew, add or revoke of
    a key, or watch for a version that took over by itself. model: empty for a change without one.
    key, rights: of a key's change; the key's name alone. version: that was named or sent, null for
    none. caller: the name of the key or token, empty without. before, after: the version that
    served, null for none. code: of the error, if the change was refused.
    policy_before, policy_after: of the action policy: the version's verdict policy, null without
    one or if it can't be read; else absent. product_before, product_after: of the action product:
    the active one, null for none; else absent."""

    at: str
    action: str
    model: str = ""
    camera: str = ""
    key: str = ""
    version: int | None = None
    caller: str = ""
    address: str = ""
    request_id: str = ""
    before: int | None = None
    after: int | None = None
    code: str = ""
    policy_before: dict[str, Any] | msgspec.UnsetType | None = msgspec.UNSET
    policy_after: dict[str, Any] | msgspec.UnsetType | None = msgspec.UNSET
    product_before: str | msgspec.UnsetType | None = msgspec.UNSET
    product_after: str | msgspec.UnsetType | None = msgspec.UNSET
    rights: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET


def now() -> str:
    """Returns this moment, as `Change.at`."""
    return rfc3339(time.time())


class Audit:
    """The journal of administration in the folder `data`. `_lock` guards the files."""

    def __init__(self, data: Path) -> None:
        self._folder = data
        self._lock = threading.Lock()
        self._problem = ProblemLog("audit can't be written", "audit is written again")

    def record(self, change: Change) -> None:
        """Keeps and logs a change. One that can't be written is logged all the same: a rollback
        must not wait for a disk."""
        fields = {
            name: value
            for name, value in msgspec.to_builtins(change).items()
            if value != "" and name != "at"
        }
        what = "key" if change.key else "camera" if change.camera else "model"
        event = f"{what} not changed" if change.code else f"{what} changed"
        logger.info(event, extra={"fields": fields})
        with self._lock:
            try:
                self._append(msgspec.json.encode(change))
            except OSError as error:
                self._problem.failed(str(error))
            else:
                self._problem.went_well()

    def took_over(self, model: str, before: int | None, after: int) -> None:
        """Keeps and logs that a version took over by itself."""
        self.record(Change(at=now(), action=WATCH, model=model, before=before, after=after))

    def _append(self, line: bytes) -> None:
        path = self._folder / FILE
        make_folder(self._folder)
        fresh = not path.exists()
        with path.open("a+b") as file:
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(size - 1)
                # A cut of power may have left half a line.
                line = line if file.read(1) == b"\n" else b"\n" + line
            file.write(line + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if size > FILE_BYTES_MAX:
            path.replace(self._folder / OLD_FILE)
        if fresh or size > FILE_BYTES_MAX:
            sync(self._folder)

    def newest(self, limit: int) -> tuple[Change, ...]:
        """Returns the last `limit` changes, the newest first. Raises OSError."""
        with self._lock:
            return tuple(islice(self._read(), limit))

    def _read(self) -> Iterator[Change]:
        for name in (FILE, OLD_FILE):
            try:
                lines = (self._folder / name).read_bytes().splitlines()
            except FileNotFoundError:
                continue
            for line in reversed(lines):
                try:
                    yield msgspec.json.decode(line, type=Change)
                except (msgspec.DecodeError, UnicodeDecodeError):
                    continue  # half a line, of a cut of power
