"""Several regions of a frame, each answered on its own, on every route of a live server."""

import base64
from collections.abc import Iterator
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
import requests
from browsers import browser, opened, sync_api
from images import encode
from job_workers import await_that, settled, submit
from server_process import LiveServer, live_server
from tiny_models import RECIPE, MakeModel, change_manifest, write_bundle

from server.errors import BundleError
from server.recognition.admission import Admission
from server.recognition.detection.manifest import DetectionOutputs, DetectionPolicy
from server.recognition.frame import Limits
from server.recognition.interpreter import InterpreterPool
from server.recognition.manifest import NamedRegion, VerdictPolicy, read_bundle
from server.recognition.tasks.anomaly import LABELS, AnomalyPolicy
from server.recognition.tensor_model import make_model

__all__ = ["browser"]

LEFT = NamedRegion(name="left", box=(0, 0, 0.5, 1))
RIGHT = NamedRegion(name="right", box=(0.5, 0, 0.5, 1))
HALVES = msgspec.structs.replace(RECIPE, regions=(LEFT, RIGHT))
BOXES = [("left", [0, 0, 80, 80]), ("right", [80, 0, 80, 80])]


def halves(left: Any, right: Any) -> bytes:
    """A frame of 160 x 80 pixels with two halves of an RGB colour each."""
    pixels = np.zeros((80, 160, 3), np.uint8)
    pixels[:, :80], pixels[:, 80:] = left, right
    return encode(pixels, "PNG")


RED, GREEN, BLUE = ((255, 0, 0), (0, 255, 0), (0, 0, 255))


