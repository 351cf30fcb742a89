"""The faults of a history, and what each of them may excuse."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from fault_run.history import Entry

# Seconds after a fault in which clients may still notice it.
AFTER_S = 2.0
# Seconds that an answer may wait for its row in the journal; with kill -9 those rows are lost.
UNWRITTEN_S = 3.0
# Seconds by which an entry may be noted later than what it says.
NOTED_S = 0.1


class FaultWindow(NamedTuple):
    """A fault from its beginning until the plant was well again. down: connections might be lost.
    loses: databases whose content might be lost. kills: when the process that answers was killed.
    failed: why the plant did not come back; empty if it did."""

    name: str
    began: float
    ended: float
    down: bool
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
        return any(
            window.began <= ended and began <= window.ended + AFTER_S
            for window in self.windows
            if window.down
        )

    def may_lose(self, database: str, at: float) -> bool:
        """Return whether what was written at `at` may be gone with its database."""
        return any(at <= window.ended for window in self.windows if database in window.loses)

    def killed_within(self, at: float, seconds: float) -> bool:
        """Return whether the process that answers was killed in so many seconds after `at`."""
        kills = (kill for window in self.windows for kill in window.kills)
        return any(-NOTED_S <= kill - at <= seconds for kill in kills)


def _read_windows(entries: Sequence[Entry]) -> Iterator[FaultWindow]:
    faults = [entry for entry in entries if entry.kind == "fault"]
    ends = {entry.op: entry for entry in faults if entry.event == "end"}
    kills: dict[str, list[float]] = defaultdict(list)
    for entry in faults:
        if entry.event == "killed":
            kills[entry.op].append(entry.at)
    for entry in faults:
        if entry.event != "begin":
            continue
        end = ends.get(entry.op)
        fields = entry.fields | (end.fields if end else {"failed": "it has no end"})
        yield FaultWindow(
            fields["name"],
            entry.at,
            end.at if end else float("inf"),
            fields["down"],
            tuple(fields["loses"]),
            tuple(kills[entry.op]),
            fields.get("failed", ""),
        )
