"""Accounts for the wire: a relay that counts its bytes, and the sizes of its messages."""

import json
import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

ACCOUNT = "wire.jsonl"
_CHUNK = 1 << 16
Watcher = Callable[[str, bytes], object]


@dataclass(slots=True)
class Relay:
    """Passes the bytes of TCP connections on to host:port, and counts them, until `close`.

    port: of 127.0.0.1, where it listens. sent, received: bytes of whoever connects here. watch:
    gets «sent» or «received» and each piece of it, if given.
    """

    host: str
    target: int
    watch: Watcher | None = None
    sent: int = 0
    received: int = 0
    port: int = 0
    _listener: socket.socket = field(init=False)
    _open: list[socket.socket] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, name="relay", daemon=True).start()

    def close(self) -> None:
        """End all connections."""
        with self._lock:
            ends = [self._listener, *self._open]
        for end in ends:
            # Without it a thread that waits in accept or recv stays there.
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        # Until the listener is closed.
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                try:
                    far = socket.create_connection((self.host, self.target))
                except OSError:
                    # Nobody listens yet; who connects here will try again.
                    near.close()
                    continue
                with self._lock:
                    self._open += [near, far]
                for source, sink, way in ((near, far, "sent"), (far, near, "received")):
                    threading.Thread(
                        target=self._pass, args=(source, sink, way), name="relay", daemon=True
                    ).start()

    def _pass(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        with suppress(OSError):
            while piece := source.recv(_CHUNK):
                with self._lock:
                    setattr(self, way, getattr(self, way) + len(piece))
                    if self.watch is not None:
                        self.watch(way, piece)
                sink.sendall(piece)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


@dataclass(frozen=True, slots=True)
class Entry:
    """One message of a site. way: «sent» or «received». kind: Flower's type of it. records: bytes
    of each record by its name."""

    way: str
    kind: str
    records: dict[str, int]


def note(folder: Path, entry: Entry) -> None:
    """Add a message to the account of a site's folder."""
    with (folder / ACCOUNT).open("a", encoding="utf-8") as file:
        line = {"way": entry.way, "kind": entry.kind, "records": entry.records}
        file.write(json.dumps(line) + "\n")


def read_account(folder: Path) -> tuple[Entry, ...]:
    """Return the messages of a site in their order; none if it had none."""
    file = folder / ACCOUNT
    if not file.exists():
        return ()
    lines = file.read_text("utf-8").splitlines()
    return tuple(Entry(**json.loads(line)) for line in lines)


def table(entries: Iterable[Entry]) -> list[tuple[str, ...]]:
    """Return rows of a table: way, kind, record, messages, bytes; the header first."""
    counts: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for entry in entries:
        for name, size in entry.records.items():
            counts[entry.way, entry.kind, name].append(size)
    rows = [
        (way, kind, name, str(len(sizes)), f"{sum(sizes):,}")
        for (way, kind, name), sizes in sorted(counts.items())
    ]
    return [("way", "message", "record", "messages", "bytes"), *rows]


def total(entries: Iterable[Entry], way: str) -> int:
    """Return the bytes of all records of one way."""
    return sum(sum(entry.records.values()) for entry in entries if entry.way == way)
