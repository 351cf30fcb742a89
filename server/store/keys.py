"""API keys at rest: a file of JSON lines, one key each, without the keys themselves.

A key is 256 bits from the operating system's random source, so nobody can try them all, and
SHA-256 hides it well enough: slow hashes are for secrets that people choose. The file is read again
whenever it changes, so that a key that was made or revoked counts with the next request.
"""

import fcntl
import hashlib
import hmac
import logging
import os
import re
import secrets
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from server import json_values
from server.errors import KeysError
from server.observe.logs import LOGGER
from server.store.files import write_whole
from server.validation import InvalidValueError

logger = logging.getLogger(LOGGER)

Right = Literal["recognize", "admin", "metrics"]
RIGHTS: tuple[Right, ...] = ("recognize", "admin", "metrics")
# The prefix lets people, scanners for leaked secrets, and our own log lines tell a key.
PREFIX = "ls_"
RATE = "^([1-9][0-9]*/(second|minute|hour|day))?$"
# Of a file: when it was last changed, its bytes, its inode.
Stamp = tuple[int, int, int]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")


# One without a zone could not be compared with now.
Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class Key(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line of the file. sha256: hex digest of the key. rate: requests allowed, such as
    `100/second`, in place of the setting `rate_per_key`."""

    name: str
    rights: tuple[Right, ...]
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    created: Moment
    expires: Moment | None = None
    rate: Annotated[str, msgspec.Meta(pattern=RATE)] = ""


def digest(secret: str) -> str:
    """sha256 of a key, as 64 hex digits."""
    return hashlib.sha256(secret.encode()).hexdigest()


def read_keys(path: Path) -> tuple[Key, ...]:
    """The keys in the file `path`; none where there is no such file. Raises KeysError."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise KeysError(f"the keys file {path} can't be read: {error.strerror}") from None
    keys = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            keys.append(json_values.decode(line, Key, name="it", lenient=False))
        except InvalidValueError as error:
            raise KeysError(f"{path} line {number} is not a key: {error}") from None
    return tuple(keys)


@contextmanager
def _changing(path: Path) -> Iterator[None]:
    """Waits until no other process changes the file, and has others wait. Raises KeysError."""
    with ExitStack() as stack:
        try:
            # The keys file itself is another one after each change, and would be locked in vain.
            lock = stack.enter_context(path.with_name(f".{path.name}.lock").open("ab"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            raise _unwritable(path, error) from None
        yield


def write_keys(path: Path, keys: Iterable[Key]) -> None:
    """Writes the file whole or not at all, readable by its owner alone. Raises KeysError."""
    data = b"".join(msgspec.json.encode(key) + b"\n" for key in keys)
    try:
        # The service reads it under a user of its own; root, who adds a key, must not take the
        # file from it.
        write_whole(path, data, private=True)
    except OSError as error:
        raise _unwritable(path, error) from None


def _unwritable(path: Path, error: OSError) -> KeysError:
    return KeysError(f"the keys file {path} can't be written: {error.strerror}")


def add_key(
    path: Path,
    name: str,
    rights: Iterable[Right],
    *,
    now: datetime,
    expires: datetime | None = None,
    rate: str = "",
) -> str:
    """Adds a key to the file and returns it: the only moment when it can be seen.

    Raises KeysError for a name that is taken or unusable, or no rights.
    """
    given = tuple(dict.fromkeys(rights))
    if not NAME.fullmatch(name):
        raise KeysError(f"a key can't be named {name!r}: use letters, digits and . _ @ -")
    if not re.search(RATE, rate):
        raise KeysError(f"a rate can't be {rate!r}: say such as 100/second or 2000/minute")
    if not given:
        raise KeysError(f"a key needs rights: one or more of {', '.join(RIGHTS)}")
    secret = PREFIX + secrets.token_urlsafe(32)
    key = Key(
        name=name, rights=given, sha256=digest(secret), created=now, expires=expires, rate=rate
    )
    with _changing(path):
        keys = read_keys(path)
        if any(other.name == name for other in keys):
            raise KeysError(
                f"{path} has a key named {name} already: revoke it, or use another name"
            )
        write_keys(path, (*keys, key))
    return secret


def revoke_key(path: Path, name: str) -> None:
    """Takes the key out of the file. Raises KeysError where there is none of that name."""
    with _changing(path):
        keys = read_keys(path)
        if not any(key.name == name for key in keys):
            raise KeysError(f"{path} has no key named {name}")
        write_keys(path, (key for key in keys if key.name != name))


class KeyRing:
    """The keys of a file, read again when it changes.

    `_lock` guards what follows it. `_stamp` is the file's state that `_keys` were read from, and
    `_told` the last that could not be read: it is tried again with each request, since a key that
    was revoked must not stay valid. Raises KeysError where the file can't be read at
    the start; later, the keys read before go on, and the log says so.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._name = path, os.fspath(path)
        self._lock = threading.Lock()
        self._stamp: Stamp | None = None
        self._stamp = self._told = self._look()
        self._keys = read_keys(path)
        self._there = self._stamp is not None

    def _look(self) -> Stamp | None:
        # A missing file is told without an exception, which each frame would pay for.
        if self._stamp is None and not os.access(self._name, os.F_OK):
            return None
        try:
            status = os.stat(self._name)
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def current(self) -> tuple[Key, ...]:
        """The keys of this moment."""
        stamp = self._look()
        with self._lock:
            if stamp != self._stamp:
                self._there = self._there or stamp is not None
                try:
                    self._keys = read_keys(self.path)
                    self._stamp = stamp
                except KeysError as error:
                    self._tell(stamp, error)
            return self._keys

    def _tell(self, stamp: Stamp | None, error: KeysError) -> None:
        """Logs, once for each state of the file, that it can't be read."""
        if stamp != self._told:
            self._told = stamp
            logger.error("keys are as before", extra={"fields": {"reason": str(error)}})

    def present(self) -> bool:
        """Whether there is a keys file, or was since the start: who revokes the last key or takes
        the file away does not mean to let everyone in."""
        self.current()
        return self._there

    def find(self, secret: str) -> Key | None:
        """The key that `secret` is. Takes the same time for every secret of a length: all keys are
        compared, each in constant time."""
        asked, found = digest(secret), None
        for key in self.current():
            if hmac.compare_digest(key.sha256, asked):
                found = key
        return found


def expired(key: Key, now: datetime | None = None) -> bool:
    """Whether the key's time is over."""
    return key.expires is not None and key.expires <= (now or datetime.now(UTC))
