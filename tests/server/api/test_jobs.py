"""/v1/jobs on a live server that runs its own worker."""

import base64
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests
from clients import CORNERS, SETOSA, frame
from images import encode, picture, plain
from job_workers import LiveWorker, await_that, settled, submit
from server_process import LiveServer, live_server

from server.store.keys import Right, add_key

PNG = {"Content-Type": "image/png"}
# Of a synchronous answer, what a job's result has as well; the rest are times and ids.
NOW = datetime(2026, 1, 1, tzinfo=UTC)
SAME = ("model", "model_version", "camera", "part", "predictions", "recognized", "verdict")


def error_of(answer: requests.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def synchronous(server: LiveServer, data: bytes, **params: Any) -> dict[str, Any]:
    answer = server.recognize(data, **params).json()
    return {name: answer[name] for name in SAME}


def test_many_frames_are_answered_as_synchronous_ones(clients: LiveServer) -> None:
    params: dict[str, Any] = {
        "top_k": 3,
        "threshold": 0.01,
        "camera": "st4",
        "part": "A-1",
        "captured_at": time.time(),
    }
    files = [("file", (f"{color}.png", frame(color), "image/png")) for color in CORNERS]
    answer = requests.post(f"{clients.url}/v1/jobs", files=files, params=params, timeout=60)
    assert answer.status_code == 202
    accepted = answer.json()
    assert accepted["status"] == "pending"
    assert answer.headers["Location"] == accepted["status_url"]
    assert accepted["status_url"] == f"/v1/jobs/{accepted['job_id']}"
    job = settled(clients, accepted["job_id"])
    assert job["status"] == "succeeded"
    assert job["progress"] == {"frames": 8, "done": 8}
    assert job["created_at"] <= job["started_at"] <= job["finished_at"]
    assert [f["file"] for f in job["frames"]] == [f"{color}.png" for color in CORNERS]
    # Its deadline counts from the capture, which was before the job.
    params["deadline_ms"] = 600_000
    for color, found in zip(CORNERS, job["frames"], strict=True):
        expected = synchronous(clients, frame(color), **params)
        assert {name: found["result"][name] for name in SAME} == expected
        assert found["result"]["request_id"] == answer.headers["X-Request-Id"]
        assert found["result"]["captured_age_ms"] > 0
        assert found["error"] is None


@pytest.mark.parametrize("form", ["raw", "base64", "form"])
def test_one_frame_in_every_form(clients: LiveServer, form: str) -> None:
    data = frame("cyan")
    text = base64.b64encode(data).decode()
    how: dict[str, dict[str, Any]] = {
        "raw": {"data": data, "headers": PNG},
        "base64": {"json": {"image_base64": text, "top_k": 1}},
        "form": {"data": {"image_base64": text}},
    }
    answer = requests.post(f"{clients.url}/v1/jobs", timeout=60, **how[form])
    (found,) = settled(clients, answer.json()["job_id"])["frames"]
    assert found["result"]["predictions"][0]["label"] == "cyan"
    assert len(found["result"]["predictions"]) == (1 if form == "base64" else 5)


def test_plain_numbers(clients: LiveServer) -> None:
    answer = requests.post(f"{clients.url}/v1/jobs", json={"input": SETOSA}, timeout=60)
    (found,) = settled(clients, answer.json()["job_id"])["frames"]
    expected = requests.post(
        f"{clients.url}/v1/recognize", json={"input": SETOSA}, timeout=60
    ).json()
    assert found["outputs"]["outputs"] == expected["outputs"]
    assert found["outputs"]["predictions"] == expected["predictions"]


def test_undecodable_frame_fails_the_job_no_other_frame(
    clients: LiveServer,
) -> None:
    """A frame that does not decode fails the job, and no other frame."""
    files = [("file", ("whole", frame("red"))), ("file", ("cut", encode(picture(), "JPEG")[:-200]))]
    answer = requests.post(f"{clients.url}/v1/jobs", files=files, timeout=60)
    job = settled(clients, answer.json()["job_id"])
    assert (job["status"], job["error"]["code"]) == ("failed", "UNDECODABLE_IMAGE")
    assert "1 of 2 frames" in job["error"]["message"]
    whole, cut = job["frames"]
    assert whole["result"]["predictions"][0]["label"] == "red"
    assert (cut["status"], cut["error"]["code"]) == ("failed", "UNDECODABLE_IMAGE")


def test_failed_frame_is_journalled_and_counted(
    clients: LiveServer,
) -> None:
    """A frame that failed is in the journal and counted for its camera."""
    cut = encode(picture(), "JPEG")[:-200]
    files = [("file", ("whole", frame("red"))), ("file", ("cut", cut))]
    asked = {"camera": "jobs-cam", "part": "J-1"}
    answer = requests.post(f"{clients.url}/v1/jobs", files=files, params=asked, timeout=60)
    settled(clients, answer.json()["job_id"])

    def journal() -> list[dict[str, Any]] | None:
        query = {"camera": "jobs-cam", "order": "oldest"}
        answer = requests.get(f"{clients.url}/v1/journal", params=query, timeout=60).json()
        rows: list[dict[str, Any]] = answer["rows"]
        return rows if len(rows) >= 2 else None

    # The journal and the metrics are told of a job's frames only once its end can be seen.
    rows = await_that(journal, "a row of each frame")
    assert sorted((row["status"], row["code"], row["label"]) for row in rows) == [
        (200, None, "red"),
        (422, "UNDECODABLE_IMAGE", None),
    ]
    for row in rows:
        assert (row["model"], row["version"], row["part"]) == ("corners", 1, "J-1")
        assert row["request_id"] == answer.headers["X-Request-Id"]
        assert row["total_ms"] > 0
    for result in ("answered", "bad"):
        frames = {"camera": "jobs-cam", "result": result}
        counted = partial(clients.sample, "lineside_camera_frames_total", **frames)
        assert await_that(counted, "the count of each frame") == 1


@pytest.mark.parametrize(
    ("params", "body", "expected"),
    [
        ({}, b"text", (415, "UNSUPPORTED_IMAGE")),
        ({}, b"", (400, "MISSING_FIELD")),
        ({"model": "nuts"}, frame("red"), (404, "MODEL_NOT_FOUND")),
        ({"version": 7}, frame("red"), (404, "MODEL_NOT_FOUND")),
        ({"model": "iris"}, frame("red"), (400, "INVALID_FIELD")),
        ({"top_k": 0}, frame("red"), (400, "INVALID_FIELD")),
        ({"webhook": "http://127.0.0.1/"}, frame("red"), (400, "INVALID_FIELD")),
        ({"captured_at": 1, "deadline_ms": 5}, frame("red"), (503, "DEADLINE_EXCEEDED")),
    ],
)
def test_what_can_not_be_answered_is_refused_at_once(
    clients: LiveServer, params: dict[str, Any], body: bytes, expected: tuple[int, str]
) -> None:
    answer = requests.post(f"{clients.url}/v1/jobs", body, params=params, timeout=60)
    assert error_of(answer) == expected


def test_pages(clients: LiveServer) -> None:
    jobs = [submit(clients, frame("red")) for _ in range(5)]
    for job in jobs:
        settled(clients, job)
    url, found = f"{clients.url}/v1/jobs", []
    page = requests.get(url, params={"limit": 2}, timeout=60).json()
    found += page["jobs"]
    page = requests.get(url, params={"limit": "3", "before": str(page["next"])}, timeout=60).json()
    found += page["jobs"]
    assert [job["job_id"] for job in found] == jobs[::-1]
    assert "frames" not in found[0]
    last = requests.get(url, params={"limit": "500", "status": "succeeded"}, timeout=60).json()
    assert set(jobs) <= {job["job_id"] for job in last["jobs"]}
    assert last["next"] is None
    assert error_of(requests.get(url, params={"status": "odd"}, timeout=60))[0] == 400


def test_cancelling_before_and_after(client_models: Path, tmp_path: Path) -> None:
    with live_server(models=client_models, model="corners", data=tmp_path, job_workers=0) as server:
        job, other = submit(server, frame("red")), submit(server, frame("blue"))
        url = f"{server.url}/v1/jobs/{job}"
        assert requests.get(url, timeout=60).json()["status"] == "pending"
        for _ in range(2):
            answer = requests.delete(url, timeout=60)
            assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
            assert answer.json()["frames"][0]["status"] == "cancelled"
        worker = LiveWorker(models=client_models, data=tmp_path)
        try:
            assert settled(server, other)["status"] == "succeeded"
        finally:
            assert worker.stop() == 0
        assert requests.get(url, timeout=60).json()["frames"][0]["result"] is None
        gone = requests.delete(f"{server.url}/v1/jobs/{other}", timeout=60)
        assert error_of(gone) == (409, "JOB_FINISHED")
        unknown = requests.delete(f"{server.url}/v1/jobs/x", timeout=60)
        assert error_of(unknown) == (404, "JOB_NOT_FOUND")
        assert server.sample("lineside_jobs_total", state="cancelled") == 1
        assert server.sample("lineside_jobs_total", state="succeeded") == 1
        assert server.sample("lineside_jobs_pending") == 0


def test_no_more_are_taken_than_may_wait(client_models: Path) -> None:
    big = encode(plain((255, 0, 0), 700, 700), "BMP")
    settings = {"job_workers": 0, "job_max_pending": 3, "job_max_mb": 3}
    with live_server(models=client_models, model="corners", **settings) as server:
        url = f"{server.url}/v1/jobs"
        submit(server, big)
        submit(server, big)
        full = requests.post(url, big, timeout=60)
        assert error_of(full) == (503, "JOBS_FULL")
        assert int(full.headers["Retry-After"]) > 0
        third = submit(server, frame("red"))
        assert error_of(requests.post(url, frame("red"), timeout=60)) == (503, "JOBS_FULL")
        assert server.sample("lineside_jobs_pending") == 3
        requests.delete(f"{url}/{third}", timeout=60)
        submit(server, frame("red"))


def test_a_deadline_that_passes_in_the_queue(client_models: Path) -> None:
    with live_server(models=client_models, model="corners", job_workers=0) as server:
        job = settled(server, submit(server, frame("red"), deadline_ms=300))
    assert (job["status"], job["error"]["code"]) == ("failed", "DEADLINE_EXCEEDED")


def test_results_go_after_their_time(client_models: Path) -> None:
    with live_server(models=client_models, model="corners", job_result_ttl=1) as server:
        job = submit(server, frame("red"))
        url = f"{server.url}/v1/jobs/{job}"
        await_that(
            lambda: requests.get(url, timeout=60).status_code == 404, "the end of the results"
        )
        succeeded = partial(server.sample, "lineside_jobs_total", state="succeeded")
        assert await_that(succeeded, "the count of the job") == 1


def test_a_key_sees_its_own_jobs_and_an_administrator_all(
    client_models: Path, tmp_path: Path
) -> None:
    file = tmp_path / "keys.jsonl"
    rights: dict[str, list[Right]] = {
        "one": ["recognize"],
        "two": ["recognize"],
        "chief": ["admin"],
    }
    keys = {name: add_key(file, name, right, now=NOW) for name, right in rights.items()}
    with live_server(models=client_models, model="corners", keys_file=file) as server:

        def ask(who: str, method: str = "GET", path: str = "", **how: Any) -> requests.Response:
            headers = {"X-API-Key": keys[who]}
            url = f"{server.url}/v1/jobs{path}"
            return requests.request(method, url, headers=headers, timeout=60, **how)

        job = ask("one", "POST", data=frame("red")).json()["job_id"]
        for method in ("GET", "DELETE"):
            assert error_of(ask("two", method, f"/{job}")) == (404, "JOB_NOT_FOUND")
        assert ask("two").json()["jobs"] == []
        results = requests.get(
            f"{server.url}/results/{job}", headers={"X-API-Key": keys["two"]}, timeout=60
        )
        assert results.status_code == 404
        for who in ("one", "chief"):
            assert ask(who, path=f"/{job}").status_code == 200
            assert [found["job_id"] for found in ask(who).json()["jobs"]] == [job]
        assert error_of(ask("chief", "POST", data=frame("red"))) == (403, "FORBIDDEN")


def test_unusable_job_table_refuses_jobs_only(client_models: Path, tmp_path: Path) -> None:
    """A job table that can't be used refuses jobs and nothing else."""
    (tmp_path / "data").write_text("a file where the folder should be")
    with live_server(models=client_models, model="corners", data=tmp_path / "data") as server:
        answer = requests.post(f"{server.url}/v1/jobs", frame("red"), timeout=60)
        assert error_of(answer) == (503, "JOBS_UNAVAILABLE")
        assert server.recognize(frame("red")).status_code == 200
