"""Drift: how far the frames of the last hour are from those that a bundle was validated on."""

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from server.recognition.answers import Answer, FrameAnswered
from server.recognition.manifest import Baseline, Manifest
from server.recognition.tasks.task import DriftSignal, all_tasks, bin_of, find_task

if TYPE_CHECKING:
    Signal = str
else:
    # Those of the tasks, and the frames' brightness.
    _OF_TASKS = dict.fromkeys(name for task in all_tasks() for name in task.drift_signals)
    Signal = Literal[(*_OF_TASKS, "brightness")]
SLOTS = 60
BRIGHTNESS_BINS = 16
# Added to each bin, so that one that is empty on one side makes the index large and not infinite:
# the estimator of Krichevsky and Trofimov, «The performance of universal encoding», 1981.
HALF_A_FRAME = 0.5
# Two samples of the same frames have an index too, by chance: (bins - 1) * (1/n + 1/m) on average
# for n and m frames (Yurdakul, «Statistical properties of population stability index», 2018). With
# so many frames to a bin, what the window adds to that stays below 0.05.
FRAMES_PER_BIN = 20
# Frames behind a baseline, if its bundle does not say how many.
BASELINE_FRAMES = 300


def stability_index(expected: Sequence[float], actual: Sequence[float]) -> float:
    """Returns the population stability index of two histograms over the same bins, each in frames:
    sum((a - e) * ln(a / e)) of their shares, 0 or more; below 0.1 little has changed, above 0.25
    much (Siddiqi, «Credit risk scorecards», 2006).

    Half a frame is added to each bin; bins that are empty in both are left out.
    """
    pairs = [(e, a) for e, a in zip(expected, actual, strict=True) if e or a]
    total_e = sum(e for e, _ in pairs) + HALF_A_FRAME * len(pairs)
    total_a = sum(a for _, a in pairs) + HALF_A_FRAME * len(pairs)
    index = 0.0
    for e, a in pairs:
        share_e, share_a = (e + HALF_A_FRAME) / total_e, (a + HALF_A_FRAME) / total_a
        index += (share_a - share_e) * math.log(share_a / share_e)
    return index


class Histogram:
    """Frames by bin over the last `window_s` seconds, to a sixtieth of it.

    A ring of SLOTS histograms and their sum, so that memory does not grow with frames.
    """

    def __init__(self, bins: int, window_s: float) -> None:
        self.counts = [0] * bins
        self._slots = [[0] * bins for _ in range(SLOTS)]
        self._width = window_s / SLOTS
        self._turn = 0

    def advance(self, now: float) -> None:
        """Forgets what is older than the window at `now`, in seconds of a clock that never goes
        back, 0 or more."""
        turn = int(now / self._width)
        if turn <= self._turn:
            return
        for old in range(max(self._turn + 1, turn - SLOTS + 1), turn + 1):
            slot = self._slots[old % SLOTS]
            if any(slot):
                for place, count in enumerate(slot):
                    self.counts[place] -= count
                self._slots[old % SLOTS] = [0] * len(slot)
        self._turn = turn

    def add(self, places: Iterable[int], now: float) -> None:
        """Counts one frame in each of the bins `places`."""
        self.advance(now)
        slot = self._slots[self._turn % SLOTS]
        for place in places:
            self.counts[place] += 1
            slot[place] += 1


class ModelDrift:
    """One version's frames against its baseline.

    `_lock` guards the histogram, in which the bins of the signals follow each other, those of a
    signal from its place in `_first` on.
    """

    def __init__(self, manifest: Manifest, window_s: float, min_frames: int) -> None:
        """Raises ValueError if the bundle has no baseline."""
        if manifest.baseline is None:
            raise ValueError(f"{manifest.name}/{manifest.version} has no baseline")
        self.version = manifest.version
        self._least = min_frames
        baseline = manifest.baseline
        frames = manifest.report.images if manifest.report else BASELINE_FRAMES
        signals = find_task(manifest.task).read_baseline(baseline) | _brightness(baseline)
        self._bins = {name: signal.bin for name, signal in signals.items()}
        self._expected = {
            name: [share * frames for share in signal.shares] for name, signal in signals.items()
        }
        self._first: dict[Signal, int] = {}
        bins = 0
        for signal, expected in self._expected.items():
            self._first[signal] = bins
            bins += len(expected)
        self._histogram = Histogram(bins, window_s)
        self._lock = threading.Lock()

    def add(self, answer: Answer, now: float) -> None:
        """Counts one answered frame, at `now` in seconds."""
        bins = [
            first + place
            for signal, first in self._first.items()
            if (place := self._bins[signal](answer)) is not None
        ]
        with self._lock:
            self._histogram.add(bins, now)

    def indices(self, now: float) -> dict[Signal, float]:
        """Returns the stability index by signal, of those with enough frames in the window."""
        with self._lock:
            self._histogram.advance(now)
            all_counts = list(self._histogram.counts)
        indices: dict[Signal, float] = {}
        for signal, expected in self._expected.items():
            start = self._first[signal]
            counts = all_counts[start : start + len(expected)]
            if sum(counts) >= max(self._least, FRAMES_PER_BIN * (len(counts) - 1)):
                indices[signal] = stability_index(expected, counts)
        return indices


