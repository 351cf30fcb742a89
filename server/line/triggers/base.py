"""A source of triggers as the rest of the server sees it, and the thread that listens to it."""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from server.line.outputs.base import BACK_OFF_MAX_S, BACK_OFF_MIN_S, OutputError
from server.observe.logs import ProblemLog
from server.values.wording import kept_sentence

logger = logging.getLogger(__name__)

# Seconds after which a source looks whether the server stops.
TAKE_TIMEOUT_S = 0.5


class Signal(msgspec.Struct, frozen=True):
    """One trigger as it came. part, product, batch: as of a request. fault: why no frame can be
    taken for it, empty if one can."""

    part: str = ""
    product: str = ""
    batch: str = ""
    fault: str = ""


class TriggerSource(Protocol):
    """The trigger of one camera. Used by one thread."""

    def open(self) -> None:
        """Begin to listen. What came before is no trigger. Raises OutputError if the other side
        can't be reached."""

    def take(self, timeout_s: float) -> Sequence[Signal]:
        """Return what came, at once if something did, else nothing after `timeout_s` seconds.
        Raises OutputError, after which `close` and `open` are called."""

    def close(self) -> Sequence[Signal]:
        """Stop to listen. Return what came and was not taken. Raises nothing."""


class Listener:
    """Hands what comes from `source` to `fire`, in a thread of its own."""

    def __init__(self, name: str, source: TriggerSource, fire: Callable[[Signal], object]) -> None:
        self._name = name
        self._source = source
        self._fire = fire
        self._closing = threading.Event()
        self._problem = ProblemLog("trigger disconnected", "trigger connected again")
        self._listens = False
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name=f"trigger-{name}"[:15], daemon=True)

    def start(self) -> None:
        self._thread.start()

    def listens(self) -> bool:
        """Return whether a trigger would be seen now, as far as can be known."""
        return self._listens

    def stop(self) -> None:
        self._closing.set()

    def join(self, timeout_s: float) -> None:
        """Wait for the thread's end; not if it was never started."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._listen()
            except OutputError as error:
                self._failed(str(error))
            except Exception as error:
                # Else this source would be silent for ever.
                logger.exception("trigger failed", extra={"fields": {"trigger": self._name}})
                self._failed(type(error).__name__)
            finally:
                self._listens = False
                for signal in self._source.close():
                    self._fire(signal)

    def _listen(self) -> None:
        """Listen until the server stops. Raises OutputError."""
        self._source.open()
        self._listens, self._failures = True, 0
        self._problem.went_well(trigger=self._name)
        while not self._closing.is_set():
            for signal in self._source.take(TAKE_TIMEOUT_S):
                self._fire(signal)

    def _failed(self, reason: str) -> None:
        self._failures += 1
        self._problem.failed(kept_sentence(reason), trigger=self._name)
        self._closing.wait(min(BACK_OFF_MAX_S, BACK_OFF_MIN_S * 2.0 ** min(self._failures - 1, 10)))
