"""Frames that end the worker: found after a crash, tried alone, and refused from then on.

Frames that were in hand of native readers when a worker died are suspects. Each is decoded once
more in a process of its own, and only one that ends that process too is refused: a good frame
beside it is answered. A suspect that comes again meanwhile waits for the verdict.

`data/crashed/` holds two files of each frame, named by the sha256 of its bytes: the frame as it
came, and a `.json` with a `CrashedFrame`. Removing the `.json` lets the frame in again.
"""

import hashlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import msgspec

from server.config.settings import Settings
from server.errors import NotReadyError, UnsafeImageError
from server.recognition.reader_guard import DecodeTrial, FramesInHand, HeldFrame, Sender
from server.system.clock import rfc3339
from server.system.files import make_folder, write_whole
from server.system.handover import Crash, Handover

logger = logging.getLogger(__name__)

FOLDER = "crashed"
# Frames that are remembered, and bytes of those that are kept; the oldest go.
FRAMES_MAX, IMAGES_BYTES_MAX = 1000, 64_000_000
SUFFIXES = (
    (b"\xff\xd8", ".jpg"),
    (b"\x89PNG", ".png"),
    (b"BM", ".bmp"),
    (b"RIFF", ".webp"),
    (b"II", ".tiff"),
    (b"MM", ".tiff"),
    (b"P", ".ppm"),
)
# The name under which a worker leaves the frames in hand.
FRAMES = "frames"
# Slots beside those of frames worked on at once, for suspects of a crash.
SPARE_SLOTS = 8
# Seconds for which a frame waits for the verdict on it.
VERDICT_TIMEOUT_S = 60.0
# Signals by which a fault of the process itself ends it.
FAULT_SIGNALS = frozenset({"SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE", "SIGTRAP", "SIGSYS"})
# Crashes in which a frame was the only one in hand, after which it is refused although its trial
# found nothing.
CRASHES_ALONE_MAX = 2


def sha256_of(data: bytes) -> str:
    """Returns the name of the frame with these bytes: 64 hex digits."""
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
        frames = {sha256: self._frames[sha256] for sha256 in self._unwritten}
        with suppress(OSError):
            self._stamp = os.stat(self._folder).st_mtime_ns
            for path in self._folder.glob("*.json"):
                with suppress(OSError, msgspec.DecodeError, UnicodeDecodeError):
                    frame = msgspec.json.decode(path.read_bytes(), type=CrashedFrame)
                    frames[frame.sha256] = frame
        self._frames = frames

    def __len__(self) -> int:
        """Frames that are refused."""
        return sum(frame.refused for frame in self._frames.values())

    @property
    def any(self) -> bool:
        """True if there is a frame to look for."""
        return bool(self._frames)

    def get(self, sha256: str) -> CrashedFrame | None:
        """Returns the frame whose bytes have this hex digest, if it is known."""
        with self._lock:
            with suppress(OSError):
                if os.stat(self._folder).st_mtime_ns != self._stamp:
                    self._read()
            return self._frames.get(sha256)

    def keep(self, frame: CrashedFrame, data: bytes) -> bool:
        """Remembers a frame and its bytes. Returns False if that can't be written (logged): it is
        then remembered for the life of this process."""
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
        """Removes the oldest frames beyond FRAMES_MAX, and the bytes of the oldest beyond
        IMAGES_BYTES_MAX."""
        newest = sorted(self._frames.values(), key=lambda frame: frame.at, reverse=True)
        for frame in newest[FRAMES_MAX:]:
            (self._folder / f"{frame.sha256}.json").unlink(missing_ok=True)
            (self._folder / frame.file).unlink(missing_ok=True)
            del self._frames[frame.sha256]
        size = 0
        for frame in newest[:FRAMES_MAX]:
            with suppress(FileNotFoundError):
                size += (self._folder / frame.file).stat().st_size
                if size > IMAGES_BYTES_MAX:
                    (self._folder / frame.file).unlink()


def refusal(sha256: str) -> str:
    return (
        "this image ended the process that read it, so it is not read again; it is kept in the data"
        f" folder as crashed/{sha256[:16]}..."
    )


