"""Store and forward: the messages of each output, on the disk until the other side has them.

A message is committed before its frame is answered, so that kill -9 loses none that was answered:
what SQLite has written to its log is in the kernel's cache by then (`synchronous = NORMAL`; a cut
of power may lose the last seconds, https://sqlite.org/wal.html). What was delivered is noted once a
second: after a crash the messages of that second are sent again, with the same sequence numbers.

If the file can't be written, messages go on in memory, and back to the disk once that works.
"""

import logging
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from server.line.outputs.messages import Event, Message
from server.observe.logs import ProblemLog
from server.system.files import set_aside
from server.system.sqlite import COMPANIONS, LOG_BYTES_MAX, OpenFiles, is_damage, open_database

logger = logging.getLogger(__name__)

FILE = "outbox.db"
SCHEMA = """
CREATE TABLE IF NOT EXISTS streams (stream TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS outputs (
    name TEXT PRIMARY KEY, delivered INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS messages (
    output TEXT NOT NULL, seq INTEGER NOT NULL, at REAL NOT NULL, event BLOB NOT NULL,
    PRIMARY KEY (output, seq)
) WITHOUT ROWID;
"""
FAILURES = (sqlite3.Error, OSError)
# Seconds between two turns of the thread that notes what was delivered and drops what is too much.
TURN_INTERVAL_S = 1.0
# Milliseconds that another process may hold the file: a frame waits for it.
LOCK_TIMEOUT_MS = 200
# Seconds for which messages are kept of an output that the settings do not name any more.
UNNAMED_AGE_MAX_S = 7 * 86_400.0
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Event).decode
_INSERT = "INSERT INTO messages VALUES (?, ?, ?, ?)"
_SELECT = "SELECT seq, event FROM messages WHERE output = ? AND seq > ? ORDER BY seq LIMIT ?"
_OLDEST = "SELECT at FROM messages WHERE output = ? AND seq > ? ORDER BY seq LIMIT 1"
_TOO_OLD = "SELECT max(seq) FROM messages WHERE output = ? AND seq > ? AND at < ?"


class Bounds(msgspec.Struct, frozen=True):
    """The messages of one output that may wait, and for how many seconds; 0: without limit."""

    messages: int
    age_s: float


class _Place(msgspec.Struct):
    """The numbers of one output: the last message that was put in, the last that was delivered or
    dropped, the last before this process began, and those that the file says were delivered."""

    last: int = 0
    delivered: int = 0
    inherited: int = 0
    noted: int = 0


