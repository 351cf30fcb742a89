"""POST /v1/recognize on a live server: ways in, options, answers, and many clients at once."""

import json
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from images import encode, plain
from server_process import LiveServer, live_server
from tiny_models import COLORS, RECIPE, MakeModel, write_bundle

from server.recognition.manifest import VerdictPolicy

GREEN = encode(plain((0, 255, 0)), "PNG")
URL = "/v1/recognize"


def post(server: LiveServer, **how: Any) -> dict[str, Any]:
    answer = requests.post(server.url + URL, timeout=60, **how)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == "application/json"
    return dict(answer.json())


@pytest.mark.parametrize(
    "how",
    [
        {"files": {"file": ("frame.png", GREEN, "image/png")}},
        {"files": {"image": ("frame.png", GREEN)}},
        {"files": {"file": ("no extension", GREEN, "text/plain")}},
        {"data": GREEN, "headers": {"Content-Type": "image/png"}},
        {"data": GREEN, "headers": {"Content-Type": "application/octet-stream"}},
        {"data": GREEN},
    ],
    ids=["file", "image", "misnamed", "raw", "octets", "untyped"],
)
def test_every_way_in_gives_the_same_answer(colors_server: LiveServer, how: dict[str, Any]) -> None:
    answer = post(colors_server, **how)
    assert [p["label"] for p in answer["predictions"]] == ["green", "red", "blue"]
    assert answer["predictions"][0]["class_id"] == 1
    assert answer["predictions"][0]["probability"] == pytest.approx(1, abs=1e-4)


def test_the_answer_has_the_documented_shape(colors_server: LiveServer) -> None:
    query = {"camera": "st4-top", "part": "A-1093"}
    answer = post(colors_server, data=GREEN, params=query)
    assert (answer["model"], answer["model_version"]) == ("colors", 1)
    assert (answer["camera"], answer["part"]) == ("st4-top", "A-1093")
    assert answer["recognized"] is True
    assert answer["verdict"] is None
    assert answer["cached"] is False
    timing = answer["timing_ms"]
    assert set(timing) >= {"decode", "preprocess", "wait", "inference", "total"}
    assert all(0 <= ms <= timing["total"] for ms in timing.values())


def test_options_may_stand_in_the_form(colors_server: LiveServer) -> None:
    form = {"top_k": "1", "camera": "form", "part": "A-1"}
    answer = post(colors_server, files={"file": GREEN}, data=form)
    assert len(answer["predictions"]) == 1
    assert (answer["camera"], answer["part"]) == ("form", "A-1")
    query = {"camera": "query"}
    assert post(colors_server, files={"file": GREEN}, data=form, params=query)["camera"] == "query"


@pytest.mark.parametrize(("top_k", "count"), [(1, 1), (2, 2), (3, 3), (1000, 3)])
def test_top_k(colors_server: LiveServer, top_k: int, count: int) -> None:
    assert len(post(colors_server, data=GREEN, params={"top_k": top_k})["predictions"]) == count


def test_threshold(colors_server: LiveServer) -> None:
    only = post(colors_server, data=GREEN, params={"threshold": 0.5})
    assert [p["label"] for p in only["predictions"]] == ["green"]
    grey = encode(plain((90, 90, 90)), "PNG")
    none = post(colors_server, data=grey, params={"threshold": 0.9})
    assert none["predictions"] == []
    assert none["recognized"] is False


def test_model_and_version_may_be_named(colors_server: LiveServer) -> None:
    named = post(colors_server, data=GREEN, params={"model": "colors", "version": 1})
    assert (named["model"], named["model_version"]) == ("colors", 1)


def test_request_id_comes_back_or_is_replaced(colors_server: LiveServer) -> None:
    """A request id comes back; a strange one is replaced."""

    def id_of(given: str | None) -> str:
        headers = {} if given is None else {"X-Request-Id": given}
        answer = requests.post(colors_server.url + URL, GREEN, headers=headers, timeout=60)
        assert answer.json()["request_id"] == answer.headers["X-Request-Id"]
        return str(answer.headers["X-Request-Id"])

    assert id_of("line-4:frame_17.a") == "line-4:frame_17.a"
    assert uuid.UUID(hex=id_of(None))
    for strange in ("x" * 65, "a b", 'a"b', "{}"):
        assert uuid.UUID(hex=id_of(strange))


def test_the_verdict_of_the_bundles_policy(tiny_model: MakeModel, tmp_path: Path) -> None:
    policy = VerdictPolicy(accept=("green",), min_probability=0.8)
    write_bundle(tmp_path / "colors" / "1", tiny_model("colors"), verdict=policy)
    with live_server(models=tmp_path) as server:
        verdicts = [
            post(server, data=encode(plain(color), "PNG"))["verdict"]
            for color in [(0, 255, 0), (255, 0, 0), (90, 100, 90)]
        ]
        assert verdicts == ["pass", "fail", "unsure"]
        assert server.sample("lineside_verdicts_total", model="colors", verdict="fail") == 1


