"""Guards against native image readers that end the process.

A reader that crashes leaves no time to write anything down. So a frame's bytes are copied to shared
memory (memfd_create(2)) before the reader is entered, and forgotten after it. The supervisor holds
the memory's descriptor, and the next worker finds in it which frames were in hand when the one
before it died. Each of those is decoded once more, a JPEG at each of its sizes, in a process
of its own:

python -m server.recognition.reader_guard LIMITS < FRAME ends by a signal if the frame kills its
reader, else with exit code 0. LIMITS: a `Limits` as JSON.
"""

import json
import mmap
import os
import resource
import signal
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from server.recognition.images.header import Limits
from server.system.process import end_with_parent

# The first page: what this is, the number of slots, the most bytes of a frame.
LAYOUT = struct.Struct("<16sQQ")
MAGIC = b"lineside frames1"
# A slot's first page: 1 while a frame is held, the length of what is known about it, and of it.
SLOT = struct.Struct("<QQQ")
PAGE = mmap.PAGESIZE
ABOUT_BYTES_MAX = 2048
# The memory of a frame of more bytes goes back to the kernel at once. That of others stays, since
# to take it anew costs a hundred times as much as to copy the frame into it.
RELEASE_MIN_BYTES = 1 << 20
# A trial that takes longer is ended, and its frame counts as harmless.
TRIAL_TIMEOUT_S = 60.0


class Sender(NamedTuple):
    """The sender of the frame that is read. camera, request_id: empty if unknown. deadline: until
    when an answer is of use, in seconds of time.monotonic()."""

    camera: str
    request_id: str
    deadline: float


class ReaderGuard(Protocol):
    """Remembers which frames are in the hands of native readers."""

    def reading(self, data: bytes, sender: Sender) -> AbstractContextManager[None]:
        """Returns a context around the reading of `data`, an image file's bytes.

        Entering raises UnsafeImageError for a frame that has ended a process before, and
        NotReadyError if that is not known by the sender's deadline.
        """


class HeldFrame(NamedTuple):
    """A frame that was in hand when a process died, and what was known about it."""

    slot: int
    data: bytes
    about: Mapping[str, str]


class FramesInHand:
    """Slots for frames, in the memory behind `descriptor`."""

    def __init__(self, slots: int, frame_bytes: int, inherited: int | None = None) -> None:
        """Uses the memory behind the descriptor `inherited` if it has just these slots, else new
        memory. `held_frames` are those that it has from before, in slots that stay taken
        until `release`. Raises OSError."""
        self._stride = PAGE + -(-frame_bytes // PAGE) * PAGE
        self._frame_bytes = frame_bytes
        size = PAGE + slots * self._stride
        layout = LAYOUT.pack(MAGIC, slots, frame_bytes)
        old = inherited
        if old is not None and os.pread(old, LAYOUT.size, 0) != layout:
            os.ftruncate(old, 0)  # its pages would stay for as long as the supervisor
            old = None
        self.descriptor = os.memfd_create("lineside-frames") if old is None else old
        if old is None:
            os.ftruncate(self.descriptor, size)
            os.pwrite(self.descriptor, layout, 0)
        self._memory = mmap.mmap(self.descriptor, size)
        self.held_frames = tuple(self._read_held(slots))
        held_slots = {frame.slot for frame in self.held_frames}
        self._free = deque(slot for slot in range(slots) if slot not in held_slots)

    def _start(self, slot: int) -> int:
        return PAGE + slot * self._stride

    def _read_held(self, slots: int) -> Iterator[HeldFrame]:
        for slot in range(slots):
            start = self._start(slot)
            state, about_size, size = SLOT.unpack_from(self._memory, start)
            if state == 1 and about_size <= ABOUT_BYTES_MAX and size <= self._frame_bytes:
                text = self._memory[start + SLOT.size : start + SLOT.size + about_size]
                data = self._memory[start + PAGE : start + PAGE + size]
                yield HeldFrame(slot, data, json.loads(text))

    @contextmanager
    def hold(self, data: bytes, about: Mapping[str, str]) -> Iterator[None]:
        """Holds a frame, an image file's bytes, for the block. Holds nothing if it has more bytes
        than a slot, or if all slots are taken."""
        text = json.dumps(about).encode()
        if len(data) > self._frame_bytes or len(text) > ABOUT_BYTES_MAX:
            yield
            return
        try:
            slot = self._free.pop()
        except IndexError:
            yield
            return
        try:
            start = self._start(slot)
            self._memory[start + PAGE : start + PAGE + len(data)] = data
            self._memory[start + SLOT.size : start + SLOT.size + len(text)] = text
            SLOT.pack_into(self._memory, start, 1, len(text), len(data))
            yield
        finally:
            self._clear(slot, len(data))

    def release(self, frame: HeldFrame) -> None:
        self._clear(frame.slot, len(frame.data))

    def _clear(self, slot: int, size: int) -> None:
        start = self._start(slot)
        SLOT.pack_into(self._memory, start, 0, 0, 0)
        if size > RELEASE_MIN_BYTES:
            with suppress(OSError):
                self._memory.madvise(mmap.MADV_REMOVE, start + PAGE, -(-size // PAGE) * PAGE)
        self._free.append(slot)

    def close(self) -> None:
        """Gives the memory back."""
        self._memory.close()
        os.close(self.descriptor)


class DecodeTrial:
    """The process that decodes `data`, an image file's bytes, within `limits`."""

    def __init__(self, data: bytes, limits: Limits) -> None:
        """Starts the process. Raises OSError."""
        self._until = time.monotonic() + TRIAL_TIMEOUT_S
        frame = os.memfd_create("lineside-trial")
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(frame, view) :]
            os.lseek(frame, 0, os.SEEK_SET)
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "server.recognition.reader_guard",
                    msgspec.json.encode(limits).decode(),
                ],
                stdin=frame,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        finally:
            os.close(frame)

    def poll(self) -> tuple[bool, str]:
        """Returns whether the trial has ended, and the name of the signal that ended it or ''."""
        code = self._process.poll()
        if code is None and time.monotonic() > self._until:
            self._process.kill()
            self._process.wait()
            return True, ""
        return code is not None, _signal_of(code or 0)

    def wait(self) -> str:
        """Waits for the trial's end, and returns the name of the signal that ended it or ''."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, self._until - time.monotonic()))
        return self.poll()[1]


def _signal_of(code: int) -> str:
    if code >= 0:
        return ""
    known = {each.value: each.name for each in signal.Signals}
    return known.get(-code, f"signal {-code}")


def _confine() -> None:
    """Lets this process end before its parent does: with it, by a processor's time, or first of all
    if memory runs out. A sandbox may forbid each."""
    end_with_parent(signal.SIGKILL)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CPU, (int(TRIAL_TIMEOUT_S), int(TRIAL_TIMEOUT_S) + 1))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    with suppress(OSError):
        os.nice(5)


def main() -> int:
    """Decodes standard input within LIMITS; 0 whether it is an image or not."""
    _confine()
    from server.recognition import frame
    from server.system import process

    process.configure_process()
    limits = msgspec.json.decode(sys.argv[1], type=Limits)
    frame.decode_every_way(sys.stdin.buffer.read(), limits)
    return 0


if __name__ == "__main__":
    sys.exit(main())
