"""Frames that ended a process: refused from then on, and kept for a person to look at.

`data/crashed/` holds two files of each, named by the sha256 of its bytes: the frame as it came, and
a `.json` with a `CrashedFrame`. Whoever removes the `.json` lets the frame in again.
"""

import hashlib
import logging
import os
import threading
from contextlib import suppress
from pathlib import Path

import msgspec

from server.system.files import make_folder, write_whole

logger = logging.getLogger(__name__)

FOLDER = "crashed"
# Frames that are remembered, and bytes of those that are kept; the oldest go.
MAX_FRAMES, MAX_BYTES = 1000, 64_000_000
SUFFIXES = (
    (b"\x89PNG", ".png"),
    (b"BM", ".bmp"),
    (b"RIFF", ".webp"),
    (b"II", ".tiff"),
    (b"MM", ".tiff"),
    (b"P", ".ppm"),
)


def sha256_of(data: bytes) -> str:
    """The name of the frame with these bytes: 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


class CrashedFrame(msgspec.Struct, frozen=True, kw_only=True):
    """One frame. at: of the last crash, RFC 3339. signal: that ended the process. crashes: how many
    times the frame was in hand. refused: whether it is not read any more. file: its name in the
    folder."""

    sha256: str
    at: str
    signal: str
    camera: str = ""
    request_id: str = ""
    job: str = ""
    crashes: int = 1
    refused: bool = True
    file: str = ""


class CrashedFrames:
    """The folder `crashed` in `data`. `_lock` guards what follows it."""

    def __init__(self, data: Path) -> None:
        self._folder = data / FOLDER
        self._lock = threading.Lock()
        self._frames: dict[str, CrashedFrame] = {}
        self._unwritten: set[str] = set()
        self._stamp = 0
        self._read()

    def _read(self) -> None:
        """Takes up what is in the folder, but for what could not be written there."""
        found = {sha256: self._frames[sha256] for sha256 in self._unwritten}
        with suppress(OSError):
            self._stamp = os.stat(self._folder).st_mtime_ns
            for path in self._folder.glob("*.json"):
                with suppress(OSError, msgspec.DecodeError, UnicodeDecodeError):
                    frame = msgspec.json.decode(path.read_bytes(), type=CrashedFrame)
                    found[frame.sha256] = frame
        self._frames = found

    def __len__(self) -> int:
        """Frames that are refused."""
        return sum(frame.refused for frame in self._frames.values())

    @property
    def any(self) -> bool:
        """Whether there is a frame to look for."""
        return bool(self._frames)

    def get(self, sha256: str) -> CrashedFrame | None:
        """What is known of the frame whose bytes have this hex digest."""
        with self._lock:
            with suppress(OSError):
                if os.stat(self._folder).st_mtime_ns != self._stamp:
                    self._read()
            return self._frames.get(sha256)

    def keep(self, frame: CrashedFrame, data: bytes) -> bool:
        """Remembers a frame and its bytes. False if that can't be written (logged): it is then
        remembered for the life of this process."""
        suffix = next((end for start, end in SUFFIXES if data.startswith(start)), ".bin")
        frame = msgspec.structs.replace(frame, file=frame.sha256 + suffix)
        with self._lock:
            self._frames[frame.sha256] = frame
            try:
                make_folder(self._folder)
                write_whole(self._folder / frame.file, data)
                write_whole(self._folder / f"{frame.sha256}.json", msgspec.json.encode(frame))
                self._trim()
                self._stamp = os.stat(self._folder).st_mtime_ns
            except OSError as error:
                self._unwritten.add(frame.sha256)
                fields = {"folder": str(self._folder), "reason": error.strerror}
                logger.error("crashed frame can't be kept", extra={"fields": fields})
                return False
            self._unwritten.discard(frame.sha256)
        return True

    def _trim(self) -> None:
        """Removes the oldest frames beyond MAX_FRAMES, and the bytes of the oldest beyond
        MAX_BYTES."""
        newest = sorted(self._frames.values(), key=lambda frame: frame.at, reverse=True)
        for frame in newest[MAX_FRAMES:]:
            (self._folder / f"{frame.sha256}.json").unlink(missing_ok=True)
            (self._folder / frame.file).unlink(missing_ok=True)
            del self._frames[frame.sha256]
        size = 0
        for frame in newest[:MAX_FRAMES]:
            with suppress(FileNotFoundError):
                size += (self._folder / frame.file).stat().st_size
                if size > MAX_BYTES:
                    (self._folder / frame.file).unlink()
