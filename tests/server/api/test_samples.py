"""/v1/samples on a live server: frames kept, looked at, labelled, removed."""

import io
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import requests
from images import encode, plain
from job_workers import await_that
from observations import jpeg
from server_process import LiveServer, live_server
from tiny_models import MakeModel, write_bundle

from server.api.recognize.deadlines import RFC_3339
from server.config.settings import Settings
from server.http.access.auth import Authenticator
from server.recognition.manifest import VerdictPolicy
from server.recorders import samples_on
from server.store.keys import add_key

NOW = datetime(2026, 1, 1, tzinfo=UTC)
# Its red is sure; of equal channels the model is as unsure as can be.
RED, GREY = encode(plain((255, 0, 0)), "PNG"), encode(plain((90, 90, 90)), "PNG")


@pytest.fixture(scope="module")
def keeping(tiny_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server that keeps uncertain frames, blue ones, and those near its verdict's threshold."""
    models = tmp_path_factory.mktemp("models")
    policy = VerdictPolicy(accept=("red",), min_probability=0.95)
    write_bundle(models / "colors" / "1", tiny_model("colors"), verdict=policy)
    with live_server(
        models=models,
        samples="on",
        samples_per_minute=1000,
        samples_share=0,
        samples_margin=0.04,
        samples_labels="blue",
    ) as server:
        yield server


def kept(server: LiveServer, count: int, **query: str) -> dict[str, Any]:
    """The page of samples, once there are `count` in all."""

    def look() -> dict[str, Any] | None:
        answer = requests.get(server.url + "/v1/samples", params=query, timeout=60)
        page: dict[str, Any] = answer.json()
        # Until the folder has been read, the server is not ready to tell.
        return page if answer.status_code != 503 and page["kept"] >= count else None

    found: dict[str, Any] = await_that(look, f"{count} samples")
    return found


def said(server: LiveServer, sample: str, **body: Any) -> requests.Response:
    return requests.post(f"{server.url}/v1/samples/{sample}/label", json=body, timeout=60)


def test_a_sample_from_the_frame_to_its_label_and_its_end(keeping: LiveServer) -> None:
    assert keeping.recognize(RED).status_code == 200
    answer = keeping.recognize(GREY, camera="st4-top", part="A-7", threshold=0.9).json()
    blue = encode(plain((0, 0, 255)), "BMP")
    near = encode(plain((190, 40, 20)), "PNG")
    assert keeping.recognize(blue).json()["predictions"][0]["label"] == "blue"
    assert keeping.recognize(near).status_code == 200
    keeping.recognize(blue)
    page = kept(keeping, 2)
    reasons = {sample["reason"]: sample for sample in page["samples"]}
    assert {"uncertain", "label"} <= set(reasons)
    mine = reasons["uncertain"]
    assert mine["request_id"] == answer["request_id"]
    assert (mine["camera"], mine["part"]) == ("st4-top", "A-7")
    assert mine["predictions"] == answer["predictions"] == []
    assert mine["best"]["probability"] == pytest.approx(1 / 3, abs=0.01)

    url = f"{keeping.url}/v1/samples/{mine['id']}"
    image = requests.get(url + "/image", timeout=60)
    assert image.content == GREY
    assert image.headers["Content-Type"] == "image/png"
    assert image.headers["X-Content-Type-Options"] == "nosniff"

    done = said(keeping, mine["id"], label="green")
    assert (done.status_code, done.json()["label"]) == (200, "green")
    assert all(RFC_3339.fullmatch(done.json()[name]) for name in ("at", "labelled_at"))
    assert requests.get(url, timeout=60).json() == done.json()
    assert kept(keeping, 2, labelled="true")["samples"] == [done.json()]
    assert kept(keeping, 2)["labelled"] == 1
    assert kept(keeping, 2, label="green")["samples"] == [done.json()]
    assert mine["id"] not in [s["id"] for s in kept(keeping, 2, predicted="blue")["samples"]]

    assert requests.delete(url, timeout=60).json() == done.json()
    for method, path in (("GET", ""), ("GET", "/image"), ("DELETE", "")):
        assert requests.request(method, url + path, timeout=60).status_code == 404
    assert keeping.sample("lineside_samples_total", reason="uncertain") == 1
    assert keeping.sample("lineside_samples_total", reason="label") == 1
    assert keeping.sample("lineside_samples_bytes") == kept(keeping, 1)["bytes"] > 0


def test_a_label_is_one_of_the_models_or_asked_for_as_new(keeping: LiveServer) -> None:
    keeping.recognize(encode(plain((91, 91, 90)), "PNG"))
    sample = kept(keeping, 1)["samples"][0]["id"]
    refused = said(keeping, sample, label="geen")
    assert refused.status_code == 400
    assert "'geen' is not a label of colors, which has red, green, blue" in refused.text
    assert said(keeping, sample, label="violet", new=True).json()["label"] == "violet"
    assert said(keeping, sample, label=None).json()["label"] is None
    for body in (
        {},
        {"label": 7},
        {"label": "x" * 129},
        {"label": "red", "other": 1},
        {"label": "a\nb", "new": True},
        {"label": " a", "new": True},
        {"label": "", "new": True},
        {"label": "red", "new": "yes"},
    ):
        assert said(keeping, sample, **body).status_code == 400, body
    assert said(keeping, "000000001-0123456789abcdef", label="red").status_code == 404
    assert said(keeping, "..%2f..%2fkeys", label="red").status_code == 404


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("reason=boredom", "boredom"),
        ("labeled=true", "labeled"),
        ("labelled=perhaps", "labelled"),
        ("limit=0", "limit"),
        ("limit=1000", "limit"),
        ("cursor=../..", "cursor"),
    ],
)
def test_a_query_that_can_not_be_used_is_named(keeping: LiveServer, query: str, names: str) -> None:
    answer = requests.get(f"{keeping.url}/v1/samples?{query}", timeout=60)
    assert answer.status_code == 400
    assert names in answer.json()["error"]["message"]


