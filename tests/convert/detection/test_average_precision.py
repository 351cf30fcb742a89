"""Average precision is that of pycocotools on the same boxes."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools_figures import pycocotools_precision

from convert.detection.average_precision import (
    Found,
    Truth,
    evaluate_boxes,
    mean_precision,
)

LABELS = 3


def assert_as_pycocotools(truths: Any, found: Any, labels: int = LABELS) -> None:
    classes = evaluate_boxes(truths, found, labels)
    means, by_class = pycocotools_precision(truths, found, labels)
    ours = [-1 if value is None else value for value in mean_precision(classes)]
    assert ours == pytest.approx(means, abs=1e-9)
    for each in classes:
        values = [-1 if value is None else value for value in (each.ap50, each.ap)]
        assert values == pytest.approx(by_class[each.label], abs=1e-9)


def scene(seed: int, frames: int = 12) -> tuple[list[list[Truth]], list[list[Found]]]:
    """Frames with crowds and ignored objects, and boxes near them, beside them, and too many;
    probabilities of one digit, so that many are the same."""
    rng = np.random.default_rng(seed)
    truths: list[list[Truth]] = []
    found: list[list[Found]] = []
    for _ in range(frames):
        boxes = np.concatenate([rng.uniform(0, 80, (6, 2)), rng.uniform(5, 40, (6, 2))], axis=1)
        labels = rng.integers(0, LABELS, 6).tolist()
        kinds = rng.random(6)
        truths.append(
            [
                Truth(label, tuple(box), kind < 0.15, 0.15 <= kind < 0.3)
                for label, box, kind in zip(labels, boxes.tolist(), kinds.tolist(), strict=True)
            ][: rng.integers(0, 7)]
        )
        near = boxes[rng.integers(0, 6, 14)] + rng.normal(0, 2.5, (14, 4))
        near[:, 2:] = np.abs(near[:, 2:])
        found.append(
            [
                Found(int(rng.integers(0, LABELS)), tuple(box), round(float(rng.random()), 1))
                for box in near.tolist()
            ]
        )
    return truths, found


@pytest.mark.parametrize("seed", range(8))
def test_precision_is_that_of_pycocotools(seed: int) -> None:
    assert_as_pycocotools(*scene(seed))


def test_more_boxes_than_count_are_cut_as_by_coco() -> None:
    """101 boxes of a class in a frame: the last one, which is right, does not count."""
    wrong = [Found(0, (50.0, 50.0, 5.0, 5.0), 0.9)] * 100
    right = [Found(0, (0.0, 0.0, 9.0, 9.0), 0.5)]
    assert_as_pycocotools([[Truth(0, (0.0, 0.0, 9.0, 9.0))]], [wrong + right], 1)


Boxes = st.tuples(*[st.integers(0, 12).map(float)] * 2, *[st.integers(1, 8).map(float)] * 2)
Truths = st.builds(Truth, st.just(0), Boxes, st.booleans(), st.booleans())
Founds = st.builds(Found, st.just(0), Boxes, st.sampled_from([0.2, 0.5, 0.9]))


@given(st.lists(st.tuples(st.lists(Truths, max_size=4), st.lists(Founds, max_size=5)), min_size=1))
def test_any_boxes_give_what_pycocotools_gives(frames: Any) -> None:
    truths, found = ([frame[i] for frame in frames] for i in (0, 1))
    if not any(found) or not any(truths):
        return
    assert_as_pycocotools(truths, found, 1)


def test_class_without_objects_has_no_precision() -> None:
    [one, other] = evaluate_boxes(
        [[Truth(0, (0, 0, 10, 10))]], [[Found(1, (0, 0, 10, 10), 0.9)]], 2
    )
    assert (one.objects, one.ap, one.missed) == (1, 0.0, 1)
    assert (other.objects, other.ap, other.false) == (0, None, 1)
