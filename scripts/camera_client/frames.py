"""Frames on their way to the server: the newest first, the others on the disk or dropped."""

import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SUFFIX = ".frame"


@dataclass(frozen=True)
class Frame:
    """An image file. captured: Unix seconds. kind: its class, if the source knows it."""

    data: bytes
    captured: float
    part: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Item:
    """A frame that waits. path: its file in the spool; None if it is in memory alone."""

    frame: Frame
    path: Path | None = None


class Spool:
    """Frames in files of one folder, at most `max_bytes` of them; the oldest go. They outlive the
    program. A file is a line of JSON and the image file. For one thread at a time, and for one
    program at a time."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Raises OSError if the folder can't be used."""
        folder.mkdir(parents=True, exist_ok=True)
        for partial in folder.glob("*.tmp"):
            partial.unlink()
        self.folder = folder
        self._max_bytes = max_bytes
        # Names begin with the time of capture, so their order is the frames'.
        self._sizes = {path: path.stat().st_size for path in sorted(folder.glob("*" + SUFFIX))}
        self._added = 0

    @property
    def count(self) -> int:
        return len(self._sizes)

    def add(self, frame: Frame) -> int:
        """Store a frame; return how many are lost for it, which may be itself. Raises OSError."""
        head = json.dumps({"captured": frame.captured, "part": frame.part, "kind": frame.kind})
        content = head.encode() + b"\n" + frame.data
        self._added += 1
        name = f"{int(frame.captured * 1e6):017d}-{os.getpid()}-{self._added:06d}{SUFFIX}"
        if len(content) > self._max_bytes:
            return 1
        lost = 0
        while sum(self._sizes.values()) + len(content) > self._max_bytes:
            self.remove(min(self._sizes))
            lost += 1
        path = self.folder / name
        partial = path.with_suffix(".tmp")
        try:
            partial.write_bytes(content)
            partial.rename(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        self._sizes[path] = len(content)
        return lost

    def newest(self) -> Item | None:
        """Return the newest frame. Raises ValueError for a damaged file, which is then removed."""
        if not self._sizes:
            return None
        path = max(self._sizes)
        try:
            head, _, data = path.read_bytes().partition(b"\n")
            fields = json.loads(head)
            captured, part, kind = fields["captured"], fields["part"], fields["kind"]
            frame = Frame(data, float(captured), str(part), str(kind))
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.remove(path)
            raise ValueError(f"{path} is damaged: {error}") from None
        return Item(frame, path)

    def remove(self, path: Path) -> None:
        """Remove a frame, if it is still there."""
        self._sizes.pop(path, None)
        path.unlink(missing_ok=True)


class WaitingFrames:
    """The frames between the camera and the sender: the newest in memory, older ones in `spool`,
    or lost if there is none. `_changed` guards all of it.

    dropped: called with the number of frames that gave way to newer ones. lost: called with the
    number that a full or faulty disk cost, and the reason.
    """

    def __init__(
        self,
        spool: Spool | None,
        dropped: Callable[[int], None],
        lost: Callable[[int, str], None],
    ) -> None:
        self._spool = spool
        self._dropped = dropped
        self._lost = lost
        self._changed = threading.Condition()
        self._newest: Frame | None = None
        self._ended = False

    @property
    def in_spool(self) -> int:
        return self._spool.count if self._spool else 0

    def put(self, frame: Frame) -> None:
        """Add the newest frame; the one before it goes to the spool or is dropped."""
        with self._changed:
            self._set_aside()
            self._newest = frame
            self._changed.notify_all()

    def await_room(self, seconds: float) -> bool:
        """Wait until no frame waits in memory. Return False if one does after `seconds`."""
        with self._changed:
            return self._changed.wait_for(lambda: self._newest is None, seconds)

    def end(self) -> None:
        """Say that no more frames come."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def take(self) -> Item | None:
        """Wait for a frame and return it, the newest first; None at the end. A frame in the spool
        stays there until it is `settled`."""
        with self._changed:
            while True:
                if self._newest is not None:
                    item = Item(self._newest)
                    self._newest = None
                    self._changed.notify_all()
                    return item
                if self._spool:
                    try:
                        if spooled := self._spool.newest():
                            return spooled
                    except ValueError as fault:
                        self._lost(1, str(fault))
                        continue
                if self._ended:
                    return None
                self._changed.wait()

    def settled(self, item: Item) -> None:
        """Forget a frame that was taken: it has its answer, or never will have one."""
        if item.path and self._spool:
            with self._changed:
                self._spool.remove(item.path)

    def put_back(self, item: Item) -> None:
        """Have a frame that was taken wait again. If a newer one came meanwhile, it goes to the
        spool or is dropped."""
        if item.path:
            return
        with self._changed:
            newer, self._newest = self._newest, item.frame
            if newer is not None:
                self._set_aside()
                self._newest = newer

    def set_aside(self) -> None:
        """Move the frame in memory to the spool, or drop it: the program ends."""
        with self._changed:
            self._set_aside()

    def _set_aside(self) -> None:
        frame, self._newest = self._newest, None
        if frame is None:
            return
        if self._spool is None:
            self._dropped(1)
            return
        try:
            if count := self._spool.add(frame):
                self._lost(count, "the spool is full")
        except OSError as error:
            self._lost(1, f"the spool can't be written: {error}")
