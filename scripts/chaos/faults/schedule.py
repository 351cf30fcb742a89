"""Injects faults one after another, at random intervals, until the time is over."""

import random
import time
import traceback
from collections.abc import Sequence

from chaos.faults.fault import Context, Fault
from chaos.history import History
from chaos.plant import Plant
from chaos.processes import NotReadyError

# Seconds between the end of a fault and the next one.
QUIET_MIN_S, QUIET_MAX_S = 1.0, 4.0


class Schedule:
    """Draws from `faults` by `seed`: each comes once before any comes again."""

    def __init__(self, plant: Plant, history: History, faults: Sequence[Fault], seed: int) -> None:
        self._plant = plant
        self._history = history
        self._rng = random.Random(seed)
        self._faults = [fault for fault in faults if not self._is_skipped(fault)]
        self._deck: list[Fault] = []
        self._count = 0

    def _is_skipped(self, fault: Fault) -> bool:
        reason = self._plant.missing.get(fault.missing)
        if reason is not None:
            self._history.record(fault.name, "fault", "skipped", name=fault.name, reason=reason)
        return reason is not None

    def run(self, seconds: float) -> None:
        """Inject faults for so many seconds; return when the last one is over."""
        until = time.monotonic() + seconds
        while self._faults:
            time.sleep(self._rng.uniform(QUIET_MIN_S, QUIET_MAX_S))
            if time.monotonic() > until:
                break
            self._inject(self._next())

    def _next(self) -> Fault:
        if not self._deck:
            self._deck = list(self._faults)
            self._rng.shuffle(self._deck)
        return self._deck.pop()

    def _inject(self, fault: Fault) -> None:
        self._count += 1
        context = Context(self._plant, self._history, self._rng, f"fault-{self._count}")
        self._history.record(
            context.op,
            "fault",
            "begin",
            name=fault.name,
            down=fault.down,
            loses=list(fault.loses),
        )
        fields: dict[str, object] = {}
        try:
            fields = fault.act(context) or {}
            self._plant.await_ready()
        except Exception as error:  # noqa: BLE001 - whatever it is, the account shows it
            fields = {"failed": repr(error), "trace": traceback.format_exc()}
            self._restart()
        self._history.record(context.op, "fault", "end", name=fault.name, **fields)

    def _restart(self) -> None:
        """Start again whatever has ended, so that the run can go on."""
        for part in self._plant.parts():
            try:
                if not part.alive:
                    part.begin()
                part.await_ready()
            except NotReadyError:
                part.kill()
                part.begin()