def test_the_description_fits_the_answers(keeping: LiveServer) -> None:
    validation = pytest.importorskip("jsonschema_rs", reason="schemathesis is not installed")
    keeping.recognize(encode(plain((92, 92, 92)), "PNG"))
    page = kept(keeping, 1)
    document = requests.get(keeping.url + "/openapi.json", timeout=60).json()
    one = f"/v1/samples/{page['samples'][0]['id']}"
    for path, url in (("/v1/samples", "/v1/samples"), ("/v1/samples/{sample}", one)):
        content = document["paths"][path]["get"]["responses"]["200"]["content"]
        schema = {**content["application/json"]["schema"], "components": document["components"]}
        answer = requests.get(keeping.url + url, timeout=60).json()
        validation.Draft202012Validator(schema).validate(answer)


def test_samples_outlive_kill_9_and_labels_with_them(colors: Path, tmp_path: Path) -> None:
    settings = {"models": colors, "data": tmp_path, "samples": "on", "samples_per_minute": 1000}
    with live_server(**settings) as server:
        server.recognize(GREY)
        [sample] = kept(server, 1)["samples"]
        labelled = said(server, sample["id"], label="red").json()
        server.process.kill()
    with live_server(**settings) as again:
        assert kept(again, 1)["samples"] == [labelled]
        again.recognize(GREY)
        again.recognize(encode(plain((90, 90, 91)), "PNG"))
        assert kept(again, 2)["kept"] == 2
    assert len(list((tmp_path / "samples").iterdir())) == 4


def test_what_waits_is_kept_when_the_server_stops(colors: Path, tmp_path: Path) -> None:
    with live_server(
        models=colors, data=tmp_path, samples="on", samples_share=1, samples_per_minute=1000
    ) as server:
        for number in range(50):
            # The stop waits a few seconds for the disk, which may be slower with more than some.
            if number == 40:
                kept(server, number)
            server.recognize(jpeg(number))
    assert len(list((tmp_path / "samples").glob("*.json"))) == 50


