"""Frames in the hands of native readers, in memory that outlives the process (memfd_create(2)).

A reader that crashes leaves no time to write anything down. So a frame's bytes are copied to shared
memory before the reader is entered, and forgotten after it. The supervisor holds the memory's
descriptor, and the next worker finds in it what was in hand when the one before it died.
"""

import json
import mmap
import os
import struct
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import NamedTuple

# The first page: what this is, the number of slots, the most bytes of a frame.
LAYOUT = struct.Struct("<16sQQ")
MAGIC = b"lineside frames1"
# A slot's first page: 1 while a frame is held, the length of what is known about it, and of it.
SLOT = struct.Struct("<QQQ")
PAGE = mmap.PAGESIZE
MAX_ABOUT = 2048
# Bytes of a frame whose memory goes back to the kernel at once.
LARGE = 1 << 16


class HeldFrame(NamedTuple):
    """A frame that was in hand when a process died, and what was known about it."""

    slot: int
    data: bytes
    about: Mapping[str, str]


class FramesInHand:
    """Slots for frames, in the memory behind `descriptor`."""

    def __init__(self, slots: int, frame_bytes: int, inherited: int | None = None) -> None:
        """Uses the memory behind the descriptor `inherited` if it has just these slots, else new
        memory. `left` holds the frames that it has from before, in slots that stay taken until
        `release`. Raises OSError."""
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
        self.left = tuple(self._held(slots))
        taken = {frame.slot for frame in self.left}
        self._free = deque(slot for slot in range(slots) if slot not in taken)

    def _start(self, slot: int) -> int:
        return PAGE + slot * self._stride

    def _held(self, slots: int) -> Iterator[HeldFrame]:
        for slot in range(slots):
            start = self._start(slot)
            held, about_size, size = SLOT.unpack_from(self._memory, start)
            if held == 1 and about_size <= MAX_ABOUT and size <= self._frame_bytes:
                text = self._memory[start + SLOT.size : start + SLOT.size + about_size]
                data = self._memory[start + PAGE : start + PAGE + size]
                yield HeldFrame(slot, data, json.loads(text))

    @contextmanager
    def hold(self, data: bytes, about: Mapping[str, str]) -> Iterator[None]:
        """Holds a frame, an image file's bytes, for the block. Holds nothing if it has more bytes
        than a slot, or if all slots are taken."""
        text = json.dumps(about).encode()
        if len(data) > self._frame_bytes or len(text) > MAX_ABOUT:
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
        """Forgets one of `left`."""
        self._clear(frame.slot, len(frame.data))

    def _clear(self, slot: int, size: int) -> None:
        start = self._start(slot)
        SLOT.pack_into(self._memory, start, 0, 0, 0)
        if size > LARGE:
            with suppress(OSError):
                self._memory.madvise(mmap.MADV_REMOVE, start + PAGE, -(-size // PAGE) * PAGE)
        self._free.append(slot)

    def close(self) -> None:
        """Gives the memory back."""
        self._memory.close()
        os.close(self.descriptor)
