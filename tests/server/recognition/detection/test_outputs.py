"""A detector's outputs of every convention, read as boxes in the model's input."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from server.recognition.detection import outputs as reading
from server.recognition.detection.manifest import DetectionOutputs
from server.recognition.detection.outputs import Candidates, Layout
from server.recognition.preprocessing import TensorSpec

SIZE = (200, 100)
# Centre and size, in pixels, and the corners of the same box.
XYWH, CORNERS = (50.0, 40.0, 20.0, 10.0), [40.0, 35.0, 60.0, 45.0]


def floats(values: Any) -> NDArray[np.float32]:
    return np.asarray(values, np.float32)


def layout(*shapes: tuple[int, ...], labels: int = 3, **recipe: Any) -> Layout:
    specs = tuple(TensorSpec("out", shape, "float32") for shape in shapes)
    return Layout(DetectionOutputs(**recipe), SIZE, specs, labels)


def yolov5_rows(count: int = 30) -> NDArray[np.float32]:
    rows = np.full((count, 8), 0.01, np.float32)
    rows[7] = (*XYWH, 0.9, 0.1, 0.2, 0.8)
    return rows


def yolov8_rows(count: int = 30) -> NDArray[np.float32]:
    return np.delete(yolov5_rows(count), 4, axis=1)


def check_one(found: Candidates, score: float, number: int = 2) -> None:
    np.testing.assert_allclose(found.boxes, [CORNERS], atol=0.01)
    np.testing.assert_allclose(found.scores, [score], atol=1e-5)
    assert found.classes.tolist() == [number]


@pytest.mark.parametrize(("score", "value"), [("product", 0.72), ("objectness", 0.9)])
def test_yolov5_rows_and_columns(score: Any, value: float) -> None:
    rows = yolov5_rows()
    for tensor in (rows[None], rows.T[None]):
        how = layout(tensor.shape, convention="yolov5", score=score)
        check_one(reading.read_yolov5([tensor], how), value)


def test_yolov8_columns_and_rows() -> None:
    rows = yolov8_rows()
    for tensor in (rows.T[None], rows[None]):
        check_one(reading.read_yolov8([tensor], layout(tensor.shape, convention="yolov8")), 0.8)


def test_a_square_output_is_read_as_its_convention_has_it() -> None:
    how = DetectionOutputs(convention="yolov5"), DetectionOutputs(convention="yolov8")
    assert reading.boxes_by_row((1, 8, 8), how[0], 3)
    assert not reading.boxes_by_row((1, 7, 7), how[1], 3)


def test_quantized_output_equals_the_real_one() -> None:
    """Seeed's: pixels and percent in one int8 tensor."""
    real = yolov5_rows() * floats([1, 1, 1, 1, 100, 100, 100, 100])
    spec = TensorSpec("out", (1, 30, 8), "int8", 1.85, -122)
    tensor = np.clip(np.rint(real / spec.scale + spec.zero_point), -128, 127).astype(np.int8)
    recipe = DetectionOutputs(convention="yolov5", score_scale=0.01, score="objectness")
    found = reading.read_yolov5([tensor[None]], Layout(recipe, SIZE, (spec,), 3))
    np.testing.assert_allclose(found.boxes, [CORNERS], atol=2 * spec.scale)
    np.testing.assert_allclose(found.scores, [0.9], atol=0.01)


def test_logits_become_scores() -> None:
    rows = yolov8_rows()
    rows[:, 4:] = np.log(rows[:, 4:] / (1 - rows[:, 4:]))
    how = layout((1, 7, 30), convention="yolov8", activation="sigmoid")
    check_one(reading.read_yolov8([rows.T[None]], how), 0.8)


@pytest.mark.parametrize("unit", ["pixels", "share"])
@pytest.mark.parametrize("order", ["xywh", "xyxy", "yxyx"])
def test_box_formats_and_units(order: str, unit: str) -> None:
    left, top, right, bottom = CORNERS
    box = floats({"xywh": XYWH, "xyxy": CORNERS, "yxyx": (top, left, bottom, right)}[order])
    if unit == "share":
        across, down = SIZE
        box = box / floats([down, across] * 2 if order == "yxyx" else [across, down] * 2)
    rows = np.zeros((1, 300, 6), np.float32)
    rows[0, 0] = (*box, 0.8, 2)
    how = layout(rows.shape, convention="nms", box_format=order, box_unit=unit)
    check_one(reading.read_nms([rows], how), 0.8)


def test_post_process_goes_no_further_than_its_count() -> None:
    left, top, right, bottom = CORNERS
    box = [top / 100, left / 200, bottom / 100, right / 200]
    tensors = [
        floats([[box, box]]),
        floats([[2, 1]]),
        floats([[0.8, 0.7]]),
        floats([1]),
    ]
    how = layout(
        *(tensor.shape for tensor in tensors),
        convention="post_process",
        outputs=(0, 1, 2, 3),
        box_format="yxyx",
        box_unit="share",
    )
    check_one(reading.read_post_process(tensors, how), 0.8)


