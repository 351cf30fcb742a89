"""The faults of a history, and what each of them may excuse."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from chaos.history import Entry

# Seconds after a fault in which clients may still notice it.
AFTER_S = 2.0
# Seconds until the journal has taken in the row of an answer; with kill -9 before it is lost.
UNWRITTEN_S = 0.5
# Seconds after a fault in which the outputs and the journal get what waited.
DRAINED_S = 15.0
# What a fault loses if the outbox may begin with new numbers.
RENEWING = {"outbox", "numbers"}
# Seconds by which an entry may be noted later than what it says.
NOTED_S = 0.1


class FaultWindow(NamedTuple):
    """A fault from its beginning until the plant was well again. down: the times between which
    connections might be lost. loses: databases whose content might be lost, and `numbers` if those
    of messages might begin again. lost_from, lost_until: when the loss begins, minus infinity if
    nothing was noted before the harm; and when it ends, infinity if the server has not met the
    damage yet. kills: when the process that answers was killed. failed: why the plant did not come
    back; empty if it did."""

    name: str
    began: float
    ended: float
    lost_from: float
    lost_until: float
    down: tuple[tuple[float, float], ...]
    loses: tuple[str, ...]
    kills: tuple[float, ...]
    failed: str


class Faults:
    """All faults of one history."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.windows = list(_read_windows(entries))
        self.skipped = {
            entry.fields["name"]: str(entry.fields["reason"])
            for entry in entries
            if (entry.kind, entry.event) == ("fault", "skipped")
        }

    def count(self) -> Counter[str]:
        """Return how often each fault was injected."""
        return Counter(window.name for window in self.windows)

    def was_down(self, began: float, ended: float) -> bool:
        """Return whether the server might lose a connection between these times."""
        times = (each for window in self.windows for each in window.down)
        return any(first <= ended + NOTED_S and began <= last + AFTER_S for first, last in times)

    def may_lose(self, database: str, at: float) -> bool:
        """Return whether what was written at `at` may be gone with its database."""
        return any(
            window.lost_from <= at <= window.lost_until
            for window in self.windows
            if database in window.loses
        )

    def may_renew_outbox(self, at: float) -> bool:
        """Return whether at `at` a message may come of an outbox that is new, or from which some
        are missing."""
        return any(
            window.began <= at <= self._met(window) + DRAINED_S
            for window in self.windows
            if RENEWING & {*window.loses}
        )

    def _met(self, window: FaultWindow) -> float:
        """Return when the server has met a damage at the latest: by the end of the fault, or else
        when it was started again after it."""
        if window.lost_until < float("inf"):
            return window.ended
        starts = (last for other in self.windows for _, last in other.down)
        return min((start for start in starts if start > window.ended), default=float("inf"))

    def killed_within(self, at: float, seconds: float) -> bool:
        """Return whether the process that answers was killed in so many seconds after `at`."""
        kills = (kill for window in self.windows for kill in window.kills)
        return any(-NOTED_S <= kill - at <= seconds for kill in kills)


def _read_windows(entries: Sequence[Entry]) -> Iterator[FaultWindow]:
    by_op: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        if entry.kind == "fault" and entry.event != "skipped":
            by_op[entry.op].append(entry)
    for events in by_op.values():
        begin, end = events[0], events[-1]
        fields = begin.fields | end.fields
        ended = end.at
        if end.event != "end":
            fields["failed"], ended = "it has no end", float("inf")
        kills = tuple(event.at for event in events if event.event == "killed")
        noted = [event.fields["began"] for event in events if event.event == "noted"]
        ups = [event.at for event in events if event.event == "up"]
        ends = [event.at for event in events if event.event in ("killed", "leaves")]
        down = [(at, min((up for up in ups if up > at), default=ended)) for at in ends]
        if fields["down"]:
            down.append((begin.at, ended))
        yield FaultWindow(
            fields["name"],
            begin.at,
            ended,
            noted[0] - DRAINED_S if noted else float("-inf"),
            float("inf") if fields.get("latent") else ended,
            tuple(down),
            tuple(fields["loses"]),
            kills,
            fields.get("failed", ""),
        )