class Outbox:
    """The messages that wait for the outputs in `bounds`, by name, in the file at `path`.

    dropped: called with an output, `dropped` or `expired`, and a number of messages. For any
    thread; `_lock` guards `_base`, `_files`, `_places` and `_in_memory`.
    """

    def __init__(
        self, path: Path, bounds: Mapping[str, Bounds], dropped: Callable[[str, str, int], None]
    ) -> None:
        self.path = path
        self._bounds = dict(bounds)
        self._dropped = dropped
        self._lock = threading.Lock()
        self._problem = ProblemLog(
            "the outbox can't be written, messages wait in memory", "the outbox is written again"
        )
        self._losing = {
            name: ProblemLog("messages of an output are dropped", "no more messages are dropped")
            for name in bounds
        }
        self._stop = threading.Event()
        self._files: OpenFiles | None = None
        self._stream = ""
        self._places: dict[str, _Place] = {}
        self._base = self._open_first()
        self._unread = self._files is None  # what an earlier process left there is not known
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    def _open_first(self) -> sqlite3.Connection:
        """Open the file and read what an earlier process left in it; or begin anew in its place if
        it is damaged, in memory if it can't be used."""
        for _ in range(2):
            try:
                base = self._open_file()
                try:
                    self._read(base)
                    self._files = OpenFiles(self.path)
                except FAILURES:
                    base.close()
                    raise
                return base
            except FAILURES as error:
                if not self._was_set_aside(error):
                    break
        base = _open_memory()
        self._read(base)
        return base

    def _read(self, base: sqlite3.Connection) -> None:
        self._stream = _read_stream(base)
        self._places = {name: _read_place(base, name) for name in self._bounds}
        _delete_unnamed(base, tuple(self._places))

    def _open_file(self) -> sqlite3.Connection:
        base = open_database(self.path, SCHEMA, "NORMAL")
        # By the thread instead, since it waits for the disk.
        base.execute("PRAGMA wal_autocheckpoint = 0")
        base.execute(f"PRAGMA busy_timeout = {LOCK_TIMEOUT_MS}")
        return base

    def _was_set_aside(self, error: Exception) -> bool:
        """Log why the file can't be used. Return whether it was damaged and is out of the way."""
        if is_damage(error):
            try:
                fields = {"reason": str(error), "moved_to": str(set_aside(self.path, COMPANIONS))}
            except OSError as other:
                error = other
            else:
                logger.error("the outbox is damaged, and begun anew", extra={"fields": fields})
                return True
        self._problem.failed(str(error), path=str(self.path))
        return False

    def put(self, names: Sequence[str], event: Event) -> None:
        """Keep a message for each of the outputs `names`; they outlive this process once this
        returns, unless the file can't be written."""
        data = _encode(event)
        with self._lock:
            rows: list[object] = []
            for name in names:
                place = self._places[name]
                place.last += 1
                rows += (name, place.last, event.at, data)
            query = _INSERT + ", (?, ?, ?, ?)" * (len(names) - 1)
            try:
                self._base.execute(query, rows)
            except FAILURES as error:
                self._go_to_memory(error)
                self._base.execute(query, rows)

    def waiting(self, name: str, limit: int) -> list[Message]:
        """Return the oldest messages of an output that were not delivered, at most `limit`."""
        with self._lock:
            place = self._places[name]
            try:
                rows = self._base.execute(_SELECT, (name, place.delivered, limit)).fetchall()
            except FAILURES as error:
                self._go_to_memory(error)
                rows = self._base.execute(_SELECT, (name, place.delivered, limit)).fetchall()
        return [
            Message(self._stream, seq, seq <= place.inherited, _decode(data)) for seq, data in rows
        ]

    def count(self, name: str) -> int:
        """Return how many messages of an output wait."""
        place = self._places[name]
        return place.last - place.delivered

    def delivered(self, name: str, seq: int) -> int:
        """Note that the messages of an output up to `seq` were delivered. Return how many of them
        were waiting until now."""
        with self._lock:
            place = self._places[name]
            count = max(0, seq - place.delivered)
            place.delivered += count
            return count

    def _run(self) -> None:
        while not self._stop.wait(TURN_INTERVAL_S):
            self.turn(time.time())

    def turn(self, now: float) -> None:
        """Note in the file what was delivered, and drop what is beyond the bounds. now: Unix
        seconds."""
        lost: list[tuple[str, str, int]] = []
        with self._lock:
            try:
                self._return_to_disk()
                lost = [each for name in self._places for each in self._drop(name, now)]
                self._note()
            except FAILURES as error:
                self._go_to_memory(error)
        for name, result, count in lost:
            self._dropped(name, result, count)
            self._losing[name].failed(result, output=name, messages=count)
        for name in self._places.keys() - {name for name, _, _ in lost}:
            self._losing[name].went_well(output=name)
        self._checkpoint()

    def _drop(self, name: str, now: float) -> list[tuple[str, str, int]]:
        place, bounds = self._places[name], self._bounds[name]
        lost = []
        excess = place.last - place.delivered - bounds.messages
        if excess > 0:
            place.delivered += excess
            lost.append((name, "dropped", excess))
        if bounds.age_s:
            values = (name, place.delivered, now - bounds.age_s)
            # The oldest first: to look at all takes long if many wait, and a frame waits meanwhile.
            oldest = self._base.execute(_OLDEST, values[:2]).fetchone()
            newest = None
            if oldest is not None and oldest[0] < values[2]:
                newest = self._base.execute(_TOO_OLD, values).fetchone()[0]
            if newest is not None:
                lost.append((name, "expired", newest - place.delivered))
                place.delivered = newest
        return lost

    def _note(self) -> None:
        """Write what was delivered. The caller holds the lock."""
        for name, place in self._places.items():
            if place.noted == place.delivered:
                continue
            run = self._base.execute
            run("BEGIN IMMEDIATE")
            try:
                run("REPLACE INTO outputs VALUES (?, ?)", (name, place.delivered))
                run("DELETE FROM messages WHERE output = ? AND seq <= ?", (name, place.delivered))
                run("COMMIT")
            except sqlite3.Error:
                if self._base.in_transaction:
                    run("ROLLBACK")
                raise
            place.noted = place.delivered

    def _checkpoint(self) -> None:
        """Take the log into the file by another connection, so that no message waits for it.

        SQLite begins a log anew only after a checkpoint that took all of it, which may never happen
        while messages keep coming. So they wait for the end of one if the log is too long: it has
        only what came during the checkpoint before to take."""
        if self._files is None:
            return
        try:
            base = sqlite3.connect(self.path, timeout=1.0, isolation_level=None)
            try:
                base.execute("PRAGMA wal_checkpoint(PASSIVE)")
            finally:
                base.close()
            if self.log_bytes() > LOG_BYTES_MAX:
                with self._lock:
                    self._base.execute("PRAGMA wal_checkpoint(PASSIVE)")
        except FAILURES as error:
            with self._lock:
                self._go_to_memory(error)

    def log_bytes(self) -> int:
        """Return the size of the log that SQLite keeps beside the file. Raises OSError."""
        try:
            return self.path.with_name(f"{self.path.name}-wal").stat().st_size
        except FileNotFoundError:
            return 0

    def _go_to_memory(self, error: Exception) -> None:
        """Continue with the same messages in memory. The caller holds the lock."""
        self._move(_open_memory(), None)
        self._was_set_aside(error)

    def _return_to_disk(self) -> None:
        """Continue in a file that can be written again, or in a new one if the file was deleted or
        replaced. The caller holds the lock."""
        if self._files is not None and (reason := self._files.lost()):
            logger.error("the outbox is made anew", extra={"fields": {"reason": reason}})
            self._move(_open_memory(), None)
        if self._files is not None or self._unread:
            return
        try:
            base = self._open_file()
            self._move(base, OpenFiles(self.path))
        except FAILURES as error:
            self._was_set_aside(error)
            return
        self._problem.went_well()

    def _move(self, base: sqlite3.Connection, files: OpenFiles | None) -> None:
        """Copy what waits to `base`, in place of what is there, and use it from now on."""
        rows: list[tuple[object, ...]] = []
        for name, place in self._places.items():
            query = "SELECT * FROM messages WHERE output = ? AND seq > ?"
            try:
                rows += self._base.execute(query, (name, place.delivered)).fetchall()
            except FAILURES as error:
                fields = {"output": name, "reason": str(error)}
                logger.error("messages of an output can't be read", extra={"fields": fields})
                self._dropped(name, "dropped", place.last - place.delivered)
                place.delivered = place.last
        try:
            base.execute("BEGIN IMMEDIATE")
            for table in ("streams", "outputs", "messages"):
                base.execute(f"DELETE FROM {table}")
            base.execute("INSERT INTO streams VALUES (?)", (self._stream,))
            noted = [(name, place.delivered) for name, place in self._places.items()]
            base.executemany("INSERT INTO outputs VALUES (?, ?)", noted)
            base.executemany(_INSERT, rows)
            base.execute("COMMIT")
        except sqlite3.Error:
            base.close()
            raise
        self._base.close()
        self._base, self._files = base, files

    def close(self) -> None:
        """Note what was delivered and close the file. Messages that wait stay in it."""
        self._stop.set()
        self._thread.join()
        self.turn(time.time())
        with self._lock:
            waiting = sum(map(self.count, self._places))
            if self._files is None and waiting:
                fields = {"messages": waiting}
                logger.error("messages of outputs are lost by the stop", extra={"fields": fields})
            self._base.close()


def _read_stream(base: sqlite3.Connection) -> str:
    row = base.execute("SELECT stream FROM streams").fetchone()
    if row is None:
        row = (secrets.token_hex(4),)
        base.execute("INSERT INTO streams VALUES (?)", row)
    return str(row[0])


def _read_place(base: sqlite3.Connection, name: str) -> _Place:
    row = base.execute("SELECT delivered FROM outputs WHERE name = ?", (name,)).fetchone()
    delivered = row[0] if row else 0
    newest = base.execute("SELECT max(seq) FROM messages WHERE output = ?", (name,)).fetchone()[0]
    last = max(delivered, newest or 0)
    return _Place(last, delivered, last, delivered)


def _delete_unnamed(base: sqlite3.Connection, named: tuple[str, ...]) -> None:
    known = ", ".join("?" for _ in named)
    query = f"DELETE FROM messages WHERE output NOT IN ({known}) AND at < ?"
    base.execute(query, (*named, time.time() - UNNAMED_AGE_MAX_S))


def _open_memory() -> sqlite3.Connection:
    base = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    base.executescript(SCHEMA)
    return base
