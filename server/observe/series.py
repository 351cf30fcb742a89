"""A server's own metrics with a short past, as Prometheus would have them.

Nothing is read unless somebody asks: a past is known from the first question on, and from the
start of a server that has just begun.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry

PREFIX = "lineside_"
# Seconds between two snapshots, and of the oldest one that is kept.
STEP_S, KEPT_S = 10.0, 1000.0

Labels = dict[str, str]
Key = tuple[tuple[str, str], ...]
Snapshot = Mapping[str, Mapping[Key, float]]


def _read(registry: CollectorRegistry) -> Snapshot:
    """Return the values of our own metrics by name, without the prefix, and labels."""
    values: dict[str, dict[Key, float]] = {}
    for family in registry.collect():
        if family.name.startswith(PREFIX):
            for sample in family.samples:
                of_name = values.setdefault(sample.name.removeprefix(PREFIX), {})
                of_name[tuple(sorted(sample.labels.items()))] = float(sample.value)
    return values


class History:
    """The metrics of `registry`, now and before. Used by one thread at a time.

    wall: the time of the newest snapshot, in Unix seconds.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._now: Snapshot = {}
        self._at = time.monotonic()
        self.wall = time.time()
        # A counter begins at 0 with its server.
        self._past: deque[tuple[float, Snapshot]] = deque([(self._at, {})])

    def refresh(self) -> None:
        """Read the metrics."""
        self._now, self._at, self.wall = _read(self._registry), time.monotonic(), time.time()
        if self._at - self._past[-1][0] >= STEP_S:
            self._past.append((self._at, self._now))
        while len(self._past) > 1 and self._at - self._past[0][0] > KEPT_S:
            self._past.popleft()

    def _before(self, window_s: float) -> Snapshot | None:
        """Return the oldest snapshot within a window that ends now; None if there is none."""
        for at, snapshot in self._past:
            if self._at - at <= window_s + STEP_S:
                return snapshot
        return None

    def reach(self) -> float:
        """Return how many seconds of the past are known."""
        oldest = self._past[0][0] if len(self._past) > 1 else self._past[-1][0]
        return min(KEPT_S, self._at - oldest)

    def latest(self, name: str) -> Iterator[tuple[Labels, float]]:
        """Yield labels and value of each series that has a value."""
        for key, value in self._now.get(name, {}).items():
            if not math.isnan(value):
                yield dict(key), value

    def increases(self, name: str, window_s: float) -> Iterator[tuple[Labels, float]]:
        """Yield labels and increase within the last seconds of each series."""
        before = self._before(window_s)
        if before is None:
            return
        past = before.get(name, {})
        for key, value in self._now.get(name, {}).items():
            yield dict(key), value - past.get(key, 0.0)

    def total(self, name: str, window_s: float, wanted: Callable[[Labels], bool]) -> float:
        """Return the sum of the increases of the series that are `wanted`."""
        increases = self.increases(name, window_s)
        return sum(increase for labels, increase in increases if wanted(labels))

    def quantile(
        self, name: str, share: float, window_s: float, wanted: Callable[[Labels], bool]
    ) -> float | None:
        """Return a quantile of the buckets of a histogram, as Prometheus's histogram_quantile does;
        None without observations."""
        counts: dict[float, float] = {}
        for labels, increase in self.increases(name, window_s):
            if wanted(labels):
                bound = float(labels["le"])
                counts[bound] = counts.get(bound, 0.0) + increase
        bounds = sorted(counts)
        if not bounds or not counts[bounds[-1]]:
            return None
        rank, low, below = share * counts[bounds[-1]], 0.0, 0.0
        for bound in bounds:
            if counts[bound] >= rank:
                if math.isinf(bound):
                    return low
                return low + (bound - low) * (rank - below) / max(counts[bound] - below, 1e-9)
            low, below = bound, counts[bound]
        return low

    def ratios(self, part: str, whole: str, label: str) -> Iterator[tuple[str, float]]:
        """Yield a label's value and the ratio of two gauges with it."""
        wholes = {labels[label]: value for labels, value in self.latest(whole)}
        for labels, value in self.latest(part):
            if wholes.get(labels[label]):
                yield labels[label], value / wholes[labels[label]]
