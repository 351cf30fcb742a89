"""Drift: the index itself, its window, and what the shipped bundle tells of real frames."""

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from observations import observation
from server_process import ROOT

from server.observe.drift import Drift, Histogram, ModelDrift, Signal, stability_index
from server.recognition.admission import Admission
from server.recognition.answers import Answer, Options
from server.recognition.frame import Limits
from server.recognition.interpreter import InterpreterPool
from server.recognition.manifest import Baseline, Manifest, Report, read_bundle
from server.recognition.recognizer import Recognizer
from server.recognition.tasks.task import bin_of

COUNTS = st.lists(st.integers(0, 1000), min_size=4, max_size=4).filter(any)
EVEN = tuple([0.1] * 10), tuple([1 / 16] * 16)
SCRIPTS = ROOT / "scripts"


def manifest(version: int = 1, baseline: Baseline | None = None, images: int = 1000) -> Manifest:
    return Manifest(
        name="parts",
        version=version,
        sha256={},
        quantization="float32",
        baseline=baseline
        or Baseline(classes={"a": 0.5, "b": 0.5}, confidence=EVEN[0], brightness=EVEN[1]),
        report=Report(
            images=images, top1=1, top1_float=1, interval=(1, 1), classes={}, confusion=()
        ),
    )


def test_the_index_by_hand() -> None:
    """A tenth moved from one half to the other: 0.1 * ln(0.6 / 0.5) + -0.1 * ln(0.4 / 0.5)."""
    want = 0.1 * math.log(0.6 / 0.5) - 0.1 * math.log(0.4 / 0.5)
    assert stability_index([5e6, 5e6], [6e6, 4e6]) == pytest.approx(want, rel=1e-4)
    assert stability_index([5, 5], [0, 0]) >= 0
    assert stability_index([0, 0], [0, 0]) == 0


@given(COUNTS, COUNTS)
def test_index_is_finite_symmetric_and_not_negative(one: list[int], two: list[int]) -> None:
    """The index is finite, never negative, and the same both ways."""
    index = stability_index(one, two)
    assert 0 <= index < math.inf
    assert index == pytest.approx(stability_index(two, one), abs=1e-12)
    assert stability_index(one, one) == pytest.approx(0, abs=1e-12)


def test_by_chance_the_index_is_what_theory_says() -> None:
    """(bins - 1) * (1/n + 1/m) on average (Yurdakul, 2018)."""
    rng, n, m = np.random.default_rng(0), 300, 900
    shares = np.full(16, 1 / 16)
    found = [
        stability_index(rng.multinomial(m, shares).tolist(), rng.multinomial(n, shares).tolist())
        for _ in range(400)
    ]
    assert np.mean(found) == pytest.approx(15 * (1 / n + 1 / m), rel=0.1)


@pytest.mark.parametrize(
    ("value", "place"),
    [(0.0, 0), (0.0999, 0), (0.1, 1), (0.95, 9), (1.0, 9), (1.1, 9), (-1, 0), (math.inf, 9)],
)
def test_bins_are_those_of_the_baseline(value: float, place: int) -> None:
    assert bin_of(value, 10, 1.0) == place


@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0, 40)), max_size=60))
def test_the_window_holds_the_last_seconds(frames: list[tuple[int, float]]) -> None:
    """Against a list of all frames, to a sixtieth of the window."""
    histogram, now, seen = Histogram(3, 60.0), 500.0, []
    for place, gap in frames:
        now += gap
        histogram.add([place], now)
        seen.append((place, math.floor(now)))
    histogram.advance(now)
    for place in range(3):
        inside = [1 for p, second in seen if p == place and second > math.floor(now) - 60]
        assert histogram.counts[place] == len(inside)


def test_a_long_silence_empties_the_window() -> None:
    histogram = Histogram(2, 3600.0)
    histogram.add([1], 10.0)
    histogram.advance(1e9)
    assert histogram.counts == [0, 0]


def test_too_few_frames_tell_nothing_and_enough_do() -> None:
    model = ModelDrift(manifest(), 3600, 10)
    for number in range(400):
        label, share = "ab"[number % 2], (number % 10 + 0.5) / 10
        seen = observation(label=label, probability=share, brightness=(number % 16) * 16 + 8.0)
        model.add(seen.answer, 100.0)
        told = model.indices(100.0)
        # Twenty frames for each bin but one: 2 (and one for other labels), 10 and 16 of them.
        want: set[Signal] = set()
        want |= {"class"} if number + 1 >= 40 else set()
        want |= {"confidence"} if number + 1 >= 180 else set()
        want |= {"brightness"} if number + 1 >= 300 else set()
        assert set(told) == want
    assert max(told.values()) < 0.01
    assert model.indices(100.0 + 7200) == {}


def test_labels_that_the_validation_never_saw_count() -> None:
    model = ModelDrift(manifest(), 3600, 300)
    for _ in range(300):
        model.add(observation(label="unheard of").answer, 1.0)
    assert model.indices(1.0)["class"] > 5
    assert "brightness" not in model.indices(1.0)


