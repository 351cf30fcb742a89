"""Detectors on a live server: every convention on every route, and frames that show nothing."""

import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from browsers import browser, opened, sync_api
from detector_bundles import DETECTORS, TINY_DETECTORS, TINY_OUTPUTS, bundle_of, picture_of
from images import encode
from job_workers import await_that, settled, submit
from server_process import LiveServer, live_server
from tiny_models import MakeModel, write_bundle

from server.recognition.detection.manifest import DetectionOutputs
from server.recognition.detection.outputs import overlap

__all__ = ["browser"]

TINY = sorted(TINY_DETECTORS)
BLACK = encode(np.zeros((60, 80, 3), np.uint8), "PNG")


@pytest.fixture(scope="module")
def detectors(
    detector_bundles: Path, tiny_model: MakeModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    """A server of all detectors, and of `finder`, which finds bright things."""
    models = tmp_path_factory.mktemp("models")
    shutil.copytree(detector_bundles, models, dirs_exist_ok=True)
    write_bundle(
        models / "finder" / "1",
        tiny_model("bright_map"),
        labels=("dark", "bright"),
        task="detect",
        detection=DetectionOutputs(convention="class_map", background=0, score_threshold=0.01),
    )
    with live_server(
        models=models, model="finder", samples="on", samples_share=1, samples_per_minute=1000
    ) as server:
        yield server


def answer_of(response: requests.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()


def check(name: str, answer: dict[str, Any]) -> None:
    """An answer of /v1/recognize has what the detector should find, and labels of that."""
    detector, found = DETECTORS[name], answer["detections"]
    if detector.only:
        assert len(found) == len(detector.wanted)
    for label, probability, box, least in detector.wanted:
        assert any(
            each["label"] == label
            and each["probability"] == pytest.approx(probability, abs=0.04)
            and (box is None or overlap(each["box"], box) >= least)
            for each in found
        ), found
    assert answer["recognized"] is bool(found)
    assert {each["label"] for each in answer["predictions"]} == {each["label"] for each in found}


@pytest.mark.parametrize("name", DETECTORS)
def test_each_convention_is_answered(
    detectors: LiveServer, detector_bundles: Path, name: str
) -> None:
    bundle_of(detector_bundles, name)
    answer = answer_of(detectors.recognize(picture_of(name), model=name))
    check(name, answer)
    assert answer["verdict"] == ("pass" if name in TINY_DETECTORS else None)


@pytest.mark.parametrize("name", DETECTORS)
def test_job_answers_as_the_synchronous_route(
    detectors: LiveServer, detector_bundles: Path, name: str
) -> None:
    bundle_of(detector_bundles, name)
    direct = answer_of(detectors.recognize(picture_of(name), model=name))
    [frame] = settled(detectors, submit(detectors, picture_of(name), model=name))["frames"]
    for field in ("detections", "predictions", "recognized", "verdict", "verdict_reason"):
        assert frame["result"].get(field) == direct.get(field)


def test_batch_answers_each_frame(detectors: LiveServer) -> None:
    files = [("file", ("a.png", picture_of(TINY[0]))), ("file", ("b.png", b"no image"))]
    url = f"{detectors.url}/v1/recognize/batch"
    answer = answer_of(requests.post(url, files=files, params={"model": TINY[0]}, timeout=60))
    check(TINY[0], answer["results"][0]["result"])
    assert answer["results"][1]["error"]["code"] == "UNSUPPORTED_IMAGE"


def test_threshold_and_top_k_choose_what_is_shown(detectors: LiveServer) -> None:
    name = "yolov8_pixels"
    answer = answer_of(detectors.recognize(picture_of(name), model=name, threshold=0.95))
    assert (answer["detections"], answer["predictions"]) == ([], [])
    assert answer["verdict"] == "pass"


@pytest.mark.parametrize("name", DETECTORS)
def test_triton_answers_the_outputs(
    detectors: LiveServer, detector_bundles: Path, name: str
) -> None:
    """The tensors as they are, also if the model takes states beside the image."""
    bundle_of(detector_bundles, name)
    url = f"{detectors.url}/v2/models/{name}"
    described = answer_of(requests.get(url, timeout=60))
    data = base64.b64encode(picture_of(name)).decode()
    given: Any = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [data]}
    answer = answer_of(requests.post(f"{url}/infer", json={"inputs": [given]}, timeout=60))
    assert [each["name"] for each in answer["outputs"]] == [
        each["name"] for each in described["outputs"]
    ]
    for i, expected in enumerate(TINY_OUTPUTS.get(name, ())):
        values = answer["outputs"][i]
        assert values["shape"] == list(expected.shape)
        assert values["data"] == pytest.approx(expected.reshape(-1).tolist())


@pytest.mark.parametrize("name", TINY)
def test_tensorflow_serving_answers_the_outputs(detectors: LiveServer, name: str) -> None:
    url = f"{detectors.url}/v1/models/{name}"
    picture = {"b64": base64.b64encode(picture_of(name)).decode()}
    body = json.dumps({"inputs": [picture]})
    answer = answer_of(requests.post(f"{url}:predict", body, timeout=60))["outputs"]
    outputs = TINY_OUTPUTS[name]
    values = list(answer.values()) if len(outputs) > 1 else [answer]
    for value, expected in zip(values, outputs, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-6)
    examples = json.dumps({"examples": [{"image": picture}]})
    refused = requests.post(f"{url}:classify", examples, timeout=60)
    assert refused.status_code == 400
    assert "has no labels to answer with" in refused.json()["error"]


def test_tutorial_routes_name_the_surest_object(detectors: LiveServer) -> None:
    name = TINY[0]

    def post(path: str, field: str) -> Any:
        files = {field: ("a.png", picture_of(name))}
        url = f"{detectors.url}{path}?model={name}"
        return answer_of(requests.post(url, files=files, timeout=60))

    [one] = post("/classify", "image")["predictions"]
    assert one["class"] == "washer"
    for path in ("/api/recognize", "/api/recognize_cached"):
        [one] = post(path, "file")["predictions"]
        assert (one["class_id"], one["label"]) == (2, "washer")
    assert post("/predict", "file") == {"class_id": "2", "class_name": "washer"}


def test_nothing_found_is_no_label(detectors: LiveServer) -> None:
    """A frame without objects has no label on any route: null, or a list of none."""
    response = detectors.recognize(BLACK)
    answer = answer_of(response)
    assert (answer["detections"], answer["predictions"]) == ([], [])
    assert (answer["recognized"], answer["verdict"]) == (False, None)
    line = detectors.request_line(response.headers["X-Request-Id"])
    assert (line["label"], line["probability"]) == (None, None)

    def post(path: str, field: str) -> Any:
        files = {field: ("a.png", BLACK)}
        return answer_of(requests.post(detectors.url + path, files=files, timeout=60))

    assert post("/classify", "image") == {"predictions": []}
    for path in ("/api/recognize", "/api/recognize_cached", "/api/recognize_cached"):
        assert post(path, "file") == {"predictions": []}
    assert post("/predict", "file") == {"class_id": None, "class_name": None}
    [frame] = settled(detectors, submit(detectors, BLACK))["frames"]
    assert (frame["result"]["detections"], frame["result"]["recognized"]) == ([], False)

    def rows() -> Any:
        url = f"{detectors.url}/v1/journal?model=finder"
        return answer_of(requests.get(url, timeout=60))["rows"][5:]

    for row in await_that(rows, "rows of frames without objects"):
        assert (row["label"], row["probability"], row["status"]) == (None, None, 200)


def test_samples_are_kept_with_and_without_objects(detectors: LiveServer) -> None:
    name = TINY[0]
    detectors.recognize(picture_of(name), model=name)
    detectors.recognize(BLACK)

    def kept(model: str) -> Any:
        answer = requests.get(f"{detectors.url}/v1/samples", params={"model": model}, timeout=60)
        return answer.status_code == 200 and answer.json()["samples"]

    [empty] = await_that(lambda: kept("finder"), "a sample without objects")
    assert (empty["best"], empty["predictions"]) == (None, [])
    url = f"{detectors.url}/v1/samples/{empty['id']}/label"
    assert requests.post(url, json={"label": "bright"}, timeout=60).status_code == 200


def test_objects_are_counted_and_journalled(detectors: LiveServer) -> None:
    name = "yolov8_rows"
    answer_of(detectors.recognize(picture_of(name), model=name))

    def rows() -> Any:
        url = f"{detectors.url}/v1/journal?model={name}"
        return answer_of(requests.get(url, timeout=60))["rows"]

    row = await_that(rows, "a row of the journal")[0]
    assert (row["label"], row["verdict"]) == ("washer", "pass")
    assert row["probability"] == pytest.approx(0.9)
    assert detectors.sample("lineside_detections_total", model=name, label="washer") >= 1


def test_cached_answer_has_the_same_objects(detector_bundles: Path) -> None:
    name = TINY[0]
    with live_server(models=detector_bundles, model=name, cache="true") as server:
        first, again = (answer_of(server.recognize(picture_of(name))) for _ in range(2))
        assert (first["cached"], again["cached"]) == (False, True)
        check(name, again)
        assert again["detections"] == first["detections"]
        assert again["verdict_reason"] == first["verdict_reason"] == "accept"


def test_page_shows_what_each_detector_finds(
    browser: Any, detectors: LiveServer, detector_bundles: Path
) -> None:
    with opened(browser, detectors.url) as page:
        for name, detector in DETECTORS.items():
            if not (detector_bundles / name).exists():
                continue
            page.select_option("#model", name)
            picture = {"name": "a.png", "mimeType": "image/png", "buffer": picture_of(name)}
            page.set_input_files("#file", picture)
            sync_api.expect(page.locator("#raw pre")).to_contain_text(f'"model": "{name}"')
            if detector.wanted:
                label, probability = detector.wanted[0][:2]
                sync_api.expect(page.locator("#labels .name").first).to_have_text(label)
                share = page.locator("#labels .share").first.inner_text()
                assert float(share.split()[0]) == pytest.approx(100 * probability, abs=4)
            else:
                sync_api.expect(page.locator("#error")).to_contain_text("was found in the frame")
