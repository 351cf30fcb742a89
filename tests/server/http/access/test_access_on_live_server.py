"""A real server behind keys: what it tells, how its limits hold, and when it does not start."""

import base64
import http.client
import itertools
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
import requests
from images import encode, plain
from server_process import ROOT, LiveServer, free_port, live_server

from server.store.keys import add_key

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RED = encode(plain((255, 0, 0)), "PNG")
RATE, SECONDS = 40, 3


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_a_key_appears_in_no_log_metric_or_error(colors: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    key = add_key(file, "line-4", ["recognize", "metrics", "admin"], now=NOW)
    wrong = key[:-4] + "AAAA"
    with live_server(models=colors, keys_file=file, log_level="debug") as server:
        answers = [
            requests.request(method, server.url + path, headers=headers, data=data, timeout=60)
            for method, path, data in (
                ("POST", "/v1/recognize", RED),
                ("POST", "/v1/recognize", b"no image"),
                ("POST", f"/v1/recognize?model={key}", RED),
                ("POST", f"/v1/recognize?camera={key}", RED),
                ("POST", f"/v1/recognize?part=A-{key}", RED),
                ("POST", f"/v1/recognize?camera={wrong}&top_k=0", RED),
                ("POST", f"/v1/recognize?camera={wrong}&model=absent", RED),
                ("POST", f"/v1/recognize/batch?camera={wrong}", RED),
                ("POST", f"/v1/jobs?camera={wrong}", RED),
                ("POST", f"/v2/models/{wrong}/infer", b"{}"),
                ("POST", f"/v1/models/{wrong}:predict", b"{}"),
                ("GET", f"/v1/models/{wrong}/versions/7", None),
                ("POST", f"/v1/models/{wrong}/load", None),
                ("GET", f"/v1/models/{key}", None),
                ("GET", f"/{key}", None),
                ("POST", "/v1/models/colors/load", None),
                ("POST", "/v1/models/colors/activate", b"{"),
                ("GET", "/metrics", None),
            )
            for headers in (
                bearer(key),
                {"X-API-Key": key},
                bearer(wrong),
                {"Authorization": f"Basic {key}"},
                {"X-Request-Id": key} | bearer(key),
            )
        ]
        assert {answer.status_code for answer in answers} >= {200, 400, 401, 404}
        metrics = requests.get(server.url + "/metrics", headers=bearer(key), timeout=60).text
        journal = requests.get(server.url + "/v1/journal", headers=bearer(key), timeout=60).text
    assert "INVALID_FIELD" in journal
    logged = "\n".join(map(str, server.lines))
    assert '"caller": "line-4"' in logged.replace("'", '"')
    for secret in (key, wrong):
        assert secret not in logged
        assert secret not in metrics
        assert secret not in journal
        assert secret not in file.read_text()
        assert [a.request.path_url for a in answers if secret in a.text] == []


def test_a_key_counts_whatever_a_proxy_adds(colors: Path, tmp_path: Path) -> None:
    """Over a real connection, on which one header may come in several lines."""
    file = tmp_path / "keys.jsonl"
    key = add_key(file, "line-4", ["recognize"], now=NOW)
    basic, foreign, ours = "Basic YTpi", "Bearer eyJh.eyJi.c2ln", f"Bearer {key}"
    with live_server(models=colors, keys_file=file) as server:
        for lines in (
            [("Authorization", basic), ("X-API-Key", key)],
            [("Authorization", foreign), ("X-API-Key", key)],
            [("Authorization", ""), ("X-API-Key", key)],
            [("Authorization", ours), ("X-API-Key", "")],
            [("Authorization", f"{basic}, {ours}")],
            [("Authorization", basic), ("Authorization", ours)],
            [("Authorization", ours), ("Authorization", basic)],
            [("X-API-Key", "other"), ("X-API-Key", key)],
        ):
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
            connection.putrequest("POST", "/v1/recognize")
            for name, value in (*lines, ("Content-Length", str(len(RED)))):
                connection.putheader(name, value)
            connection.endheaders(RED)
            assert connection.getresponse().status == 200, lines
            connection.close()


def test_a_key_as_a_name_is_refused_in_any_body(colors_server: LiveServer) -> None:
    key = "ls_" + "A" * 43
    url = colors_server.url + "/v1/recognize"
    image = base64.b64encode(RED).decode()
    for how in (
        {"params": {"camera": key}, "data": RED, "headers": {"Content-Type": "image/png"}},
        {"data": {"part": key}, "files": {"file": RED}},
        {"json": {"image_base64": image, "camera": key}},
    ):
        answer = requests.post(url, timeout=60, **how)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "INVALID_FIELD")
        assert "looks like a key" in answer.json()["error"]["message"]
        assert key not in answer.text
    named = requests.post(url, RED, params={"camera": "wheels_of_the_press_at_line_4"})
    assert named.json()["camera"] == "wheels_of_the_press_at_line_4"


