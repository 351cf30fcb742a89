"""Messages on their way in: how long a thread waits for one, and the memory of all.

gRPC has no limit for either. A thread waits for a call's message until that is whole, so a client
that stops sending would keep it for as long as it likes.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from server.errors import OverloadedError

# Seconds that a call waits for room; those that a message has had before it makes room for others;
# and those between two looks for one.
ROOM_TIMEOUT_S, GRACE_S, STEP_S = 2.0, 1.0, 0.05


class Cancelled(Protocol):
    """A call that can be ended while a thread waits for its message."""

    def cancel(self) -> None:
        """End the wait."""


class Messages:
    """The messages of all calls, which may have `most_bytes` together, and `largest` each; each has
    `seconds` to come.

    How large a message is, is known once it is here. So one that is waited for counts as `largest`.
    `_room` guards what follows it: `_held`, the bytes counted; `_coming`, the calls whose message
    is waited for, the longest first, with the time when that began.
    """

    def __init__(self, most_bytes: int, largest: int, seconds: float) -> None:
        self._most_bytes = max(most_bytes, largest)
        self._largest = largest
        self._seconds = seconds
        self._room = threading.Condition()
        self._held = 0
        self._coming: dict[Cancelled, float] = {}
        self._wake = threading.Event()
        self._watching = False

    def watch(self) -> None:
        """Start the thread that ends the waits."""
        threading.Thread(target=self._watch, name="grpc-messages", daemon=True).start()

    @contextmanager
    def coming(self, call: Cancelled) -> Iterator["Held"]:
        """Wait for room for the message of `call`, and hold it until the end; `Held.came` is to be
        called once the message is here. Raises OverloadedError if there is no room."""
        held = Held(self, call, self._largest)
        self._begin(call)
        try:
            yield held
        finally:
            self.shrink(call, held.size, 0)

    def _begin(self, call: Cancelled) -> None:
        with self._room:
            give_up = time.monotonic() + ROOM_TIMEOUT_S
            while self._held + self._largest > self._most_bytes:
                now = time.monotonic()
                if now >= give_up:
                    raise OverloadedError(
                        f"the messages of all calls take {self._held / 1e6:.0f} MB, and at most"
                        f" {self._most_bytes / 1e6:g} MB may (bodies_mb)",
                        retry_after=1,
                    )
                longest = next(iter(self._coming.items()), None)
                if longest and now - longest[1] >= GRACE_S:
                    del self._coming[longest[0]]
                    longest[0].cancel()
                self._room.wait(min(STEP_S, give_up - now))
            self._held += self._largest
            self._coming[call] = time.monotonic()
            if not self._watching:
                self._watching = True
                self._wake.set()

    def shrink(self, call: Cancelled, held: int, size: int) -> None:
        """Count `size` bytes for a call in place of `held`; its message is waited for no longer."""
        with self._room:
            self._coming.pop(call, None)
            self._held += size - held
            self._room.notify()

    def _watch(self) -> None:
        """Run the thread that ends waits which took too long. It sleeps while no call comes."""
        left: float | None = None
        while True:
            self._wake.wait(left)
            self._wake.clear()
            with self._room:
                now = time.monotonic()
                late = [call for call, at in self._coming.items() if at + self._seconds <= now]
                for call in late:
                    del self._coming[call]
                oldest = next(iter(self._coming.values()), None)
                self._watching = oldest is not None
                left = None if oldest is None else max(0.0, oldest + self._seconds - now)
            for call in late:
                call.cancel()


class Held:
    """The share of one call: `size` bytes."""

    def __init__(self, messages: Messages, call: Cancelled, size: int) -> None:
        self._messages, self._call, self.size = messages, call, size

    def came(self, size: int) -> None:
        """Note that the message is here, of `size` bytes."""
        self._messages.shrink(self._call, self.size, size)
        self.size = size