def _brightness(baseline: Baseline) -> dict[str, DriftSignal]:
    """Returns the signal of any task that takes images, if the bundle has it."""
    if len(baseline.brightness) != BRIGHTNESS_BINS:
        return {}

    def place(answer: Answer) -> int | None:
        brightness = answer.brightness
        return None if brightness is None else bin_of(brightness, BRIGHTNESS_BINS, 256.0)

    return {"brightness": DriftSignal(baseline.brightness, place)}


class Drift(Collector):
    """A listener of answered frames, and what Prometheus reads of their drift: of each model, and
    of each camera's frames by it.

    manifest_of: the manifest of the version of a model that serves, None if that one does not.
    max_cameras: pairs of camera and model that are measured, the first ones, since callers choose
    the names. `_lock` guards `_measured`, by model and camera ("": all frames), with the version;
    it has None for a version without a baseline.
    """

    def __init__(
        self,
        manifest_of: Callable[[str, int], Manifest | None],
        window_s: float,
        min_frames: int,
        max_cameras: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._manifest_of = manifest_of
        self._clock = clock
        self._window_s = window_s
        self._least = min_frames
        self._max_cameras = max_cameras
        self._lock = threading.Lock()
        self._measured: dict[tuple[str, str], tuple[int, ModelDrift | None]] = {}
        self._cameras = 0

    def __call__(self, event: FrameAnswered) -> None:
        """Counts one frame; a cached answer counts too, since the line has shown it again."""
        # One name that is no UTF-8 would make the whole page of metrics unwritable.
        camera = event.options.camera.encode("utf-8", "replace").decode()
        for key in {(event.answer.model, ""), (event.answer.model, camera)}:
            version, measured = self._measured.get(key, (0, None))
            if version != event.answer.version:
                measured = self._begin(key, event.answer.version)
            if measured is not None:
                measured.add(event.answer, self._clock())

    def _begin(self, key: tuple[str, str], version: int) -> ModelDrift | None:
        name, camera = key
        manifest = self._manifest_of(name, version)
        if manifest is None:
            return None  # the last frames of a version that was unloaded
        with self._lock:
            known, measured = self._measured.get(key, (0, None))
            if camera and not known:
                if self._cameras >= self._max_cameras:
                    return None
                self._cameras += 1
            if known != version:
                if manifest.baseline is not None:
                    measured = ModelDrift(manifest, self._window_s, self._least)
                else:
                    measured = None
                self._measured[key] = version, measured
        return measured

    def of(self, name: str, version: int) -> dict[Signal, float] | None:
        """Returns the stability index by signal of a model's version; without the signals that have
        too few frames, and None if nothing is measured."""
        known, measured = self._measured.get((name, ""), (0, None))
        if measured is None or known != version:
            return None
        return measured.indices(self._clock())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        text = "Population stability index of the last frames against the bundle's baseline"
        of_models = GaugeMetricFamily("lineside_drift_ratio", text, labels=("model", "signal"))
        of_cameras = GaugeMetricFamily(
            "lineside_camera_drift_ratio",
            f"{text}, of one camera",
            labels=("camera", "model", "signal"),
        )
        with self._lock:
            measured = dict(self._measured)
        for (name, camera), (version, drift) in measured.items():
            if drift is None or self._manifest_of(name, version) is None:
                continue
            for signal, index in drift.indices(self._clock()).items():
                if camera:
                    of_cameras.add_metric((camera, name, signal), index)
                else:
                    of_models.add_metric((name, signal), index)
        yield of_models
        yield of_cameras