def count_admitted(url: str, key: str, start: threading.Barrier) -> tuple[int, int, set[int]]:
    """Asks as fast as it can for SECONDS; returns how often it was let in, how often a window of a
    second that moves lets it in, and the statuses."""
    statuses, times = [], []
    with requests.Session() as session:
        session.headers.update(bearer(key))
        start.wait(30)
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            times.append(time.monotonic())
            statuses.append(session.get(f"{url}/v1/models", timeout=60).status_code)
    return statuses.count(200), let_in(times), set(statuses)


def let_in(times: list[float]) -> int:
    """How many of those who ask at `times` are let in, RATE in any second: on a busy machine the
    clients may not ask as often."""
    window, count = deque[float](), 0
    for moment in times:
        while window and window[0] <= moment - 1:
            window.popleft()
        if len(window) < RATE:
            window.append(moment)
            count += 1
    return count


def test_limits_hold_for_two_keys_at_once(colors: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    keys = [add_key(file, name, ["recognize"], now=NOW) for name in ("a", "b")]
    slow = add_key(file, "slow", ["recognize"], now=NOW, rate="1/second")
    settings = {"models": colors, "keys_file": file, "log_level": "warning"}
    with live_server(
        **settings | {"rate_per_key": f"{RATE}/second", "log_level": "info"}
    ) as server:
        start = threading.Barrier(len(keys))
        with ThreadPoolExecutor(len(keys)) as pool:
            counted = list(
                pool.map(count_admitted, itertools.repeat(server.url), keys, [start] * len(keys))
            )
        for admitted, expected, statuses in counted:
            assert admitted == pytest.approx(expected, rel=0.05)
            # A window that moves lets in RATE at once at the start, and as many in each second.
            assert admitted <= RATE * SECONDS * 1.05
            assert statuses == {200, 429}
        url = f"{server.url}/v1/models"
        answers = (requests.get(url, headers=bearer(slow), timeout=60) for _ in range(50))
        assert next(answers).status_code == 200
        # Where the machine stalls for a second between two, the next one is let in too.
        refused = next((answer for answer in answers if answer.status_code == 429), None)
        assert refused is not None
        threading.Event().wait(int(refused.headers["Retry-After"]))
        assert requests.get(url, headers=bearer(slow), timeout=60).status_code == 200


def test_a_server_for_others_does_not_start_without_keys(colors: Path, tmp_path: Path) -> None:
    def serve(*flags: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                *(sys.executable, "-m", "server", "serve", "--host", "0.0.0.0"),
                *("--port", str(free_port()), "--models", str(colors)),
                *("--keys-file", str(tmp_path / "keys.jsonl"), *flags),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )

    done = serve()
    assert done.returncode == 1
    assert "0.0.0.0 can be reached from other machines" in done.stderr
    assert "python -m server key add NAME --rights recognize" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_for_others_starts_when_it_is_told_to(colors: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    with live_server(models=colors, keys_file=file, host="0.0.0.0", auth="off") as server:
        assert server.recognize(RED).status_code == 200
    assert any("auth is off" in line["event"] for line in server.lines)
    key = add_key(file, "a", ["recognize"], now=NOW)
    with live_server(models=colors, keys_file=file, host="0.0.0.0") as server:
        assert server.recognize(RED).status_code == 401
        url = f"{server.url}/v1/recognize"
        assert requests.post(url, RED, headers=bearer(key), timeout=60).status_code == 200


def test_headers_are_bounded(colors_server: LiveServer) -> None:
    url = colors_server.url + "/livez"
    for headers in ({"X-Long": "x" * 2_000_000}, {f"X-{n}": "x" for n in range(150)}):
        assert requests.get(url, headers=headers, timeout=60).status_code == 431
    assert requests.get(url, timeout=60).status_code == 200