def test_new_version_starts_a_new_window() -> None:
    """A new version begins anew, and the last frames of the old one do not count."""
    serving = {"parts": manifest(1)}

    def find(name: str, version: int) -> Manifest | None:
        found = serving.get(name)
        return found if found and found.version == version else None

    drift = Drift(find, 3600, 10, clock=lambda: 50.0)
    for _ in range(100):
        drift(observation(label="a"))
    assert drift.of("parts", 1)
    serving["parts"] = manifest(2)
    assert [family.samples for family in drift.collect()] == [[], []]
    drift(observation(label="a", version=2))
    drift(observation(label="a", version=1))
    assert drift.of("parts", 1) is None
    assert drift.of("parts", 2) == {}
    assert drift.of("other", 1) is None


def test_drift_is_measured_of_each_camera() -> None:
    """Of one more than there is room for, and of frames without a name, only the model's."""
    drift = Drift(lambda name, version: manifest(), 3600, 10, 2, clock=lambda: 50.0)
    for number in range(300):
        for camera, label in (("dark", "b"), ("well", "ab"[number % 2]), ("third", "a"), ("", "a")):
            event = observation(label=label)
            drift(msgspec.structs.replace(event, options=Options(camera=camera)))
    model, cameras = (
        {tuple(s.labels.values()): s.value for s in f.samples} for f in drift.collect()
    )
    assert ("parts", "class") in model
    by_camera = {key[0]: value for key, value in cameras.items() if key[2] == "class"}
    assert set(by_camera) == {"dark", "well"}
    assert by_camera["dark"] > 0.2 > by_camera["well"]


def test_a_bundle_without_a_baseline_is_not_measured() -> None:
    bare = Manifest(name="parts", version=1, sha256={}, quantization="float32")
    drift = Drift(lambda name, version: bare, 3600, 1, clock=lambda: 50.0)
    for _ in range(100):
        drift(observation())
    assert drift.of("parts", 1) is None
    assert [family.samples for family in drift.collect()] == [[], []]
    with pytest.raises(ValueError, match="parts/1 has no baseline"):
        ModelDrift(bare, 3600, 1)


def test_a_signal_that_the_baseline_lacks_is_left_out() -> None:
    partly = Baseline(classes={}, confidence=EVEN[0], brightness=())
    model = ModelDrift(manifest(baseline=partly), 3600, 1)
    for _ in range(300):
        model.add(observation(brightness=10.0).answer, 1.0)
    assert set(model.indices(1.0)) == {"confidence"}


@pytest.fixture(scope="module")
def recognizer(shipped: Path) -> Recognizer:
    bundle = read_bundle(shipped)
    pool = InterpreterPool(bundle.model_path, 1, 2)
    return Recognizer(bundle, pool, Admission(1, 1), Limits())


@pytest.fixture(scope="module")
def line() -> Iterator[list[tuple[str, bytes]]]:
    """300 frames of the simulated camera, small ones for speed, with their classes in turn."""
    before = set(sys.modules)
    sys.path.insert(0, str(SCRIPTS))
    try:
        from line_camera.parts import CLASSES, render
        from line_camera.pictures import encode

        frames = []
        for number in range(300):
            rng = np.random.default_rng([7, number])
            kind = CLASSES[number % len(CLASSES)]
            frames.append((kind, encode(render(kind, rng, 320, 320), rng, 90)))
        yield frames
    finally:
        sys.path.remove(str(SCRIPTS))
        for name in set(sys.modules) - before:
            origin = getattr(sys.modules[name], "__file__", None)
            if origin and Path(origin).parent == SCRIPTS:
                del sys.modules[name]


def indices(recognizer: Recognizer, answers: list[Answer]) -> dict[Signal, float]:
    model = ModelDrift(recognizer.manifest, 3600, 300)
    for answer in answers:
        model.add(answer, 1.0)
    return model.indices(1.0)


def darker(data: bytes) -> bytes:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    return cv2.imencode(".jpg", pixels // 3)[1].tobytes()


def test_index_is_low_for_validated_kind_high_for_others(
    recognizer: Recognizer, line: list[tuple[str, bytes]]
) -> None:
    """The index stays low for frames of the validated kind, and rises for others."""
    answers = [recognizer.recognize(data, Options()) for _, data in line]
    usual = indices(recognizer, answers)
    assert set(usual) == {"class", "confidence", "brightness"}
    dark = [recognizer.recognize(darker(data), Options()) for _, data in line[:75]]
    night = indices(recognizer, dark * 4)
    scratched = [a for a, (kind, _) in zip(answers, line, strict=True) if kind == "scratched"]
    monotone = indices(recognizer, scratched * 6)
    assert max(usual.values()) < 0.25
    assert night["brightness"] > 1 > 4 * usual["brightness"]
    assert monotone["class"] > 1 > 4 * usual["class"]