@pytest.fixture(scope="module")
def server(tiny_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server of a classifier, a detector and an anomaly model with two regions each."""
    models = tmp_path_factory.mktemp("regions")
    folder = write_bundle(
        models / "colors" / "1",
        tiny_model("colors"),
        recipe=HALVES,
        golden=(("golden/1.png", halves(RED, GREEN)),),
        verdict=VerdictPolicy(accept=("red",)),
    )
    golden = {"file": "golden/1.png", "label": "green", "probability": 1.0, "region": "right"}
    change_manifest(folder, golden=[golden])
    write_bundle(
        models / "finder" / "1",
        tiny_model("bright_map"),
        ("dark", "bright"),
        HALVES,
        task="detect",
        detection=DetectionOutputs(convention="class_map", background=0, score_threshold=0.01),
        verdict=DetectionPolicy(expected={"bright": 1}, min_probability=0),
    )
    write_bundle(
        models / "surface" / "1",
        tiny_model("spots"),
        LABELS,
        HALVES,
        task="anomaly",
        verdict=AnomalyPolicy(),
    )
    with live_server(
        models=models, model="colors", cache="true", samples="on", samples_labels="blue"
    ) as running:
        yield running


def answer_of(response: requests.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()


def check_colors(answer: dict[str, Any], left: str, right: str, worst: int) -> None:
    regions = answer["regions"]
    assert [(each["name"], each["box"]) for each in regions] == BOXES
    assert [each["predictions"][0]["label"] for each in regions] == [left, right]
    assert [each["recognized"] for each in regions] == [True, True]
    for field in ("predictions", "recognized", "verdict", "verdict_reason"):
        assert answer[field] == regions[worst][field]


@pytest.mark.parametrize(
    ("left", "right", "worst", "verdicts"),
    [
        (RED, GREEN, 1, ["pass", "fail"]),
        (GREEN, RED, 0, ["fail", "pass"]),
        (GREEN, BLUE, 0, ["fail", "fail"]),
        (RED, RED, 0, ["pass", "pass"]),
    ],
)
def test_frame_has_the_verdict_of_its_worst_region(
    server: LiveServer, left: Any, right: Any, worst: int, verdicts: list[str]
) -> None:
    names = {RED: "red", GREEN: "green", BLUE: "blue"}
    answer = answer_of(server.recognize(halves(left, right)))
    check_colors(answer, names[left], names[right], worst)
    assert [each["verdict"] for each in answer["regions"]] == verdicts


def test_cached_answer_has_the_regions(server: LiveServer) -> None:
    frame = halves(RED, BLUE)
    first, second = (answer_of(server.recognize(frame)) for _ in range(2))
    assert (first["cached"], second["cached"]) == (False, True)
    assert second["regions"] == first["regions"]


def test_batch_and_job_answer_the_regions(server: LiveServer) -> None:
    frame = halves(RED, GREEN)
    url = f"{server.url}/v1/recognize/batch"
    batch = answer_of(requests.post(url, files={"file": ("a.png", frame)}, timeout=60))
    check_colors(batch["results"][0]["result"], "red", "green", 1)
    [job] = settled(server, submit(server, frame))["frames"]
    check_colors(job["result"], "red", "green", 1)


@pytest.mark.parametrize("model", ["finder", "surface"])
def test_boxes_of_regions_are_in_the_frames_pixels(server: LiveServer, model: str) -> None:
    """A bright square of 40 pixels at 110, 20."""
    pixels = np.zeros((80, 160, 3), np.uint8)
    pixels[20:60, 110:150] = 255
    answer = answer_of(server.recognize(encode(pixels, "PNG"), model=model, heatmap="true"))
    left, right = answer["regions"]
    if model == "finder":
        assert (left["detections"], left["verdict"]) == ([], "fail")
        found, verdict = right["detections"], "pass"
    else:
        assert left["anomaly"]["regions"] == []
        assert (left["heatmap_box"], right["heatmap_box"]) == ([0, 0, 80, 80], [80, 0, 80, 80])
        found, verdict = right["anomaly"]["regions"], "fail"
    assert right["verdict"] == verdict
    [box] = [each["box"] for each in found]
    assert box == pytest.approx([110, 20, 40, 40], abs=16)


def test_rendered_frame_shows_all_regions(server: LiveServer) -> None:
    """Both halves have red heat where they are bright."""
    pixels = np.zeros((80, 160, 3), np.uint8)
    pixels[40:60, 20:40] = pixels[40:60, 100:120] = 255
    response = server.recognize(encode(pixels, "PNG"), model="surface", render="true")
    assert response.headers["X-Verdict"] == "fail"
    drawn = cv2.imdecode(np.frombuffer(response.content, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert drawn is not None
    times = drawn.shape[1] // 160
    for x in (30, 110):
        red, _, blue = drawn[50 * times, x * times].astype(int)
        assert red > blue + 40


def test_page_shows_all_regions(browser: Any, server: LiveServer) -> None:
    """The verdict and the label of each region, and its heat map, in the picture's colours."""
    pixels = np.zeros((80, 160, 3), np.uint8)
    pixels[40:60, 20:40] = pixels[40:60, 100:120] = 255
    picture = {"name": "a.png", "mimeType": "image/png", "buffer": encode(pixels, "PNG")}
    with opened(browser, server.url) as page:
        page.select_option("#model", "surface")
        page.set_input_files("#file", picture)
        facts = page.locator("#facts")
        sync_api.expect(facts).to_contain_text("left")
        sync_api.expect(facts).to_contain_text("right")
        sync_api.expect(facts).to_contain_text("fail, anomaly, anomaly")
        painted = """([x, y]) => {
            const canvas = document.querySelector("#overlay");
            const at = [canvas.width * x, canvas.height * y].map(Math.floor);
            return canvas.getContext("2d").getImageData(...at, 1, 1).data[3];
        }"""
        for x, y in ((30 / 160, 50 / 80), (110 / 160, 50 / 80)):
            page.wait_for_function(f"(at) => ({painted})(at) > 0", arg=[x, y])


def test_metrics_and_samples_know_all_regions(server: LiveServer) -> None:
    """Each region counts its label; the frame is kept for the label of any region."""

    def counted() -> float:
        return server.sample("lineside_predictions_total", model="colors", label="blue")

    def samples() -> Any:
        return answer_of(requests.get(f"{server.url}/v1/samples", timeout=60))["samples"]

    before = counted()
    answer = answer_of(server.recognize(halves(GREEN, (0, 0, 240)), part="two"))
    assert answer["predictions"][0]["label"] == "green"
    await_that(lambda: counted() == before + 1, "the region is counted")
    await_that(lambda: any(each["part"] == "two" for each in samples()), "the frame is kept")


def test_image_routes_of_other_protocols_refuse(server: LiveServer) -> None:
    image = base64.b64encode(halves(RED, GREEN)).decode()
    sentence = "the model colors is shown 2 views of a frame"
    tensor: Any = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [image]}
    triton = requests.post(
        f"{server.url}/v2/models/colors/infer", json={"inputs": [tensor]}, timeout=60
    )
    serving = requests.post(
        f"{server.url}/v1/models/colors:predict",
        json={"instances": [{"b64": image}]},
        timeout=60,
    )
    for response in (triton, serving):
        assert response.status_code == 400
        assert sentence in response.json()["error"]
    numbers = np.zeros((1, 32, 32, 3), np.float32).tolist()
    taken = requests.post(
        f"{server.url}/v1/models/colors:predict", json={"instances": numbers}, timeout=60
    )
    assert taken.status_code == 200


def test_golden_frame_is_of_a_region(tiny_model: MakeModel, tmp_path: Any) -> None:
    folder = write_bundle(
        tmp_path / "colors" / "1",
        tiny_model("colors"),
        recipe=HALVES,
        golden=(("golden/1.png", halves(RED, GREEN)),),
    )
    for region, fault in (
        ("right", "should be red"),
        ("", "is of the region '', which the recipe lacks"),
        ("middle", "is of the region 'middle', which the recipe lacks"),
    ):
        golden = {"file": "golden/1.png", "label": "red", "probability": 1, "region": region}
        change_manifest(folder, golden=[golden])
        bundle = read_bundle(folder)
        with pytest.raises(BundleError, match=fault):
            make_model(bundle, InterpreterPool(bundle.model_path, 1), Admission(1, 1), Limits())
