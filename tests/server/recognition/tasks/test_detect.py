"""detect: verdicts, answers, golden frames and the bundles that it refuses."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from images import encode
from tiny_models import RECIPE, MakeModel, change_manifest, write_bundle

from server.errors import BundleError
from server.recognition import frame
from server.recognition.admission import Admission
from server.recognition.answers import Options
from server.recognition.detection.manifest import (
    DetectionBaseline,
    DetectionGolden,
    DetectionOutputs,
    DetectionPolicy,
    GoldenObject,
)
from server.recognition.interpreter import InterpreterPool
from server.recognition.manifest import DevicePolicy, read_bundle
from server.recognition.recognizer import Recognizer
from server.recognition.tasks.detect import Detection, detections_of, judge
from server.recognition.tasks.task import Verdict
from server.recognition.tensor_model import make_model

MAP = DetectionOutputs(convention="class_map", background=0, score_threshold=0.01)
LABELS = ("dark", "bright")


def square() -> bytes:
    """A frame of 80 x 60 pixels with a bright square of 20 at 40, 15."""
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[15:35, 40:60] = 255
    return encode(pixels, "PNG")


def load(folder: Path) -> Recognizer:
    bundle = read_bundle(folder)
    pool = InterpreterPool(bundle.model_path, 1)
    model = make_model(bundle, pool, Admission(1, 1), frame.Limits())
    assert isinstance(model, Recognizer)
    return model


@pytest.fixture
def finder(tiny_model: MakeModel, tmp_path: Path) -> Any:
    """A function from manifest fields to the folder of a detector of bright things."""

    def write(golden_frames: tuple[DetectionGolden, ...] = (), **fields: Any) -> Path:
        fields = {"task": "detect", "detection": MAP, "labels": LABELS, **fields}
        files = tuple((golden.file, square()) for golden in golden_frames)
        folder = tmp_path / "finder" / "1"
        write_bundle(folder, tiny_model("bright_map"), golden=files, **fields)
        if golden_frames:
            change_manifest(folder, golden=golden_frames)
        return folder

    return write


def some(*objects: tuple[str, float]) -> list[Detection]:
    return [Detection(0, label, p, (0, 0, 1, 1)) for label, p in objects]


SCREWS = DetectionPolicy(expected={"screw": 2}, forbidden=("crack",), min_probability=0.5)


@pytest.mark.parametrize(
    ("objects", "policy", "verdict", "reason"),
    [
        ((("screw", 0.9), ("screw", 0.8)), SCREWS, "pass", "counts"),
        ((("screw", 0.9),), SCREWS, "fail", "expected"),
        ((), SCREWS, "fail", "expected"),
        ((("screw", 0.9), ("screw", 0.8), ("crack", 0.6)), SCREWS, "fail", "forbidden"),
        # Objects that are not sure decide.
        ((("screw", 0.9), ("screw", 0.4)), SCREWS, "unsure", "min_probability"),
        ((("screw", 0.9), ("screw", 0.8), ("crack", 0.4)), SCREWS, "unsure", "min_probability"),
        ((("screw", 0.9), ("screw", 0.8), ("nut", 0.4)), SCREWS, "pass", "counts"),
        ((("screw", 0.9),), DetectionPolicy(minimum={"screw": 2}), "fail", "minimum"),
        ((("screw", 0.9),), DetectionPolicy(maximum={"screw": 0}), "fail", "maximum"),
        ((("screw", 0.9),), DetectionPolicy(accept=("screw",)), "pass", "accept"),
        ((("nut", 0.9),), DetectionPolicy(accept=("screw",)), "fail", "not_accepted"),
        ((), DetectionPolicy(accept=("screw",)), "unsure", "no_label"),
    ],
)
def test_verdict_follows_the_rules(
    objects: Any, policy: DetectionPolicy, verdict: Any, reason: str
) -> None:
    assert judge(some(*objects), policy) == Verdict(verdict, reason)


@pytest.mark.parametrize(
    ("region", "size", "verdict"),
    [
        # The centre of the box [40, 15, 20, 20] is 50, 25.
        ((0, 0, 1, 1), (80, 60), "pass"),
        ((0.6, 0.4, 0.2, 0.2), (80, 60), "pass"),
        ((0.625, 0.4, 0.2, 0.2), (80, 60), "pass"),
        ((0.65, 0.4, 0.2, 0.2), (80, 60), "fail"),
        ((0.6, 0.5, 0.2, 0.2), (80, 60), "fail"),
        ((0, 0, 0.6, 1), (80, 60), "fail"),
        ((0, 0, 0.6, 1), (160, 60), "pass"),
    ],
)
def test_only_objects_in_the_region_count(region: Any, size: Any, verdict: str) -> None:
    policy = DetectionPolicy(expected={"screw": 1}, region=region)
    screw = Detection(0, "screw", 0.9, (40, 15, 20, 20))
    assert judge([screw], policy, size).verdict == verdict


def test_region_is_in_shares_of_the_frame_as_sent(finder: Any) -> None:
    """The answer has the objects outside too."""
    right, left = (
        DetectionPolicy(forbidden=("bright",), min_probability=0.01, region=region)
        for region in ((0.5, 0.0, 0.5, 1.0), (0.0, 0.0, 0.5, 1.0))
    )
    model = load(finder(verdict=right))
    assert model.recognize(square(), Options()).verdict_reason == "forbidden"
    model.use_policy(DevicePolicy(left))
    answer = model.recognize(square(), Options())
    assert (answer.verdict, len(answer.details)) == ("pass", 1)


def test_answer_has_boxes_of_the_frame(finder: Any) -> None:
    answer = load(finder()).recognize(square(), Options())
    [one] = answer.details
    assert (one.class_id, one.label) == (1, "bright")
    np.testing.assert_allclose(one.box, (40, 15, 20, 20), atol=2.5)
    assert one.probability == pytest.approx(1 / 12, abs=0.02)
    assert answer.label == answer.predictions[0].label == "bright"
    assert detections_of(answer) == answer.details


def test_verdict_ignores_the_callers_threshold(finder: Any) -> None:
    policy = DetectionPolicy(forbidden=("bright",), min_probability=0.01)
    answer = load(finder(verdict=policy)).recognize(square(), Options(threshold=0.9))
    assert answer.details == ()
    assert (answer.verdict, answer.verdict_reason) == ("fail", "forbidden")


def test_frame_without_objects_has_an_empty_answer(finder: Any) -> None:
    black = encode(np.zeros((60, 80, 3), np.uint8), "PNG")
    answer = load(finder()).recognize(black, Options())
    assert (answer.details, answer.predictions, answer.best) == ((), (), None)


@pytest.mark.parametrize(
    ("detections", "fault"),
    [
        ([("bright", 0.08, (40, 15, 20, 20))], None),
        ([("bright", 0.08, (30, 15, 20, 20))], "which this model misses"),
        ([("dark", 0.08, (40, 15, 20, 20))], "which this model misses"),
        ([("bright", 0.38, (40, 15, 20, 20))], "with 0.380 but this model says"),
    ],
)
def test_golden_frames_compare_boxes(finder: Any, detections: Any, fault: str | None) -> None:
    objects = tuple(GoldenObject(label=x, probability=p, box=box) for x, p, box in detections)
    golden = DetectionGolden(
        file="golden/a.png",
        label=objects[0].label,
        probability=objects[0].probability,
        detections=objects,
    )
    folder = finder(golden_frames=(golden,))
    if fault is None:
        load(folder)
    else:
        with pytest.raises(BundleError, match=fault):
            load(folder)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"detection": DetectionOutputs(convention="yolov8")}, r"\[1, 32, 32\] are not those of"),
        ({"detection": DetectionOutputs(convention="nms")}, "are not those of nms"),
        ({"detection": DetectionOutputs(convention="fomo")}, "are not those of fomo"),
        ({"detection": DetectionOutputs(convention="blazeface")}, "reads 2 outputs"),
        (
            {"detection": DetectionOutputs(convention="class_map", outputs=(3,))},
            "names the output 3, but the model has 1",
        ),
        ({"verdict": DetectionPolicy()}, "has no rule"),
        ({"verdict": DetectionPolicy(expected={"screw": 1})}, "screw, which labels.txt lacks"),
        (
            {"verdict": DetectionPolicy(forbidden=("dark",), region=(0.5, 0, 0.6, 1))},
            "verdict.region reaches beyond the frame",
        ),
        (
            {"verdict": DetectionPolicy(minimum={"dark": 2}, maximum={"dark": 1})},
            "verdict contradicts itself about dark",
        ),
        (
            {"verdict": DetectionPolicy(expected={"dark": 1}, forbidden=("dark",))},
            "verdict contradicts itself about dark",
        ),
        (
            {"verdict": DetectionPolicy(accept=("dark",), min_familiarity=0.6)},
            "verdict.min_familiarity needs a model that says how familiar",
        ),
    ],
)
def test_bundle_that_does_not_fit_is_refused(finder: Any, fields: Any, words: str) -> None:
    with pytest.raises(BundleError, match=words):
        load(finder(**fields))


def test_unknown_key_of_a_detector_is_refused(finder: Any) -> None:
    folder = finder()
    text = (folder / "bundle.json").read_text()
    (folder / "bundle.json").write_text(text.replace('"iou_threshold"', '"iou_treshold"'))
    with pytest.raises(BundleError, match="iou_treshold"):
        read_bundle(folder)


def test_count_is_a_drift_signal(finder: Any) -> None:
    count = (0.5, 0.5, *[0.0] * 14)
    baseline = DetectionBaseline(
        classes={"bright": 1.0}, confidence=(0.1,) * 10, brightness=(), count=count
    )
    model = load(finder(baseline=baseline))
    signals = model.task.read_baseline(baseline)
    assert set(signals) == {"class", "confidence", "count"}
    assert signals["count"].bin(model.recognize(square(), Options())) == 1


def test_further_inputs_get_zeros(tiny_model: MakeModel, tmp_path: Path) -> None:
    """The recipe names them; a name that the model lacks is refused."""
    recipe = msgspec.structs.replace(RECIPE, zero_inputs=("state",))
    folder = write_bundle(
        tmp_path / "finder" / "1",
        tiny_model("bright_map"),
        labels=LABELS,
        recipe=recipe,
        task="detect",
        detection=MAP,
    )
    with pytest.raises(BundleError, match="zero_inputs names all of them but the image"):
        load(folder)