def test_what_has_no_label_does_not_pass(tiny_model: MakeModel, tmp_path: Path) -> None:
    policy = VerdictPolicy(accept=("green",), min_probability=0.0)
    write_bundle(tmp_path / "colors" / "1", tiny_model("colors"), verdict=policy)
    grey = encode(plain((90, 100, 90)), "PNG")
    with live_server(models=tmp_path) as server:
        assert post(server, data=grey)["verdict"] == "pass"
        unseen = post(server, data=grey, params={"threshold": 0.99})
        assert (unseen["recognized"], unseen["verdict"]) == (False, "unsure")


def test_another_default_top_k(colors: Path) -> None:
    with live_server(models=colors, default_top_k=2) as server:
        assert len(post(server, data=GREEN)["predictions"]) == 2


def test_eight_clients_get_the_answers_of_one(server: LiveServer, sample: bytes) -> None:
    queries: list[dict[str, Any]] = [{"top_k": k, "camera": f"c{k}"} for k in range(1, 6)]
    alone = [server.recognize(sample, **query).json()["predictions"] for query in queries]
    sessions = [requests.Session() for _ in range(8)]

    def client(number: int) -> None:
        for turn in range(number, 200, 8):
            which = turn % len(queries)
            answer = sessions[number].post(
                server.url + URL, sample, params=queries[which], timeout=60
            )
            assert answer.status_code == 200, answer.text
            assert answer.json()["predictions"] == alone[which]
            assert answer.json()["camera"] == queries[which]["camera"]

    with ThreadPoolExecutor(8) as clients:
        list(clients.map(client, range(8)))
    for session in sessions:
        session.close()


def test_overload_is_refused_and_what_was_taken_is_answered(
    tiny_model: MakeModel, tmp_path: Path
) -> None:
    write_bundle(tmp_path / "slow" / "1", tiny_model("slow"))
    with (
        live_server(models=tmp_path, interpreters=1, frames_at_once=1, max_waiting=1) as server,
        ThreadPoolExecutor(12) as clients,
    ):
        answers = list(
            clients.map(
                lambda n: requests.post(
                    server.url + URL, GREEN, headers={"X-Request-Id": f"r{n}"}, timeout=60
                ),
                range(120),
            )
        )
        statuses = {answer.status_code for answer in answers}
        assert statuses == {200, 503}
        for number, answer in enumerate(answers):
            assert answer.headers["X-Request-Id"] == f"r{number}"
            if answer.status_code == 503:
                error = answer.json()["error"]
                assert error["code"] == "OVERLOADED"
                assert error["request_id"] == f"r{number}"
                assert int(answer.headers["Retry-After"]) >= 1
        refused = sum(answer.status_code == 503 for answer in answers)
        assert server.sample("lineside_frames_refused_total", reason="OVERLOADED") == refused
        assert server.sample("lineside_waiting_frames") == 0


def test_a_deadline_that_cannot_be_met_is_refused(tiny_model: MakeModel, tmp_path: Path) -> None:
    write_bundle(tmp_path / "slow" / "1", tiny_model("slow"))
    with live_server(models=tmp_path, interpreters=1) as server:
        assert server.recognize(GREEN).status_code == 200
        answer = server.recognize(GREEN, deadline_ms=0.001)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "DEADLINE_EXCEEDED"
        assert server.recognize(GREEN, deadline_ms=600_000).status_code == 200


def test_models_are_listed_with_their_manifest(colors_server: LiveServer) -> None:
    (model,) = requests.get(colors_server.url + "/v1/models", timeout=60).json()["models"]
    one = requests.get(colors_server.url + "/v1/models/colors", timeout=60).json()
    assert one | model == one
    assert (one["name"], one["versions"], one["serving"], one["default"]) == (
        "colors",
        [1],
        1,
        True,
    )
    assert one["labels"] == list(COLORS)
    assert one["manifest"]["recipe"]["width"] == RECIPE.width
    assert one["failures"] == []


def test_failed_version_keeps_the_older_and_says_why(tiny_model: MakeModel, tmp_path: Path) -> None:
    """A version that fails leaves the older one and says why."""
    good = write_bundle(tmp_path / "colors" / "1", tiny_model("colors"))
    write_bundle(tmp_path / "colors" / "2", tiny_model("colors"), ("red", "green"))
    assert good.is_dir()
    with live_server(models=tmp_path) as server:
        assert post(server, data=GREEN)["model_version"] == 1
        model = requests.get(server.url + "/v1/models/colors", timeout=60).json()
        assert (model["versions"], model["serving"]) == ([2, 1], 1)
        (failure,) = model["failures"]
        assert failure["version"] == 2
        assert "labels.txt has 2 labels but the model answers 3" in failure["reason"]


def test_json_numbers_stay_numbers(colors_server: LiveServer) -> None:
    text = requests.post(colors_server.url + URL, GREEN, timeout=60).text
    assert "NaN" not in text
    assert isinstance(json.loads(text)["predictions"][0]["class_id"], int)
