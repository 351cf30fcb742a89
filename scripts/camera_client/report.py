"""Count how the frames of a pushing camera ended; print a live line, and a table at the end."""

import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from statistics import median

# Latencies of the newest answers, of which the median and the percentile are taken.
LATENCIES_MAX = 10_000
LIVE_LINE_S, LIVE_LINE_WITHOUT_TERMINAL_S = 1.0, 10.0


def percentile(values: list[float], percent: float) -> float:
    """Return the value below which `percent` % of `values` are (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


class Tally:
    """Counts frames by how they ended. `_lock` guards all counts.

    taken: frames from the source, and those that an earlier run left in the spool. Each ends as
    answered, refused (by the server, for good), dropped (a newer one took its place), or lost
    (too old, or no room on the disk), or is still in the spool.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self.taken = self.answered = self.dropped = self.lost = 0
        self.tries_failed = 0
        self.refused: Counter[str] = Counter()
        self.verdicts: Counter[str] = Counter()
        self.right = self.wrong = 0
        self._latencies: deque[float] = deque(maxlen=LATENCIES_MAX)
        self._outage = ""
        self._line_at, self._line_answered = self._started, 0

    def take(self, count: int = 1) -> None:
        with self._lock:
            self.taken += count

    def drop(self, count: int) -> None:
        with self._lock:
            self.dropped += count

    def lose(self, count: int, reason: str) -> None:
        with self._lock:
            self.lost += count
        self.say(f"{count} frame{'s' * (count != 1)} lost: {reason}")

    def unreadable(self, reason: str) -> None:
        """Count a frame that the source can't read."""
        self.take()
        self.lose(1, reason)

    def refuse(self, code: str, message: str) -> None:
        """Count a frame that the server refuses for good."""
        with self._lock:
            self.refused[code] += 1
            is_first = self.refused[code] == 1
        if is_first:
            self.say(f"refused, {code}: {message}")

    def answer(self, verdict: str | None, right: bool | None, milliseconds: float) -> None:
        """Count an answer. right: None if the frame's class is not known."""
        with self._lock:
            outage, self._outage = self._outage, ""
            self.answered += 1
            self.verdicts[verdict or "none"] += 1
            self.right += right is True
            self.wrong += right is False
            self._latencies.append(milliseconds)
        if outage:
            self.say("the server answers again")

    def fail(self, kind: str, reason: str) -> None:
        """Count a try that failed; say why if it is of another kind than the one before."""
        with self._lock:
            self.tries_failed += 1
            is_new = kind != self._outage
            self._outage = kind
        if is_new:
            self.say(f"{reason}; still trying")

    def say(self, sentence: str) -> None:
        clear = "\r\033[K" if sys.stderr.isatty() else ""
        print(f"{clear}{sentence}", file=sys.stderr, flush=True)

    def is_complete(self) -> bool:
        """Return whether each frame has its answer or is in the spool."""
        return not (self.dropped or self.lost or self.refused.total())

    def live_line(self, waiting: int) -> str:
        """Return rate, latency and counts since the start; the rate since the last line."""
        with self._lock:
            now = time.monotonic()
            rate = (self.answered - self._line_answered) / max(now - self._line_at, 1e-9)
            self._line_at, self._line_answered = now, self.answered
            parts = [f"{rate:.1f}/s", *self._latency(), f"answered {self.answered}"]
            parts += [f"{verdict} {count}" for verdict, count in sorted(self.verdicts.items())]
            parts += [f"refused {self.refused.total()}", f"dropped {self.dropped}"]
            parts += [f"lost {self.lost}", f"in spool {waiting}"]
        return ", ".join(parts)

    def table(self, waiting: int) -> str:
        """Return all counts, one a line."""
        with self._lock:
            seconds = time.monotonic() - self._started
            rows: list[tuple[str, object]] = [
                ("frames", self.taken),
                ("answered", self.answered),
                *((f"  verdict {verdict}", n) for verdict, n in sorted(self.verdicts.items())),
                ("refused", self.refused.total()),
                *((f"  {code}", n) for code, n in self.refused.most_common()),
                ("dropped for newer ones", self.dropped),
                ("lost", self.lost),
                ("left in the spool", waiting),
                ("tries that failed", self.tries_failed),
                ("answers a second", f"{self.answered / max(seconds, 1e-9):.1f}"),
            ]
            if self.right + self.wrong:
                share = self.right / (self.right + self.wrong)
                rows.append(("right of known classes", f"{self.right} ({share:.2%})"))
            rows += [("latency", text) for text in self._latency()]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:{width}}  {value}" for name, value in rows)

    def _latency(self) -> list[str]:
        values = list(self._latencies)
        if not values:
            return []
        return [f"p50 {median(values):.1f} ms", f"p99 {percentile(values, 99):.1f} ms"]


def show_live(tally: Tally, waiting: Callable[[], int], stop: threading.Event) -> None:
    """Print the live line until `stop` is set: on a terminal in place, else now and then."""
    terminal = sys.stderr.isatty()
    while not stop.wait(LIVE_LINE_S if terminal else LIVE_LINE_WITHOUT_TERMINAL_S):
        line = tally.live_line(waiting())
        print(
            f"\r\033[K{line}" if terminal else line,
            end="" if terminal else "\n",
            file=sys.stderr,
            flush=True,
        )
    if terminal:
        print("\r\033[K", end="", file=sys.stderr, flush=True)
