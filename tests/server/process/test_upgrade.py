"""A server starts on the models, data and keys of the server before it, and loses nothing."""

import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from job_workers import await_that
from server_process import ROOT, LiveServer, live_server

BEFORE = ROOT / "tests" / "fixtures" / "server_1f52b93"
ANSWERS: dict[str, Any] = json.loads((BEFORE / "answers.json").read_text())
SECRETS: dict[str, str] = json.loads((BEFORE / "secret.json").read_text())
# Told in another form since: RFC 3339 in place of Unix seconds.
SAMPLE_TIMES = ("at", "labelled_at")


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """Today's server on a copy of what the server before left."""
    folder = shutil.copytree(BEFORE, tmp_path_factory.mktemp("upgrade") / "device")
    with live_server(
        models=folder / "models",
        data=folder / "data",
        keys_file=folder / "keys.jsonl",
        samples="on",
        samples_share=0,
        job_result_ttl=3.2e9,
        journal_days=0,
        traced=True,
    ) as running:
        yield running


def ask(server: LiveServer, path: str, **query: str) -> dict[str, Any]:
    headers = {"X-API-Key": SECRETS["line"]}
    answer = requests.get(server.url + path, params=query, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_keys_outlive_an_upgrade(upgraded: LiveServer) -> None:
    for name, status in (("line", 200), ("gone", 401)):
        headers = {"X-API-Key": SECRETS[name]}
        answer = requests.get(upgraded.url + "/v1/models", headers=headers, timeout=60)
        assert answer.status_code == status, name


def test_choice_of_version_outlives_an_upgrade(upgraded: LiveServer) -> None:
    before, now = ANSWERS["models"], ask(upgraded, "/v1/models/colors")
    assert (now["serving"], now["versions"]) == (2, [3, 2, 1])
    # What is new has its default, in the recipe too.
    old, new = before["manifest"], now["manifest"]
    assert {**new, "recipe": None}.items() >= {**old, "recipe": None}.items()
    assert new["recipe"].items() >= old["recipe"].items()


def test_journal_outlives_an_upgrade(upgraded: LiveServer) -> None:
    before = {row["id"]: row for row in ANSWERS["journal"]["rows"]}
    now = {row["id"]: row for row in ask(upgraded, "/v1/journal", limit="200")["rows"]}
    assert before
    for number, row in before.items():
        assert now[number].items() >= row.items()


def test_samples_outlive_an_upgrade(upgraded: LiveServer) -> None:
    before = {sample["id"]: sample for sample in ANSWERS["samples"]["samples"]}
    now = {sample["id"]: sample for sample in ask(upgraded, "/v1/samples")["samples"]}
    assert now.keys() >= before.keys()
    for name, sample in before.items():
        kept = {field: value for field, value in sample.items() if field not in SAMPLE_TIMES}
        assert now[name].items() >= kept.items()
    assert [sample["label"] for sample in now.values() if sample["label"]] == ["red"]


def test_finished_job_outlives_an_upgrade(upgraded: LiveServer) -> None:
    before = ANSWERS["finished_job"]
    now = ask(upgraded, before["status_url"])
    assert now["status"] == "succeeded"
    for was, frame in zip(before["frames"], now["frames"], strict=True):
        assert frame["result"].items() >= was["result"].items()


def test_pending_job_is_done_after_an_upgrade(upgraded: LiveServer) -> None:
    url = ANSWERS["pending_job"]["status_url"]

    def ended() -> dict[str, Any] | None:
        job = ask(upgraded, url)
        return None if job["status"] in ("pending", "running") else job

    job: dict[str, Any] = await_that(ended, "the job's end")
    assert job["status"] == "succeeded", job
    assert job["frames"][0]["result"]["predictions"][0]["label"] == "green"
