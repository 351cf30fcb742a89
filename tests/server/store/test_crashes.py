"""Frames that end the worker: one crash each, then refused, also after a restart."""

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests
from crashing import killer
from images import encode, picture, plain
from job_workers import await_that
from server_process import ROOT, LiveServer, live_server

CRASHING = str(ROOT / "tests" / "support" / "crashing.py")
GREEN = encode(plain((0, 255, 0)), "PNG")
KILLS, CLIENTS = 10, 8


def post(server: LiveServer, data: bytes, **params: Any) -> tuple[int, str]:
    """Status and error code of one frame on a connection of its own; 0 if it was lost."""
    try:
        answer = requests.post(f"{server.url}/v1/recognize", data, params=params, timeout=120)
    except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
        return 0, ""  # before or within its answer
    code = answer.json()["error"]["code"] if answer.status_code != 200 else ""
    return answer.status_code, code


def post_good(server: LiveServer, number: int, stop: threading.Event) -> Counter[tuple[int, str]]:
    """Posts frames until `stop`: the same PNG over and over, and JPEGs."""
    ends: Counter[tuple[int, str]] = Counter()
    frames = [GREEN, encode(picture(64, 64, number), "JPEG")]
    while not stop.is_set():
        ends[post(server, frames[ends.total() % 2])] += 1
    return ends


@pytest.fixture
def server(colors: Path, tmp_path: Path) -> Iterator[LiveServer]:
    with live_server(CRASHING, models=colors, data=tmp_path, max_waiting=64) as running:
        yield running


def test_killer_among_good_frames_costs_one_crash(
    server: LiveServer, colors: Path, tmp_path: Path
) -> None:
    stop = threading.Event()
    with ThreadPoolExecutor(CLIENTS) as pool:
        good = [pool.submit(post_good, server, number, stop) for number in range(CLIENTS)]
        ends = [post(server, killer(), camera="st4") for _ in range(KILLS)]
        stop.set()
        counts = [each.result() for each in good]
    assert ends == [(0, "")] + [(422, "UNSAFE_IMAGE")] * (KILLS - 1)
    for count in counts:
        # What was in hand at the crash is lost, and nothing else.
        assert set(count) <= {(200, ""), (0, "")}
        assert count[0, ""] <= 1
        assert count[200, ""] > 0
    assert server.sample("lineside_worker_crashes_total") == 1
    assert server.sample("lineside_crashed_frames") == 1
    assert server.sample("lineside_frames_refused_total", reason="UNSAFE_IMAGE") == KILLS - 1

    ready = requests.get(f"{server.url}/readyz", timeout=60)
    assert (ready.status_code, ready.json()["status"]) == (200, "ok")
    assert ready.json()["worker_crashes"] == 1
    assert ready.json()["last_worker_crash"]["signal"] == "SIGSEGV"
    health = subprocess.run(
        [sys.executable, "-m", "server", "health", "--port", str(server.port)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "worker crashed 1 times, last at " in health.stdout

    kept = json.loads(next((tmp_path / "crashed").glob("*.json")).read_bytes())
    assert (kept["camera"], kept["signal"], kept["refused"]) == ("st4", "SIGSEGV", True)
    assert (tmp_path / "crashed" / kept["file"]).read_bytes() == killer()
    (crash,) = [line for line in server.lines if line["event"] == "worker crashed"]
    assert crash["suspects"] >= 1

    assert server.stop() == 0
    with live_server(CRASHING, models=colors, data=tmp_path) as again:
        assert post(again, killer()) == (422, "UNSAFE_IMAGE")
        assert post(again, GREEN) == (200, "")
        assert again.sample("lineside_worker_crashes_total") == 0
        # A person lets the frame in again by removing what is known of it.
        (tmp_path / "crashed" / f"{kept['sha256']}.json").unlink()
        assert post(again, killer()) == (0, "")
        assert post(again, killer()) == (422, "UNSAFE_IMAGE")


def test_each_killer_costs_one_crash(server: LiveServer, tmp_path: Path) -> None:
    # The model of the last one needs an eighth of its size, another may need half of it.
    killers = [killer(0), killer(1, "JPEG"), killer(2, "JPEG", side=256, eighths=1)]
    for each in killers:
        assert post(server, each) == (0, "")
        assert post(server, each) == (422, "UNSAFE_IMAGE")
    assert [post(server, each) for each in killers] == [(422, "UNSAFE_IMAGE")] * 3
    kept = {path.read_bytes() for path in (tmp_path / "crashed").glob("*.[jp][pn]g")}
    assert kept == set(killers)
    assert server.sample("lineside_worker_crashes_total") == 3


ROUTES = {"/v1/recognize/batch": "file", "/api/recognize": "file", "/classify": "image"}


def test_killer_is_refused_on_every_route(server: LiveServer) -> None:
    def send(route: str, file: dict[str, bytes]) -> str:
        try:
            return requests.post(server.url + route, files=file, timeout=120).text
        except requests.ConnectionError:
            return "lost"

    for seed, (route, field) in enumerate(ROUTES.items()):
        assert send(route, {field: killer(seed)}) == "lost", route
        assert "ended the process" in send(route, {field: killer(seed)}), route
        assert server.sample("lineside_worker_crashes_total") == seed + 1


def test_killer_is_refused_where_nothing_can_be_kept(colors: Path, tmp_path: Path) -> None:
    (tmp_path / "crashed").touch()  # no folder can be made in its place
    with live_server(CRASHING, models=colors, data=tmp_path) as server:
        for seed in range(2):
            assert post(server, killer(seed)) == (0, "")
            assert post(server, killer(seed)) == (422, "UNSAFE_IMAGE")
        # Also by a worker that never had the first one in hand.
        assert post(server, killer(0)) == (422, "UNSAFE_IMAGE")
        assert server.sample("lineside_worker_crashes_total") == 2


def crashed(server: LiveServer, count: int) -> bool:
    return [line["event"] for line in server.lines].count("worker crashed") == count


def test_worker_killed_from_outside_refuses_no_frame(server: LiveServer, tmp_path: Path) -> None:
    stop = threading.Event()
    with ThreadPoolExecutor(CLIENTS) as pool:
        good = [pool.submit(post_good, server, number, stop) for number in range(CLIENTS)]
        for count in (1, 2):
            subprocess.run(["kill", "-KILL", str(server.worker_pid())], check=True)
            await_that(partial(crashed, server, count), "the next worker")
            until = time.monotonic() + 60
            while post(server, GREEN) != (200, ""):
                assert time.monotonic() < until
        stop.set()
        ends = sum((each.result() for each in good), Counter())
    assert set(ends) <= {(200, ""), (0, "")}
    assert post(server, GREEN) == (200, "")
    assert server.sample("lineside_crashed_frames") == 0
