"""Frames of jobs that end their worker: one worker each, and a clear code."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from crashing import killer
from images import encode, plain
from job_workers import settled, submit
from server_process import ROOT, LiveServer, live_server

GREEN = encode(plain((0, 255, 0)), "PNG")


@pytest.fixture
def server(colors: Path, tmp_path: Path) -> Iterator[LiveServer]:
    program = str(ROOT / "tests" / "support" / "crashing.py")
    with live_server(program, models=colors, data=tmp_path, traced=True) as running:
        yield running


def deaths(server: LiveServer) -> int:
    return [line["event"] for line in server.lines].count("worker died")


def test_killer_in_a_job_costs_one_worker(server: LiveServer) -> None:
    job = settled(server, submit(server, killer(), camera="st4"))
    assert (job["status"], job["frames"][0]["error"]["code"]) == ("failed", "UNSAFE_IMAGE")
    assert deaths(server) == 1
    # It is known now, to jobs and to the routes that answer at once.
    job = settled(server, submit(server, killer()))
    assert (job["status"], job["frames"][0]["error"]["code"]) == ("failed", "UNSAFE_IMAGE")
    answer = server.recognize(killer())
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "UNSAFE_IMAGE")
    assert settled(server, submit(server, GREEN))["status"] == "succeeded"
    assert deaths(server) == 1
    assert server.sample("lineside_worker_crashes_total") == 0
    assert server.sample("lineside_crashed_frames") == 1


def test_killer_known_from_a_request_costs_no_worker(server: LiveServer) -> None:
    with pytest.raises(requests.ConnectionError):
        server.recognize(killer())
    server.await_listening()
    assert server.recognize(killer()).status_code == 422
    job = settled(server, submit(server, killer()))
    assert job["frames"][0]["error"]["code"] == "UNSAFE_IMAGE"
    assert deaths(server) == 0
