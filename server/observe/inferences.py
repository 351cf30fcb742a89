"""Counts what each version of a model has done since the start: inferences, failures, and their
time."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from server.recognition.answers import FrameAnswered, FrameRefused

# The stages of an inference, as Triton divides it.
STAGES = ("queue", "compute_input", "compute_infer", "compute_output")
# The versions that are counted, the latest ones.
VERSIONS_MAX = 256


@dataclass
class Counts:
    """The counts of one version. last: when it inferred last, in Unix seconds; 0 for never.
    inferred: frames and rows that the model ran for. cached: answers out of the cache. failed:
    frames that got an error. seconds: of all that were inferred, `success` and by stage."""

    last: float = 0.0
    inferred: int = 0
    cached: int = 0
    failed: int = 0
    failed_seconds: float = 0.0
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("success", *STAGES), 0.0)
    )


class Inferences:
    """Counts the inferences of each version. `_lock` guards `_counts`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, int], Counts] = {}

    def of(self, model: str, version: int) -> Counts:
        """Return the counts of a version so far."""
        with self._lock:
            found = self._counts.get((model, version), Counts())
            return Counts(**{**vars(found), "seconds": dict(found.seconds)})

    def answered(self, frame: FrameAnswered) -> None:
        """Count an answered frame; a listener."""
        answer = frame.answer
        if frame.cached:
            with self._lock:
                self._of(answer.model, answer.version).cached += 1
        else:
            self.ran(answer.model, answer.version, answer.timing, frame.at)

    def ran(self, model: str, version: int, timing: Mapping[str, float], at: float) -> None:
        """Count one run of a model. timing: as of `Answer`. at: Unix seconds."""
        total = timing.get("total", 0.0)
        stages = {
            "queue": timing.get("wait", 0.0),
            "compute_input": timing.get("decode", 0.0) + timing.get("preprocess", 0.0),
            "compute_infer": timing.get("inference", 0.0),
        }
        stages["compute_output"] = max(0.0, total - sum(stages.values()))
        with self._lock:
            counts = self._of(model, version)
            counts.last = max(counts.last, at)
            counts.inferred += 1
            for stage, seconds in (("success", total), *stages.items()):
                counts.seconds[stage] += seconds

    def refused(self, frame: FrameRefused) -> None:
        """Count a frame that got no labels, if its model is known; a listener."""
        if not frame.version:
            return
        with self._lock:
            counts = self._of(frame.model, frame.version)
            counts.failed += 1
            counts.failed_seconds += frame.seconds

    def _of(self, model: str, version: int) -> Counts:
        found = self._counts.pop((model, version), None) or Counts()
        self._counts[(model, version)] = found
        if len(self._counts) > VERSIONS_MAX:
            del self._counts[next(iter(self._counts))]
        return found
