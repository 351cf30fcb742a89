"""Golden frames of the models that serve: checked again on a schedule and after a swap."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

from server.recognition.recognizer import GOLDEN_MISSES_MAX, Recognizer

if TYPE_CHECKING:
    from server.recognition.manifest import Golden
    from server.recognition.tensor_model import Model

logger = logging.getLogger(__name__)

# A check that missed is repeated, and a swap noticed, within this time.
RETRY_S = 10.0
# Time that a golden frame waits for a slot that no frame wants, and between two attempts.
SLOT_TIMEOUT_S, SLOT_POLL_S = 60.0, 0.01

Result = Literal["passed", "missed", "skipped"]


class GoldenChecks:
    """Checks the golden frames of each model that serves every `interval_s`, and within RETRY_S
    after a swap or a miss. The model has the outcome: `golden_misses`, `golden_fault`, `unfit`. For
    one thread.

    `_due` holds the next check by model, in seconds of time.monotonic; `_names` are the models
    that have served, by which a swap is known.
    """

    def __init__(
        self,
        served: Callable[[], Mapping[str, Model]],
        interval_s: float,
        on_checked: Callable[[str, Result], None],
    ) -> None:
        """on_checked: called with the model's name and the result of each check."""
        self.period_s = min(interval_s, RETRY_S)
        self._served = served
        self._interval_s = interval_s
        self._on_checked = on_checked
        self._due: weakref.WeakKeyDictionary[Model, float] = weakref.WeakKeyDictionary()
        self._names: set[str] = set()

    def run(self, now: float, stop: threading.Event) -> None:
        """Check the models whose check is due at `now` (time.monotonic). To be called every
        `period_s`. Return early once `stop` is set."""
        for name, model in self._served().items():
            if not isinstance(model, Recognizer) or not model.manifest.golden:
                continue
            if model not in self._due:
                # A first version passed its check a moment ago, in which nothing else served.
                self._due[model] = now if name in self._names else now + self._interval_s
                self._names.add(name)
            if now < self._due[model] or stop.is_set():
                continue
            result = self._check(model, stop)
            self._due[model] = now + (self.period_s if result == "missed" else self._interval_s)
            self._on_checked(name, result)

    def _check(self, model: Recognizer, stop: threading.Event) -> Result:
        fields: dict[str, object] = {"model": f"{model.manifest.name}/{model.manifest.version}"}
        fault = ""
        try:
            if not all(_check_frame(model, golden, stop) for golden in model.manifest.golden):
                return "skipped"
        except Exception as error:  # noqa: BLE001 - whatever it is, the model did not pass
            fault = str(error) or type(error).__name__
        was_unfit = bool(model.unfit)
        model.golden_fault = fault
        model.golden_misses = model.golden_misses + 1 if fault else 0
        if fault and model.golden_misses <= GOLDEN_MISSES_MAX:
            fields |= {"reason": fault, "misses": model.golden_misses}
            level = logging.ERROR if model.unfit else logging.WARNING
            logger.log(level, "golden check missed", extra={"fields": fields})
        elif was_unfit and not fault:
            logger.info("golden check passed again", extra={"fields": fields})
        return "missed" if fault else "passed"


def _check_frame(model: Recognizer, golden: Golden, stop: threading.Event) -> bool:
    """Check one golden frame in a slot that no other frame wants. Return False if there was none
    in time, or `stop` is set. Raises what `Recognizer.check_golden_frame` raises."""
    until = time.monotonic() + SLOT_TIMEOUT_S
    while not stop.is_set() and time.monotonic() < until:
        with model.admission.idle_slot() as is_free:
            if is_free:
                model.check_golden_frame(golden)
                return True
        stop.wait(SLOT_POLL_S)
    return False
