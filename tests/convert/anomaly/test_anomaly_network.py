"""The anomaly model as .tflite: it computes what the statistics say, at the size of a bundle."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from ai_edge_litert.tools import flatbuffer_utils
from numpy.typing import NDArray

from convert.anomaly import scoring, statistics
from convert.anomaly.locator import calibrated, learn
from convert.anomaly.network import (
    CHANNELS,
    DEPTH,
    FEATURES,
    FINE,
    MAP,
    SCORE,
    SIZE,
    AnomalyNetwork,
    with_thresholds,
)
from convert.anomaly.scoring import FINE_CHANNELS, Features
from convert.anomaly.statistics import SIDE
from server.recognition.engines.litert import Interpreter

THRESHOLD, OF_PLACES = 2.0, 1.5


def surfaces(count: int, seed: int) -> NDArray[np.float32]:
    """Grained surfaces of a random tone, as the model takes them."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        grain = cv2.GaussianBlur(rng.normal(0, 60, (SIZE, SIZE, 3)).astype(np.float32), (0, 0), 2)
        out.append((grain + rng.uniform(90, 160)) / 127.5 - 1)
    return np.asarray(np.stack(out), np.float32)


def run(model: bytes, frames: NDArray[np.float32]) -> Mapping[str, NDArray[np.float32]]:
    interpreter = Interpreter(Path("model.tflite"), 1, model)
    answers = [interpreter.run([frame[None]]) for frame in frames]
    return {
        spec.signature: np.stack([answer[i] for answer in answers])
        for i, spec in enumerate(interpreter.outputs)
    }


@pytest.fixture(scope="module")
def made(
    tf: Any, keras_home: Path
) -> tuple[bytes, bytes, NDArray[np.float32], Mapping[str, NDArray[np.float32]]]:
    """The float and the quantised model of ImageNet weights, frames, and their scores and maps
    outside of a model."""
    network = AnomalyNetwork()
    frames = surfaces(32, 1)
    seen = run(network.feature_model(), frames)
    coarse = seen[FEATURES].reshape(32, -1, CHANNELS)
    deviation = coarse.reshape(-1, CHANNELS).std(axis=0)
    projection = statistics.projection(CHANNELS, DEPTH, deviation)
    features = Features(coarse, seen[FINE].reshape(32, -1, FINE_CHANNELS)).turned(projection)
    usual = scoring.fit(features[:24])
    centred = features.coarse - usual.coarse.mean
    shares = np.random.default_rng(2).uniform(0, 1, (24, SIDE, SIDE)).astype(np.float32)
    judged = usual.judge(features[24:])
    locator = calibrated(learn(centred[:24], shares), centred[24:], judged.maps)
    maps, scores = locator.maps(centred[24:], judged.maps), judged.scores
    float_model, quantised = network.anomaly_model(projection, usual, locator, THRESHOLD, OF_PLACES)
    expected = {SCORE: scores / (scores + THRESHOLD), MAP: maps / (maps + OF_PLACES)}
    return float_model, quantised, frames[24:], expected


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("name", [SCORE, MAP])
def test_model_computes_what_the_statistics_do(made: Any, name: str, which: int) -> None:
    expected = made[3][name]
    answers = run(made[which], made[2])

    np.testing.assert_allclose(answers[name].reshape(expected.shape), expected, atol=0.05)


@pytest.mark.parametrize("which", [0, 1])
def test_thresholds_are_changed_in_the_file(made: Any, which: int) -> None:
    """A raw score s becomes s / (s + threshold), and a place of the map alike."""
    before = run(made[which], made[2])
    old, new = (THRESHOLD, OF_PLACES), (0.7, 4.0)
    changed = with_thresholds(made[which], old, new)
    assert changed is not None
    after = run(changed, made[2])
    for name, was, now in zip((SCORE, MAP), old, new, strict=True):
        raw = before[name] / (1 - before[name]) * was
        np.testing.assert_allclose(after[name], raw / (raw + now), rtol=1e-3, atol=1e-5)
    assert with_thresholds(made[which], new, old) is None


def test_threshold_that_another_operator_takes_stays(made: Any) -> None:
    """Equal constants are stored once."""
    parsed = flatbuffer_utils.read_model_from_bytearray(bytearray(made[0]))
    (graph,), wanted = parsed.subgraphs, np.float32(THRESHOLD).tobytes()
    constants = {
        number: tensor
        for operator in graph.operators
        for number in operator.inputs
        if number >= 0
        and (data := parsed.buffers[(tensor := graph.tensors[number]).buffer].data) is not None
        and len(data) == 4
    }
    (own,) = (t for t in constants.values() if bytes(parsed.buffers[t.buffer].data) == wanted)
    other = next(t for t in constants.values() if t is not own)
    other.buffer = own.buffer
    shared = bytes(flatbuffer_utils.convert_object_to_bytearray(parsed))
    assert with_thresholds(shared, (THRESHOLD, OF_PLACES), (0.7, 4.0)) is None


def test_quantised_model_is_far_smaller_than_float(made: Any) -> None:
    assert len(made[1]) < 0.4 * len(made[0])