@pytest.mark.parametrize(
    ("settings", "on"),
    [
        ({}, False),
        ({"samples": "on"}, True),
        ({"samples": "on", "samples_mb": 0}, False),
        ({"auth": "required"}, True),
        ({"auth": "required", "samples": "off"}, False),
        ({"auth": "off", "host": "0.0.0.0"}, False),
        ({"host": "0.0.0.0"}, True),
    ],
)
def test_frames_are_sampled_only_if_keys_are_required(
    settings: dict[str, Any], on: bool, tmp_path: Path
) -> None:
    """Frames are kept without a request only if keys are required."""
    made = Settings(**({"keys_file": str(tmp_path / "keys.jsonl")} | settings))
    assert samples_on(made, keys_asked_for=Authenticator(made).closed()) is on


def test_a_server_with_keys_keeps_frames_for_admins(colors: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    keys = {
        right: {"X-API-Key": add_key(file, right, [right], now=NOW)}
        for right in ("recognize", "admin")
    }
    with live_server(models=colors, keys_file=file) as server:
        url = server.url + "/v1/samples"
        sent = requests.post(
            server.url + "/v1/recognize", GREY, headers=keys["recognize"], timeout=60
        )
        assert sent.status_code == 200
        assert requests.get(url, timeout=60).status_code == 401
        assert requests.get(url, headers=keys["recognize"], timeout=60).status_code == 403
        assert requests.get(url, headers=keys["admin"], timeout=60).json()["keeping"] is True


def test_a_server_without_keys_keeps_nothing(colors_server: LiveServer) -> None:
    colors_server.recognize(GREY)
    page = requests.get(colors_server.url + "/v1/samples", timeout=60).json()
    assert page == {
        "keeping": False,
        "kept": 0,
        "labelled": 0,
        "bytes": 0,
        "cap_bytes": 0,
        "samples": [],
        "next": None,
        "labels": {},
    }
    missing = requests.get(colors_server.url + "/v1/samples/x", timeout=60)
    assert missing.status_code == 404
    assert "none are kept on this server" in missing.json()["error"]["message"]


def test_other_sites_pages_may_not_label(keeping: LiveServer) -> None:
    keeping.recognize(encode(plain((93, 93, 93)), "PNG"))
    sample = kept(keeping, 1)["samples"][0]["id"]
    answer = requests.post(
        f"{keeping.url}/v1/samples/{sample}/label",
        json={"label": "red"},
        headers={"Origin": "http://elsewhere.example"},
        timeout=60,
    )
    assert answer.status_code == 403


def test_labelled_samples_are_exported_as_folders(keeping: LiveServer) -> None:
    before = kept(keeping, 0)["kept"]
    keeping.recognize(encode(plain((91, 91, 91)), "PNG"), camera="export")
    sample = kept(keeping, before + 1, camera="export")["samples"][0]
    assert said(keeping, sample["id"], label="a/b", new=True).status_code == 200
    page = kept(keeping, 0, request_id=sample["request_id"])
    assert [each["id"] for each in page["samples"]] == [sample["id"]]
    assert page["labels"]["colors"]["a/b"] == 1
    url = keeping.url + "/v1/samples.zip"
    answer = requests.get(url, params={"model": "colors"}, timeout=60)
    assert answer.headers["Content-Type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        name = f"a_b/{sample['id']}.png"
        assert name in archive.namelist()
        image = requests.get(f"{keeping.url}/v1/samples/{sample['id']}/image", timeout=60).content
        assert archive.read(name) == image
    other = requests.get(url, params={"model": "other"}, timeout=60)
    with zipfile.ZipFile(io.BytesIO(other.content)) as archive:
        assert archive.namelist() == []