def test_fomo_neighbouring_cells_are_one_object() -> None:
    cells = np.zeros((1, 10, 20, 3), np.float32)
    cells[0, 2, 3], cells[0, 3, 4] = (0.1, 0.3, 0.6), (0.2, 0, 0.8)  # touch at a corner
    cells[0, 2, 4] = (0.2, 0.7, 0.1)  # another class
    how = layout(cells.shape, convention="fomo", class_offset=-1, score_threshold=0.5, labels=2)
    found = reading.read_fomo([cells], how)
    assert found.classes.tolist() == [1, 2]
    np.testing.assert_allclose(found.scores, [0.7, 0.8])
    np.testing.assert_allclose(found.boxes, [[40, 20, 50, 30], [30, 20, 50, 40]])


def test_fomo_background_among_the_labels_is_no_object() -> None:
    cells = np.zeros((1, 2, 2, 3), np.float32)
    cells[..., 0] = 1
    how = layout(cells.shape, convention="fomo", background=0)
    assert reading.read_fomo([cells], how).scores.size == 0


def test_blazeface_anchors_follow_mediapipe() -> None:
    anchors = reading.make_anchors([(8, 2), (16, 6)], (128, 128))
    assert len(anchors) == 896
    # The published first and last ones, in shares 0.03125 and 0.9375.
    np.testing.assert_allclose(
        anchors[:3] / 128, [[0.03125] * 2, [0.03125] * 2, [0.09375, 0.03125]]
    )
    np.testing.assert_allclose(anchors[-1] / 128, [0.9375, 0.9375])


def test_blazeface_boxes_are_offsets_from_anchors() -> None:
    anchors = floats([[10, 20], [45, 30]])
    regressors = np.zeros((1, 2, 16), np.float32)
    regressors[0, 1, :4] = 5, 10, 20, 10
    logits = floats([[[-5], [4]]])
    how = layout(
        regressors.shape, logits.shape, convention="blazeface", outputs=(0, 1), activation="sigmoid"
    )
    found = reading.read_blazeface([regressors, logits], how, anchors)
    check_one(found, 1 / (1 + np.exp(-4)), number=0)


@pytest.mark.parametrize("kind", ["classes", "one channel", "scores"])
def test_class_map_gives_a_share_and_a_box(kind: str) -> None:
    pixels = np.zeros((10, 20), np.int64)
    pixels[2:4, 3:8] = 2
    tensor: NDArray[Any] = pixels[None]
    if kind == "one channel":
        tensor = pixels[None, ..., None].astype(np.uint8)
    if kind == "scores":
        tensor = np.eye(3, dtype=np.float32)[pixels][None]
    how = layout(tensor.shape, convention="class_map", background=0, score_threshold=0.01)
    classes = reading.read_class_map(tensor, TensorSpec("out", tensor.shape, tensor.dtype.name))
    assert classes is not None
    found = reading.objects_in_map(classes, (0, 0, *SIZE), how)
    assert found.classes.tolist() == [2]
    np.testing.assert_allclose(found.scores, [10 / 200])
    np.testing.assert_allclose(found.boxes, [[30, 20, 80, 40]])
    # The bars of a letterbox are no part of the frame.
    inner = reading.objects_in_map(classes, (0, 0, 200, 50), how)
    np.testing.assert_allclose(inner.scores, [10 / 100])


def test_scores_that_are_no_numbers_reach_the_caller() -> None:
    for value in (np.nan, np.inf):
        rows = yolov8_rows()
        rows[3, 5] = value
        found = reading.read_yolov8([rows.T[None]], layout((1, 7, 30), convention="yolov8"))
        assert not np.isfinite(found.scores).all()
        rows = yolov5_rows()
        rows[3, 4] = value
        found = reading.read_yolov5([rows[None]], layout((1, 30, 8), convention="yolov5"))
        assert not np.isfinite(found.scores).all()


def plain_nms(found: Candidates, iou: float, most: int) -> list[int]:
    """The first `most` of greedy suppression by class, as it is defined."""
    kept: list[int] = []
    boxes = np.hstack([found.boxes[:, :2], found.boxes[:, 2:] - found.boxes[:, :2]])
    for i in np.argsort(-found.scores, kind="stable"):
        rivals = (k for k in kept if found.classes[k] == found.classes[i])
        if all(reading.overlap(boxes[k], boxes[i]) <= iou for k in rivals):
            kept.append(int(i))
            if len(kept) == most:
                break
    return kept


@given(
    seed=st.integers(0, 10_000),
    count=st.sampled_from([0, 1, 20, 700]),
    spread=st.integers(1, 400),
)
def test_suppression_is_by_class(seed: int, count: int, spread: int) -> None:
    """Also for boxes beyond the left and upper edge, and for more than are looked at first."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-50, spread, (count, 2))
    boxes = np.hstack([corner, corner + rng.uniform(5, 60, (count, 2))]).astype(np.float32)
    scores = floats((rng.permutation(count) + 1) / (count + 1))
    found = Candidates(boxes, scores, rng.integers(0, 3, count))
    got = reading.suppress_overlaps(found, 0.45, 50)
    np.testing.assert_array_equal(got.scores, scores[plain_nms(found, 0.45, 50)])
