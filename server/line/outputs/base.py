"""An output as the rest of the server sees it, and the thread that feeds it."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from server.line.outputs.messages import Message
from server.line.outputs.outbox import Outbox
from server.observe.logs import ProblemLog
from server.system.clock import rfc3339
from server.values.wording import kept_sentence

logger = logging.getLogger(__name__)

# Seconds after which a delivery looks whether the server stops.
DELIVERY_TIMEOUT_S = 1.0
# Seconds before the first try to connect again; doubled with each further one.
BACK_OFF_MIN_S, BACK_OFF_MAX_S = 0.25, 4.0


class OutputError(Exception):
    """The other side can't be reached, or does not take a message; the message says why, without
    secrets."""


class Output(Protocol):
    """One other side: an MQTT broker, a PLC, ... Used by one thread.

    window: messages that may be under way at once.
    """

    window: int

    @property
    def connected(self) -> bool:
        """True while the other side is there, as far as can be known."""

    def open(self) -> None:
        """Connect, or let others connect. Raises OutputError."""

    def deliver(self, messages: Sequence[Message], timeout_s: float) -> int:
        """Send those of `messages`, in their order, that were not sent since `open`; the others
        are under way. Return the
        sequence number up to which the other side has them, 0 for none, at the latest after
        `timeout_s` seconds. Raises OutputError, after which `close` and `open` are called."""

    def beat(self, ready: bool) -> None:
        """Give a sign of life. ready: the server can judge. Raises OutputError."""

    def close(self) -> None:
        """Disconnect. Raises nothing."""


class OutputState(msgspec.Struct, frozen=True):
    """One output. connected: the other side is there. waiting: messages that it does not have yet.
    last_error: why the last try failed, null once it went well. last_delivered, last_delivered_at:
    sequence number and time of the newest message that it has from this process."""

    name: str
    kind: str
    connected: bool
    waiting: int
    last_error: str | None
    last_delivered: int | None
    last_delivered_at: str | None


class Delivery:
    """Takes the messages of `output` from the outbox to the other side, in a thread of its own.

    count: called with a result, `delivered` or `failed`, and a number. ready: whether the server
    can judge.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        output: Output,
        outbox: Outbox,
        heartbeat_s: float,
        count: Callable[[str, int], None],
        ready: Callable[[], bool],
    ) -> None:
        self.name = name
        self._kind = kind
        self._output = output
        self._outbox = outbox
        self._heartbeat_s = heartbeat_s
        self._count = count
        self._ready = ready
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._problem = ProblemLog("output disconnected", "output connected again")
        self._last_error: str | None = None
        self._last: tuple[int, float] | None = None
        self._is_open = False
        self._failures = 0
        # The last delivery failed, whatever the signs of life.
        self._doubtful = False
        self._next_beat = 0.0
        self._handed = 0
        self._thread = threading.Thread(target=self._run, name=f"output-{name}"[:15], daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Look at once for messages that wait."""
        self._wake.set()

    def is_connected(self) -> bool:
        return self._is_open and self._output.connected

    def state(self) -> OutputState:
        last = self._last
        return OutputState(
            self.name,
            self._kind,
            self.is_connected(),
            self._outbox.count(self.name),
            self._last_error,
            last[0] if last else None,
            rfc3339(last[1]) if last else None,
        )

    def stop(self) -> None:
        """Have the thread send what the other side takes at once, disconnect and end."""
        self._closing.set()
        self._wake.set()

    def join(self, timeout_s: float) -> None:
        """Wait for the thread's end; not if it was never started."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wake.wait(self._turn())
            self._wake.clear()
        if self._is_open:
            self._turn()
            self._close()

    def _turn(self) -> float:
        """Beat, and send what waits. Return the seconds until the next turn, if nothing comes."""
        try:
            if not self._is_open:
                self._output.open()
                self._is_open, self._next_beat = True, 0.0
            more = True
            while more:
                self._beat_if_due()
                more = self._send_some() and not self._closing.is_set()
            return max(0.0, self._next_beat - time.monotonic())
        except OutputError as error:
            self._failed(str(error))
        except Exception as error:
            # Else this output would be silent for ever.
            logger.exception("output failed", extra={"fields": {"output": self.name}})
            self._failed(type(error).__name__)
        pause = min(BACK_OFF_MAX_S, BACK_OFF_MIN_S * 2.0 ** min(self._failures - 1, 10))
        # What comes meanwhile does not shorten the pause.
        self._closing.wait(pause)
        return 0.0

    def _beat_if_due(self) -> None:
        now = time.monotonic()
        if now >= self._next_beat:
            self._output.beat(self._ready())
            self._next_beat = now + self._heartbeat_s
            if not self._doubtful:
                self._went_well()

    def _send_some(self) -> bool:
        """Return whether messages wait that could be sent now."""
        messages = self._outbox.waiting(self.name, self._output.window)
        if not messages:
            return False
        marked = [
            msgspec.structs.replace(each, redelivered=True) if each.seq <= self._handed else each
            for each in messages
        ]
        self._handed = max(self._handed, messages[-1].seq)
        timeout_s = min(DELIVERY_TIMEOUT_S, max(0.0, self._next_beat - time.monotonic()))
        in_doubt, self._doubtful = self._doubtful, True
        seq = self._output.deliver(marked, timeout_s)
        self._doubtful = in_doubt and not seq
        if seq:
            self._went_well()
        if count := self._outbox.delivered(self.name, seq):
            self._last = (seq, time.time())
            self._count("delivered", count)
        return True

    def _went_well(self) -> None:
        self._failures, self._last_error = 0, None
        self._problem.went_well(output=self.name)

    def _failed(self, reason: str) -> None:
        self._failures += 1
        self._last_error = kept_sentence(reason)
        self._count("failed", 1)
        self._problem.failed(self._last_error, output=self.name)
        if self._is_open:
            self._close()

    def _close(self) -> None:
        self._is_open = False
        try:
            self._output.close()
        except Exception:
            # Else the thread would end, and this output would be silent for ever.
            logger.exception("output can't be closed", extra={"fields": {"output": self.name}})
