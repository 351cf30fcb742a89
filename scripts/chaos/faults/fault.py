"""A fault: something that happens to the plant, and is over when its function returns."""

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from chaos.history import History
from chaos.plant import Plant

# Seconds for which a fault lasts, unless it says otherwise.
HOLD_MIN_S, HOLD_MAX_S = 2.0, 5.0


class Context(NamedTuple):
    """The means of a fault. op: its name in the history."""

    plant: Plant
    history: History
    rng: random.Random
    op: str

    def hold_s(self) -> float:
        """Return the seconds for which this fault lasts."""
        return self.rng.uniform(HOLD_MIN_S, HOLD_MAX_S)

    def killed(self) -> None:
        """Note that the process that answers is killed now: from now on connections may be lost,
        until `up` or the fault's end."""
        self.history.record(self.op, "fault", "killed")

    def kill_server(self) -> None:
        """kill -9 of the server, its supervisor and all that they started."""
        self.killed()
        self.plant.server.kill()

    def leaves(self) -> None:
        """Note that the server is asked to end: connections may be lost, as with `killed`, but it
        writes what waits."""
        self.history.record(self.op, "fault", "leaves")

    def start_server(self) -> None:
        """Start the server, and return once it can judge."""
        self.plant.server.start()
        self.history.record(self.op, "fault", "up")


class Fault(NamedTuple):
    """act: does the harm, waits, and mends it; returns fields for the history. down: connections to
    the server may be lost all the while. missing: the part of the plant without which it is
    skipped. loses: the databases whose content may be lost, of `journal`, `jobs` and `outbox`;
    `numbers` if those of messages may begin again."""

    name: str
    act: Callable[[Context], dict[str, Any] | None]
    down: bool = False
    missing: str = ""
    loses: Sequence[str] = ()
