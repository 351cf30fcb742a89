"""The versions of a model: which one serves next, and which served before, across restarts.

`models/NAME/active.json` keeps it. The file is written when someone activates a version or rolls
back, and when a newer version takes over from one that served.
"""

import errno
import logging
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from server.store.bundles.layout import Fingerprint, versions_of
from server.system.files import read_plain_file, set_aside, write_whole
from server.values import json_values
from server.values.validation import InvalidValueError

logger = logging.getLogger(__name__)

CHOICE_FILE = "active.json"
# Versions that served before, as far back as rollback goes.
HISTORY_MAX = 16


class VersionChoice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A person's decision about a model, and what took over by itself since.

    version: the one to serve. skip: versions that were passed over by the decision, so that only
    one newer than those takes over by itself. history: versions that served before, the last
    one last.
    """

    version: int
    skip: tuple[int, ...] = ()
    history: tuple[int, ...] = ()


class Failure(msgspec.Struct, frozen=True):
    """A version that may not serve, and why."""

    version: int
    reason: str


def read_choice(folder: Path) -> VersionChoice | None:
    """Read the choice in models/NAME. Return None if there is none, or it is damaged (logged)."""
    path = folder / CHOICE_FILE
    try:
        return json_values.decode(read_plain_file(path), VersionChoice, name="it", lenient=False)
    except FileNotFoundError:
        return None
    except (OSError, InvalidValueError) as error:
        moved = _set_aside_damaged(path, error)
        _warn("the kept choice of a version can't be read and is ignored", path, error, moved)
        return None


def _set_aside_damaged(path: Path, error: Exception) -> Path | None:
    """Make way for the next choice if the file itself is at fault, and not its disk or its rights:
    else each start would log it, and a folder in its place would stop the next choice."""
    if isinstance(error, OSError) and error.errno not in (errno.EINVAL, errno.EFBIG):
        return None
    with suppress(OSError):  # a folder that can't be written to
        return set_aside(path)
    return None


def write_choice(folder: Path, choice: VersionChoice) -> None:
    """Keep `choice` in models/NAME: whole or not at all. If it can't be written (logged), it holds
    until the next start."""
    path = folder / CHOICE_FILE
    try:
        write_whole(path, msgspec.json.encode(choice))
    except OSError as error:
        _warn("the choice of a version can't be kept and holds until the next start", path, error)


def _warn(event: str, path: Path, error: Exception, moved: Path | None = None) -> None:
    fields = {"file": str(path), "reason": str(error)}
    if moved is not None:
        fields["moved_to"] = str(moved)
    logger.warning(event, extra={"fields": fields})


def candidates(
    numbers: Sequence[int], choice: VersionChoice | None = None, pinned: int | None = None
) -> tuple[int, ...]:
    """Return the versions that may serve, in the order in which they are tried.

    numbers: those on disk, newest first. A pinned version is the only one. After a choice, newer
    versions that it did not pass over come first, then the chosen one, then older ones.
    """
    if pinned is not None:
        return (pinned,) if pinned in numbers else ()
    skipped = choice.skip if choice else ()
    return tuple(number for number in numbers if number not in skipped)


class VersionHistory:
    """The versions of the model in `folder`, models/NAME. `pinned` is the only one that may serve,
    if it is not None.

    `_lock` guards `_failures`, `_choice` and `_stamp`, the state of the file that `_choice` was
    read from or written to. All else is for the one thread that may load; `content` is the files of
    the version that serves.
    """

    def __init__(self, folder: Path, pinned: int | None = None) -> None:
        self.folder = folder
        self.name = folder.name
        self.pinned = pinned
        self.content: Fingerprint = ()
        self._served: list[int] = []  # before the one that serves, the last one last
        self._recalled = False
        self._lock = threading.Lock()
        self._failures: dict[int, tuple[Fingerprint, str]] = {}
        self._choice: VersionChoice | None = None
        self._stamp: tuple[int, ...] | None = None

    def present(self) -> tuple[int, ...]:
        """Return the versions on disk, newest first."""
        return versions_of(self.folder.parent, self.name)

    def order(self) -> tuple[int, ...]:
        """Return the versions that may serve, in the order in which they are tried."""
        return candidates(self.present(), self._read_choice(), self.pinned)

    def passed_over(self, version: int) -> tuple[int, ...]:
        """Return the versions on disk, newest first, that are newer than `version` and that a
        person passed over."""
        skipped = self._skipped()
        return tuple(n for n in self.present() if n > version and n in skipped)

    def _skipped(self) -> tuple[int, ...]:
        choice = self._read_choice()
        return choice.skip if choice else ()

    def _read_choice(self) -> VersionChoice | None:
        """Return the choice that holds. The file is read again only if somebody else changed it."""
        with self._lock:
            stamp = self._look()
            if stamp != self._stamp:
                self._choice = read_choice(self.folder)
                self._stamp = stamp
            return self._choice

    def _look(self) -> tuple[int, ...] | None:
        try:
            status = os.lstat(self.folder / CHOICE_FILE)
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _keep(self, version: int, skip: tuple[int, ...]) -> None:
        with self._lock:
            self._choice = VersionChoice(version, skip, tuple(self._served))
            write_choice(self.folder, self._choice)
            self._stamp = self._look()

    def first(self) -> int | None:
        """Return the version that would serve once the model is loaded, None if none may."""
        first = next((n for n in self.order() if not self.is_refused(n)), None)
        if first is not None:
            self.recall(first)
        return first

    def rollback_order(self, serving: int | None) -> tuple[int, ...]:
        """Return the versions that a rollback from `serving` tries, in that order: those that
        served, the last one first, then the lower ones that were not passed over."""
        served = [n for n in reversed(self._served) if n != serving]
        present, skipped = self.present(), self._skipped()
        lower = [n for n in present if serving is not None and n < serving and n not in skipped]
        return tuple(dict.fromkeys(n for n in (*served, *lower) if n in present))

    def recall(self, version: int) -> None:
        """Take up the history on disk, once after a start; `version` is the first to serve.

        Versions that came after the choice while the server stood still were not recorded: they
        count as having served.
        """
        choice = self._read_choice()
        if choice is None or self._recalled:
            return
        self._recalled = True
        newer = [n for n in self.present() if choice.version <= n < version]
        since = sorted(n for n in newer if n not in choice.skip)
        self._served = [*choice.history, *since][-HISTORY_MAX:]

    def serves(self, version: int, content: Fingerprint, before: int | None) -> None:
        """Note that `version`, with the files `content`, took over from the version `before`."""
        self.content = content
        if before is not None and before != version:
            self._served = [*self._served, before][-HISTORY_MAX:]
        with self._lock:
            self._failures.pop(version, None)

    def keep_successor(self, version: int) -> None:
        """Keep that `version` took over by itself, so that a rollback after a restart knows what
        served before. What a person passed over stays so."""
        self._recalled = True
        self._keep(version, self._skipped())

    def keep_chosen(self, version: int, served: Sequence[int] | None = None) -> None:
        """Keep that a person chose `version`, and passed over the newer ones that may serve.
        served: what served before it, if that is not as recorded."""
        if served is not None:
            self._served = [*served]
        newer = (n for n in self.present() if n > version)
        self._keep(version, tuple(n for n in newer if not self.is_refused(n)))

    def served_before(self, version: int) -> list[int]:
        """Return the history as it was when `version` last began to serve."""
        if version not in self._served:
            return []
        return self._served[: len(self._served) - 1 - self._served[::-1].index(version)]

    def refuse(self, version: int, content: Fingerprint, reason: str) -> None:
        """Note that `version` with these files may not serve."""
        with self._lock:
            self._failures[version] = (content, reason)

    def is_refused(self, version: int, content: Fingerprint | None = None) -> bool:
        """Return whether `version` was refused when last tried, and had the files `content` then,
        if they are given."""
        with self._lock:
            failed = self._failures.get(version)
        return failed is not None and content in (None, failed[0])

    def failures(self) -> tuple[Failure, ...]:
        """Return the versions on disk that were refused when last tried, newest first."""
        present = self.present()
        with self._lock:
            failed = self._failures
            return tuple(Failure(n, failed[n][1]) for n in present if n in failed)
