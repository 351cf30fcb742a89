"""POST /v1/models/NAME/compare: two versions on the same frames."""

from collections.abc import Iterator
from typing import Any

import pytest
import requests
from images import encode, plain
from job_workers import await_that
from server_process import LiveServer, live_server
from tiny_models import COLORS, MakeModel, change_manifest, write_bundle

RED = encode(plain((255, 0, 0)), "PNG")
GREEN = encode(plain((0, 255, 0)), "PNG")


@pytest.fixture(scope="module")
def server(tiny_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """Version 1 has the names of red and green exchanged, version 2 serves, version 3 is damaged.
    Every frame is kept."""
    models = tmp_path_factory.mktemp("models")
    exchanged = (COLORS[1], COLORS[0], *COLORS[2:])
    policy = {"accept": ["red"], "min_probability": 0.5}
    files = (("samples/blue.png", encode(plain((0, 0, 255)), "PNG")),)
    for version, labels in (("1", exchanged), ("2", COLORS), ("3", COLORS)):
        folder = models / "colors" / version
        write_bundle(folder, tiny_model("fast"), labels, golden=files, verdict=policy)
    change_manifest(models / "colors" / "3", sha256={"model.tflite": "0" * 64})
    kept = {"samples": "on", "samples_share": 1, "samples_per_minute": 1000}
    with live_server(models=models, model="colors", **kept) as server:
        yield server


def compare(server: LiveServer, **body: Any) -> requests.Response:
    return requests.post(f"{server.url}/v1/models/colors/compare", json=body, timeout=60)


def samples(server: LiveServer) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = requests.get(server.url + "/v1/samples", timeout=60).json()[
        "samples"
    ]
    return found


def test_two_versions_are_compared_on_kept_frames(server: LiveServer) -> None:
    assert (COLORS[0], COLORS[1]) == ("red", "green")
    for count, data in enumerate((RED, GREEN), 1):
        server.recognize(data)
        await_that(lambda count=count: len(samples(server)) == count, "a sample")  # type: ignore[misc]
    red = samples(server)[-1]["id"]
    url = f"{server.url}/v1/samples/{red}/label"
    requests.post(url, json={"label": "red"}, timeout=60).raise_for_status()
    before = requests.get(server.url + "/v1/journal", timeout=60).json()["rows"]
    answer = compare(server, with_version=1)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    sides = [(each["version"], each["right"], each["verdicts"]) for each in found["sides"]]
    assert sides == [(2, 1, {"pass": 1, "fail": 2}), (1, 0, {"fail": 2, "pass": 1})]
    assert (found["labelled"], found["different"]) == (1, 2)
    rows = [
        (each["label"], each["file"], [answer["label"] for answer in each["answers"]])
        for each in found["frames"]
    ]
    assert rows == [
        ("red", None, ["red", "green"]),
        (None, None, ["green", "red"]),
        (None, "blue.png", ["blue", "blue"]),
    ]
    assert found["frames"][0]["sample"] == red
    # No frame of the line, and version 2 serves as before.
    assert requests.get(server.url + "/v1/journal", timeout=60).json()["rows"] == before
    model = requests.get(server.url + "/v1/models/colors", timeout=60).json()
    assert model["serving"] == 2
    assert len(compare(server, with_version=1, frames=1).json()["frames"]) == 1


def test_version_that_can_not_serve_says_why(server: LiveServer) -> None:
    answer = compare(server, with_version=3)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "VERSION_REFUSED")
    assert "sha256" in answer.json()["error"]["message"]
    for body, status in (
        ({"with_version": 9}, 404),
        ({"with_model": "nuts"}, 404),
        ({"frames": 0}, 400),
        ({"versoin": 1}, 400),
    ):
        assert compare(server, **body).status_code == status, body