class CrashGuard:
    """The frames of one server that must not be read, and those in hand now.

    `crashes` and `crash_count` are of workers before this one. `limits` are those of trials.
    `_lock` guards `_pending`, the suspects by digest, each with an event for its verdict.
    """

    def __init__(self, settings: Settings, handover: Handover | None = None) -> None:
        """handover: keeps frames in hand beyond this process; without it, only frames that are
        refused already are known."""
        self.frames = CrashedFrames(Path(settings.data))
        self.limits = settings.image_limits
        self.crashes: list[Crash] = handover.crashes if handover else []
        self.crash_count = handover.count if handover else 0
        self._in_hand = _open_frames(settings, handover) if handover else None
        self._lock = threading.Lock()
        self._pending: dict[str, threading.Event] = {}

    def start(self) -> None:
        """Logs the crash that this worker follows, and tries the suspects, in a thread."""
        if not self.crashes or self._in_hand is None:
            return
        crash, suspects = self.crashes[-1], self._in_hand.held_frames
        fields = {
            "at": rfc3339(crash.at),
            "signal": crash.signal,
            "pid": crash.pid,
            "crashes": self.crash_count,
            "suspects": len(suspects),
        }
        logger.error("worker crashed", extra={"fields": fields})
        if not suspects:
            return
        by_content: dict[str, list[HeldFrame]] = {}
        for suspect in suspects:
            by_content.setdefault(sha256_of(suspect.data), []).append(suspect)
        self._pending = {sha256: threading.Event() for sha256 in by_content}
        arguments = (self._in_hand, by_content, crash)
        threading.Thread(target=self._try, args=arguments, name="crashed-frames").start()

    @contextmanager
    def reading(self, data: bytes, sender: Sender) -> Iterator[None]:
        if self._pending or self.frames.any:
            self.check(data, sender.deadline)
        about = {"camera": sender.camera, "request_id": sender.request_id}
        with self._in_hand.hold(data, about) if self._in_hand else nullcontext():
            yield

    def check(self, data: bytes, deadline: float) -> None:
        """Raises UnsafeImageError if this frame is refused, NotReadyError if that is not known by
        `deadline` (seconds of time.monotonic())."""
        sha256 = sha256_of(data)
        with self._lock:
            verdict = self._pending.get(sha256)
        if verdict:
            seconds = min(VERDICT_TIMEOUT_S, deadline - time.monotonic())
            if not verdict.wait(max(0.0, seconds)):
                raise NotReadyError(
                    "this image was in hand when the process that read it died, and is being tried",
                    retry_after=1,
                )
        frame = self.frames.get(sha256)
        if frame is not None and frame.refused:
            raise UnsafeImageError(refusal(sha256))

    def _try(
        self, in_hand: FramesInHand, suspects: dict[str, list[HeldFrame]], crash: Crash
    ) -> None:
        for sha256, copies in suspects.items():
            decided = True
            try:
                decided = self._judge(sha256, copies[0], crash, alone=len(suspects) == 1)
            except OSError as error:
                fields = {"reason": str(error)}
                logger.error("a frame can't be tried", extra={"fields": fields})
            finally:
                # One that is not kept is tried again by the worker after this one.
                for each in copies if decided else ():
                    in_hand.release(each)
                with self._lock:
                    self._pending.pop(sha256).set()

    def _judge(self, sha256: str, suspect: HeldFrame, crash: Crash, *, alone: bool) -> bool:
        """Tries a suspect; returns False if the result could not be kept."""
        ended_by = DecodeTrial(suspect.data, self.limits).wait()
        if not ended_by and not (alone and crash.signal in FAULT_SIGNALS):
            return True
        before = self.frames.get(sha256)
        crashes = before.crashes + 1 if before else 1
        return self.refuse(
            CrashedFrame(
                sha256=sha256,
                at=rfc3339(crash.at),
                signal=crash.signal,
                camera=suspect.about.get("camera", ""),
                request_id=suspect.about.get("request_id", ""),
                crashes=crashes,
                refused=bool(ended_by) or crashes >= CRASHES_ALONE_MAX,
            ),
            suspect.data,
        )

    def refuse(self, frame: CrashedFrame, data: bytes) -> bool:
        """Keeps a frame aside, and logs that it is refused from now on, if it is. Returns False if
        it could not be kept."""
        if frame.refused:
            fields = {
                "sha256": frame.sha256,
                "bytes": len(data),
                "signal": frame.signal,
                "camera": frame.camera,
                "frame_of": frame.request_id or frame.job,
            }
            logger.error("frame is refused, since it ends its reader", extra={"fields": fields})
        return self.frames.keep(frame, data)


def _open_frames(settings: Settings, handover: Handover) -> FramesInHand | None:
    slots = settings.slots + SPARE_SLOTS
    frame_bytes = int(settings.max_body_mb * 1_000_000)
    try:
        in_hand = FramesInHand(slots, frame_bytes, handover.inherited(FRAMES))
        handover.leave(FRAMES, in_hand.descriptor)
    except OSError as error:
        fields = {"reason": error.strerror}
        logger.warning("frames in hand can't outlive a crash", extra={"fields": fields})
        return None
    return in_hand
