"""API keys at rest: a file of JSON lines, one key each, without the keys themselves.

A key is 256 bits from the operating system's random source, so nobody can try them all, and
SHA-256 hides it well enough: slow hashes are for secrets that people choose. The file is read again
whenever it changes, so that a key that was made or revoked counts with the next request.
"""

import fcntl
import hashlib
import hmac
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Annotated, Literal

import msgspec

from server.errors import KeyNameError, KeysError
from server.observe.logs import ProblemLog
from server.system.files import read_plain_file, write_whole
from server.values import json_values
from server.values.validation import InvalidValueError

Right = Literal["recognize", "admin", "metrics"]
RIGHTS: tuple[Right, ...] = ("recognize", "admin", "metrics")
# The prefix lets people, scanners for leaked secrets, and our own log lines recognize a key.
PREFIX = "ls_"
# Python reads no number of more than 4300 digits.
RATE = "^([1-9][0-9]{0,17}/(second|minute|hour|day))?$"
# The state of a file: when it was last changed, its bytes, its inode.
Stamp = tuple[int, int, int]
# Seconds for which a file that is rewritten in place is given to become whole.
SETTLE_S = 2.0
# The realm and the hashes of digest logins (RFC 7616), the stronger first.
DIGEST_REALM = "lineside"
DIGEST_HASHES = {"SHA-256": hashlib.sha256, "MD5": hashlib.md5}
NAME_PATTERN = "[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}"
NAME = re.compile(NAME_PATTERN)


# One without a zone could not be compared with now.
Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class Key(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line of the file. sha256: hex digest of the key. rate: requests allowed, such as
    `100/second`, in place of the setting `rate_per_key`. digest: by hash, what digest logins are
    checked by (`digest_secrets`), if they are taken."""

    name: str
    rights: tuple[Right, ...]
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    created: Moment
    expires: Moment | None = None
    rate: Annotated[str, msgspec.Meta(pattern=RATE)] = ""
    digest: dict[str, str] = {}


# Is called with the keys as they would be after a change, and may raise to prevent it.
Check = Callable[[Sequence[Key]], None]


def digest_secrets(name: str, secret: str) -> dict[str, str]:
    """Return what digest logins of the key are checked by: H(user:realm:password) by each hash."""
    text = f"{name}:{DIGEST_REALM}:{secret}".encode()
    return {hash_name: make(text).hexdigest() for hash_name, make in DIGEST_HASHES.items()}


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def read_keys(path: Path) -> tuple[Key, ...]:
    """Returns the keys in the file `path`; none if there is no such file. Raises KeysError."""
    try:
        lines = read_plain_file(path).splitlines()
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
def _changing(path: Path) -> Iterator[IO[bytes]]:
    """Waits until no other process changes the file, and has others wait. Raises KeysError."""
    with ExitStack() as stack:
        try:
            # The keys file itself is another one after each change, and would be locked in vain.
            lock = stack.enter_context(_lock_path(path).open("ab"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            raise _unwritable(path, error) from None
        yield lock


def _lock_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _stamp(path: Path | str) -> Stamp | None:
    """Returns the state of the file; None if it is missing."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _change(path: Path, lock: IO[bytes], keys: Iterable[Key]) -> None:
    """Writes the keys, and in the lock file the state in which they were written, by which a server
    knows a whole file from one that somebody is just writing. Raises KeysError."""
    write_keys(path, keys)
    try:
        with suppress(PermissionError):
            os.fchmod(lock.fileno(), 0o644)  # for a service that runs under a user of its own
        os.ftruncate(lock.fileno(), 0)
        os.write(lock.fileno(), msgspec.json.encode(_stamp(path)))
    except OSError as error:
        raise _unwritable(path, error) from None


def _written_whole(path: Path) -> Stamp | None:
    """Returns the state in which a command of ours wrote the file last; None if that is not
    known."""
    try:
        stamp: Stamp = msgspec.json.decode(read_plain_file(_lock_path(path)), type=Stamp)
    except (OSError, msgspec.DecodeError):
        return None
    return stamp


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
    digest_login: bool = False,
    check: Check | None = None,
) -> str:
    """Adds a key to the file and returns it: the only moment when it can be seen. digest_login:
    digest logins are taken too.

    Raises KeyNameError for a name that is taken, KeysError for an unusable one, or no rights.
    """
    unique = tuple(dict.fromkeys(rights))
    if not NAME.fullmatch(name):
        raise KeysError(f"a key can't be named {name!r}: use letters, digits and . _ @ -")
    if not re.search(RATE, rate):
        raise KeysError(f"a rate can't be {rate!r}: say such as 100/second or 2000/minute")
    if not unique:
        raise KeysError(f"a key needs rights: one or more of {', '.join(RIGHTS)}")
    secret = PREFIX + secrets.token_urlsafe(32)
    key = Key(
        name=name,
        rights=unique,
        sha256=digest(secret),
        created=now,
        expires=expires,
        rate=rate,
        digest=digest_secrets(name, secret) if digest_login else {},
    )
    with _changing(path) as lock:
        keys = read_keys(path)
        if any(other.name == name for other in keys):
            raise KeyNameError(
                f"{path} has a key named {name} already: revoke it, or use another name"
            )
        if check:
            check((*keys, key))
        _change(path, lock, (*keys, key))
    return secret


