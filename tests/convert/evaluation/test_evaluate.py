"""Figures of a classifier: against worked examples, and against the server's own answers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tiny_models import write_bundle

from convert import bundle_writer as bundle
from convert.data.dataset import images, labelled
from convert.errors import ConvertError
from convert.evaluation import metrics
from convert.evaluation.evaluate import evaluate, from_bundle, predict
from convert.evaluation.results import accuracy_drop, class_names, most_different
from convert.pipeline import Request, build
from server.recognition.answers import Options
from server.recognition.manifest import read_bundle
from server.values.labels import Label


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    # The third: Newcombe, «Two-sided confidence intervals for the single proportion», 1998,
    # table I, method 3; the others from the formula by hand.
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662), (0, 0, 0.0, 1.0)],
)
def test_wilson(hits: int, trials: int, low: float, high: float) -> None:
    assert metrics.wilson(hits, trials) == pytest.approx((low, high), abs=5e-5)


@given(arrays(np.float32, (5, 4), elements=st.sampled_from([0.0, 0.25, 0.5])), st.data())
def test_ranks_follow_a_stable_sort(values: np.ndarray, data: st.DataObject) -> None:
    truth = np.array(data.draw(st.lists(st.integers(0, 3), min_size=5, max_size=5)), np.intp)
    order = np.argsort(-values, axis=1, kind="stable")
    expected = [int(np.flatnonzero(row == t)[0]) for row, t in zip(order, truth, strict=True)]
    assert metrics.ranks(values, truth).tolist() == expected


def test_an_answer_that_is_not_a_number_is_wrong() -> None:
    values = np.array([[np.nan, np.nan], [0.1, np.nan], [0.9, 0.1]], np.float32)
    assert metrics.ranks(values, np.zeros(3, np.intp)).tolist() == [2, 2, 0]


def test_confusion_precision_and_recall() -> None:
    truth, predicted = np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 0])
    matrix = metrics.confusion(truth, predicted, 3)
    assert matrix.tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 0]]
    precision, recall = metrics.precision_recall(matrix)
    assert precision == pytest.approx([2 / 3, 1 / 2, 0])
    assert recall == pytest.approx([2 / 3, 1 / 2, 0])


def test_calibration_error_of_a_worked_example() -> None:
    # Two frames at 0.95, one right; two at 0.75, both right: (2 * 0.45 + 2 * 0.25) / 4.
    rows = [[0.95, 0.05], [0.95, 0.05], [0.75, 0.25], [0.75, 0.25]]
    bins = metrics.reliability(np.array(rows, np.float32), np.array([0, 1, 0, 0]))
    assert [b.frames for b in bins] == [0, 0, 0, 0, 0, 0, 0, 2, 0, 2]
    assert metrics.calibration_error(bins) == pytest.approx(0.35, abs=1e-6)


def test_distance_and_shares() -> None:
    first, second = np.array([[1, 0], [0.5, 0.5]]), np.array([[0, 1], [0.4, 0.6]])
    assert metrics.distance(first, second) == pytest.approx([1, 0.1])
    assert metrics.shares(np.array([0.0, 0.1, 0.95, 1.0]), 10, 1.0) == (
        *(0.25, 0.25, 0, 0, 0, 0, 0, 0, 0),
        0.5,
    )


def test_labels_of_one_name_are_told_apart() -> None:
    labels = [Label("crane", "n1"), Label("cat"), Label("crane", "n2")]
    assert class_names(labels) == ("crane (n1)", "cat", "crane (n2)")


@pytest.mark.parametrize("mode", ["dynamic", "int8"])
def test_evaluation_sees_what_the_server_answers(
    request_of: Request, colours_frames: Path, mode: str
) -> None:
    paths = images(colours_frames)
    folder = build(replace(request_of, mode=mode, calibration=paths), lambda _: None)
    recognizer = bundle.load(folder)
    predictions = predict([from_bundle(recognizer.bundle)], paths).probabilities[0]
    for path, row in zip(paths, predictions, strict=True):
        best = recognizer.recognize(path.read_bytes(), Options()).best
        assert best is not None
        assert (best.class_id, best.probability) == (int(row.argmax()), float(row.max()))


def test_a_model_agrees_with_itself(request_of: Request, colours_frames: Path) -> None:
    model = from_bundle(bundle.load(build(request_of, lambda _: None)).bundle)
    frames = labelled(colours_frames, model.labels).frames
    proof = evaluate(model, model, frames, mode="dynamic", seconds=0.05)
    assert accuracy_drop(proof) == 0
    assert proof.reference is not None
    assert np.array_equal(proof.result.probabilities, proof.reference.probabilities)
    assert len(most_different(proof)) == 10
    assert 40 < proof.brightness.mean() < 140


def test_an_unreadable_frame_is_named(request_of: Request, tmp_path: Path) -> None:
    model = from_bundle(bundle.load(build(request_of, lambda _: None)).bundle)
    (tmp_path / "frame.jpg").write_bytes(b"no picture")
    with pytest.raises(ConvertError, match=r"frame\.jpg: not an image this server reads"):
        predict([model], [tmp_path / "frame.jpg"])


def test_classes_are_matched_by_name_or_id(tmp_path: Path) -> None:
    labels = [Label("crane", "n1"), Label("cat", "n2"), Label("crane", "n3")]
    for name in ("n3", "cat"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").touch()
    assert [item.label for item in labelled(tmp_path, labels).frames] == [1, 2]
    (tmp_path / "crane").mkdir()
    with pytest.raises(ConvertError, match="crane, which n1, n3 share: name it by its id"):
        labelled(tmp_path, labels)
    (tmp_path / "crane").rename(tmp_path / "dog")
    with pytest.raises(ConvertError, match="the class dog, which is not one of"):
        labelled(tmp_path, labels)


def test_bundle_of_another_engine_is_refused(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"")
    read = read_bundle(write_bundle(tmp_path / "twin" / "1", model))
    with pytest.raises(ConvertError, match=r"twin/1 has a model\.onnx: `evaluate` and `compare`"):
        from_bundle(read)
