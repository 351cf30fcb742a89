"""anomaly: score, regions, heat map and verdict of a model that was learned from good frames."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import requests
from images import encode
from job_workers import settled
from server_process import LiveServer, live_server
from tiny_models import RECIPE, MakeModel, change_manifest, write_bundle

from server.errors import BundleError
from server.recognition.admission import Admission
from server.recognition.answers import Options
from server.recognition.frame import Limits
from server.recognition.interpreter import InterpreterPool
from server.recognition.manifest import DevicePolicy, read_bundle
from server.recognition.recognizer import Recognizer
from server.recognition.tasks.anomaly import ANOMALY, GOOD, LABELS, AnomalyPolicy
from server.recognition.tasks.task import read_policy
from server.recognition.tensor_model import make_model
from server.values.validation import InvalidValueError

POLICY = AnomalyPolicy(min_probability=0.55)


def spotted(level: int, box: tuple[int, int, int, int] = (80, 40, 40, 20)) -> bytes:
    """A black frame of 160 x 80 pixels with a box of a grey level; by default one place of the
    map."""
    pixels = np.zeros((80, 160, 3), np.uint8)
    left, top, width, height = box
    pixels[top : top + height, left : left + width] = level
    return encode(pixels, "PNG")


@pytest.fixture(scope="module")
def surface(tiny_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with the one anomaly bundle surface/1."""
    models = tmp_path_factory.mktemp("anomaly")
    folder = write_bundle(
        models / "surface" / "1",
        tiny_model("spots"),
        LABELS,
        RECIPE,
        (("golden/good.png", spotted(0)),),
        task="anomaly",
        verdict=POLICY,
    )
    golden = {"file": "golden/good.png", "label": GOOD, "probability": 1.0}
    change_manifest(folder, golden=[golden])
    return models


@pytest.fixture(scope="module")
def server(surface: Path) -> Iterator[LiveServer]:
    with live_server(models=surface, model="surface") as running:
        yield running


def recognize(server: LiveServer, data: bytes, **params: Any) -> dict[str, Any]:
    answer = server.recognize(data, **params)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


@pytest.mark.parametrize(
    ("level", "verdict", "reason", "label"),
    [
        (0, "pass", "no_anomaly", GOOD),
        (102, "pass", "no_anomaly", GOOD),
        (122, "unsure", "near_threshold", GOOD),
        (133, "unsure", "near_threshold", ANOMALY),
        (230, "fail", "anomaly", ANOMALY),
    ],
)
def test_verdict_goes_by_the_score(
    server: LiveServer, level: int, verdict: str, reason: str, label: str
) -> None:
    answer = recognize(server, spotted(level))
    assert answer["anomaly"]["score"] == pytest.approx(level / 255, abs=0.01)
    assert answer["anomaly"]["threshold"] == 0.5
    assert (answer["verdict"], answer["verdict_reason"]) == (verdict, reason)
    assert answer["predictions"][0]["label"] == label
    assert sum(p["probability"] for p in answer["predictions"]) == pytest.approx(1)


def test_region_is_in_pixels_of_the_frame(server: LiveServer) -> None:
    """The box is that of the bright place, within half a place."""
    [region] = recognize(server, spotted(230))["anomaly"]["regions"]
    left, top, width, height = region["box"]
    assert (left, left + width) == pytest.approx((80, 120), abs=20)
    assert (top, top + height) == pytest.approx((40, 60), abs=10)
    assert region["score"] == pytest.approx(0.9, abs=0.01)


def test_good_frame_has_no_regions(server: LiveServer) -> None:
    answer = recognize(server, spotted(102))
    assert answer["anomaly"]["regions"] == []
    assert "heatmap" not in answer


def test_heatmap_is_a_picture_of_the_scores(server: LiveServer) -> None:
    answer = recognize(server, spotted(230), heatmap="true")
    data = base64.b64decode(answer["heatmap"])
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert picture is not None
    assert picture.dtype == np.uint8
    assert picture.ndim == 2
    assert picture.max() == pytest.approx(255 * answer["anomaly"]["score"], abs=1)
    assert np.unravel_index(picture.argmax(), picture.shape)[1] > picture.shape[1] // 2


def test_heatmap_box_is_the_frame(server: LiveServer) -> None:
    assert recognize(server, spotted(230), heatmap="true")["heatmap_box"] == [0, 0, 160, 80]
    assert "heatmap_box" not in recognize(server, spotted(230))


