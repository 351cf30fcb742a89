"""Counts how good frames and everything else ended, as the senders count it."""

import threading
from collections import Counter

from soak.wire import Reply

TENTHS = 10
FAULTS_KEPT = 50
# Codes of the README's table with which a server that is well refuses a request for a moment.
REFUSALS = frozenset(
    {"OVERLOADED", "DEADLINE_EXCEEDED", "SUPERSEDED", "NOT_READY", "JOBS_FULL"}
    | {"CAMERA_UNAVAILABLE", "BROKER_UNAVAILABLE"}
)


def refused(reply: Reply) -> bool:
    """Return True if it is a 503 that says why the server does not take the request now."""
    return reply.status == 503 and reply.code() in REFUSALS


class Score:
    """Counts; `_lock` guards all of it.

    latencies: milliseconds from when a good frame was due to its right answer, by tenth of the
    run. sent: good frames. wrong: those that got another label than the first time. refusals: by
    code. acts: everything else that was done, by name; refused_acts: how many of them were refused.
    faults: what should not have been, the first of them in words; `fault_count` has them all.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.latencies: list[list[float]] = [[] for _ in range(TENTHS)]
        self.sent = self.wrong = self.refused_acts = self.fault_count = 0
        self.refusals: Counter[str] = Counter()
        self.acts: Counter[str] = Counter()
        self.faults: list[str] = []

    def frame(self, tenth: int, milliseconds: float, reply: Reply, label: str) -> None:
        """One good frame, whose answer has to have `label`."""
        if reply.status != 200:
            with self._lock:
                self.sent += 1
                if refused(reply):
                    self.refusals[reply.code()] += 1
                    return
            self.fault(f"a good frame got {reply.status}: {reply.body[:200]!r}")
            return
        found = best_label(reply)
        with self._lock:
            self.sent += 1
            if found == label:
                self.latencies[tenth].append(milliseconds)
                return
            self.wrong += 1
        self.fault(f"a frame of {label} got {found!r}")

    def lost(self, error: Exception) -> None:
        """One good frame without an answer."""
        with self._lock:
            self.sent += 1
        self.fault(f"a good frame got no answer: {error!r}")

    def act(self, name: str) -> None:
        """One of everything else."""
        with self._lock:
            self.acts[name] += 1

    def expect(self, name: str, reply: Reply, *statuses: int) -> bool:
        """Counts a request, which has to get one of `statuses` or to be refused. Returns whether
        it got one of them."""
        self.act(name)
        if reply.status in statuses:
            return True
        if refused(reply):
            with self._lock:
                self.refusals[reply.code()] += 1
                self.refused_acts += 1
        else:
            self.fault(f"{name}: {reply.status} and not {statuses}: {reply.body[:200]!r}")
        return False

    def fault(self, sentence: str) -> None:
        """Something that should not have been."""
        with self._lock:
            self.fault_count += 1
            if len(self.faults) < FAULTS_KEPT:
                self.faults.append(sentence)


def best_label(reply: Reply) -> str:
    """The first label of an answer; '' if it has none."""
    predictions = reply.json().get("predictions") or [{}]
    return str(predictions[0].get("label", ""))