def revoke_key(path: Path, name: str, *, check: Check | None = None) -> None:
    """Takes the key out of the file. Raises KeyNameError if there is none of that name."""
    with _changing(path) as lock:
        keys = read_keys(path)
        if not any(key.name == name for key in keys):
            raise KeyNameError(f"{path} has no key named {name}")
        others = tuple(key for key in keys if key.name != name)
        if check:
            check(others)
        _change(path, lock, others)


# The state of no file: the keys are read again with each request.
UNSETTLED: Stamp = (-1, -1, -1)


class KeyRing:
    """The keys of a file, read again when it changes.

    A file that somebody rewrites in place is empty or cut off for a moment. So a key that is gone
    stays valid until the file has not changed for SETTLE_S seconds, unless a command of ours wrote
    it; and a file that is empty, missing or damaged leaves the keys as they were, for as long as it
    stays so. The log says so once, and once that it is over. A key that was added counts at once.

    `_lock` guards what follows it. `_settled` is the state of the file that `_keys` are of, and
    `_last_stamp` the last one, since `_since` in seconds of time.monotonic(). Raises KeysError if
    the file can't be read at the start.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._name = os.fspath(path)
        self._lock = threading.Lock()
        self._there = False
        self._last_stamp: Stamp | None = UNSETTLED
        self._since = 0.0
        self._problem = ProblemLog(
            "keys file unusable, keys stay as before", "keys file is whole again"
        )
        stamp, self._keys = _read_at_start(path)
        self._there = stamp is not None
        self._settled: Stamp | None = stamp

    def _look(self) -> Stamp | None:
        # A missing file is noticed without an exception, which each frame would pay for.
        if not self._there and not os.access(self._name, os.F_OK):
            return None
        return _stamp(self._name)

    def current(self) -> tuple[Key, ...]:
        stamp = self._look()
        with self._lock:
            if stamp != self._settled:
                self._there = self._there or stamp is not None
                self._read(stamp, time.monotonic())
            return self._keys

    def _read(self, stamp: Stamp | None, now: float) -> None:
        if stamp != self._last_stamp:
            self._last_stamp = stamp
            self._since = now
        try:
            keys = read_keys(self.path)
        except KeysError as error:
            self._problem.failed(str(error))
            return
        still = self._look() == stamp  # else it was written to while it was read
        whole = still and stamp is not None and stamp == _written_whole(self.path)
        quiet = still and now - self._since >= SETTLE_S
        if self._keys and not keys and not whole:
            self._problem.failed(f"{self.path} is {'missing' if stamp is None else 'empty'}")
            # Written to again, it is read again.
            self._settled = stamp if quiet else UNSETTLED
            return
        present = {key.sha256 for key in keys}
        missing = tuple(key for key in self._keys if key.sha256 not in present)
        settled = whole or quiet
        self._keys = keys if settled else (*keys, *missing)
        self._settled = stamp if settled else UNSETTLED
        if settled:
            self._problem.went_well(file=self._name, keys=len(keys))

    def usable(self) -> int:
        """Returns the number of keys that have not expired."""
        return sum(not expired(key) for key in self.current())

    def present(self) -> bool:
        """Returns whether there is a keys file, or was since the start: who revokes the last key or
        takes the file away does not mean to let everyone in."""
        self.current()
        return self._there

    def find(self, secret: str) -> Key | None:
        """Returns the key that `secret` is. Takes the same time for every secret of a length: all
        keys are compared, each in constant time."""
        return self.with_hash(digest(secret))

    def with_hash(self, sha256: str) -> Key | None:
        """Returns the key whose hash, in hex, is `sha256`, as `find` does."""
        match = None
        for key in self.current():
            if hmac.compare_digest(key.sha256, sha256):
                match = key
        return match


def _read_at_start(path: Path) -> tuple[Stamp | None, tuple[Key, ...]]:
    """Returns the file's state and its keys, once somebody who is just writing it is done. Raises
    KeysError."""
    give_up = time.monotonic() + SETTLE_S
    while True:
        stamp = _stamp(path)
        young = stamp is not None and abs(time.time() - stamp[0] / 1e9) < SETTLE_S
        wait = young and stamp != _written_whole(path) and time.monotonic() < give_up
        try:
            keys = read_keys(path)
        except KeysError:
            if not wait:
                raise
        else:
            if keys or not wait:
                return stamp, keys
        time.sleep(SETTLE_S / 40)


def expired(key: Key, now: datetime | None = None) -> bool:
    return key.expires is not None and key.expires <= (now or datetime.now(UTC))