def test_picture_has_the_heat_map(server: LiveServer) -> None:
    """The bright place is hot, the rest of the frame is as it was."""
    answer = server.recognize(spotted(230), render="true")
    drawn = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert drawn is not None
    assert drawn.shape == (160, 320, 3)
    red, _, blue = drawn[100, 200].astype(int)
    assert red - blue > 60
    assert drawn[140, 60].max() < 20
    assert answer.headers["X-Verdict-Reason"] == "anomaly"


def test_heatmap_that_is_no_boolean_is_refused(server: LiveServer) -> None:
    answer = server.recognize(spotted(0), heatmap="perhaps")
    assert answer.status_code == 400
    assert "heatmap" in answer.json()["error"]["message"]


def test_job_answers_as_the_synchronous_route(server: LiveServer) -> None:
    sent = requests.post(
        f"{server.url}/v1/jobs",
        files={"file": ("frame.png", spotted(230))},
        params={"heatmap": "true"},
        timeout=60,
    )
    assert sent.status_code == 202
    [frame] = settled(server, sent.json()["job_id"])["frames"]
    direct = recognize(server, spotted(230), heatmap="true")
    for name in ("anomaly", "heatmap", "predictions", "verdict", "verdict_reason"):
        assert frame["result"][name] == direct[name]


def test_scores_are_counted(server: LiveServer) -> None:
    recognize(server, spotted(230))
    text = requests.get(f"{server.url}/metrics", timeout=60).text
    assert 'lineside_anomaly_score_count{model="surface"}' in text
    assert 'lineside_predictions_total{label="anomaly",model="surface"}' in text


def load(folder: Path) -> Recognizer:
    bundle = read_bundle(folder)
    pool = InterpreterPool(bundle.model_path, 1)
    model = make_model(bundle, pool, Admission(1, 1), Limits())
    assert isinstance(model, Recognizer)
    return model


@pytest.mark.parametrize(
    ("level", "verdict", "label"),
    [
        (0, "pass", GOOD),
        (133, "pass", GOOD),
        (194, "unsure", GOOD),
        (209, "unsure", ANOMALY),
        (230, "fail", ANOMALY),
        (255, "fail", ANOMALY),
    ],
)
def test_threshold_of_the_policy_decides(
    surface: Path, level: int, verdict: str, label: str
) -> None:
    """The label is as sure as the score is far from the threshold, here 0.8; the score stays."""
    model = load(surface / "surface" / "1")
    model.use_policy(DevicePolicy(AnomalyPolicy(threshold=0.8, min_probability=0.55)))
    answer = model.recognize(spotted(level), Options())
    assert (answer.verdict, answer.label) == (verdict, label)
    details = answer.details
    assert (details.threshold, bool(details.regions)) == (0.8, label == ANOMALY)
    assert details.score == pytest.approx(level / 255, abs=0.02)
    anomaly = np.interp(details.score, [0, 0.8, 1], [0, 0.5, 1])
    sure = anomaly if label == ANOMALY else 1 - anomaly
    assert answer.probability == pytest.approx(sure, abs=1e-5)
    model.check_golden()


def test_policy_that_accepts_anomalies_is_refused(surface: Path) -> None:
    bundle = read_bundle(surface / "surface" / "1")
    with pytest.raises(InvalidValueError, match=r'^policy.accept should be \["good"\]'):
        read_policy({"accept": [GOOD, ANOMALY]}, bundle)


@pytest.mark.parametrize(
    ("kind", "labels", "message"),
    [
        ("two_outputs", LABELS, "has the outputs score and map"),
        ("colors", LABELS, "has the outputs score and map"),
        ("spots", ("anomaly", "good"), "labels of an anomaly model are good and anomaly"),
    ],
)
def test_other_model_or_labels_are_refused(
    tiny_model: MakeModel, tmp_path: Path, kind: str, labels: tuple[str, ...], message: str
) -> None:
    folder = write_bundle(tmp_path / "x" / "1", tiny_model(kind), labels, RECIPE, task="anomaly")
    with pytest.raises(BundleError, match=message):
        load(folder)


def test_golden_frame_on_the_wrong_side_is_refused(tiny_model: MakeModel, tmp_path: Path) -> None:
    folder = write_bundle(
        tmp_path / "x" / "1",
        tiny_model("spots"),
        LABELS,
        RECIPE,
        (("golden/bad.png", spotted(120)),),
        task="anomaly",
    )
    golden = {"file": "golden/bad.png", "label": ANOMALY, "probability": 0.55}
    change_manifest(folder, golden=[golden])
    with pytest.raises(BundleError, match=r"should be anomaly at 0.550 .* score is 0.466"):
        load(folder)
