"""A real Prometheus watches a live server: every rule and panel has something to show."""

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import requests
from fake_devices import boards, panel_queries
from job_workers import await_that
from machines import raspberry_pi
from prometheus_client.parser import text_string_to_metric_families
from prometheus_server import Prometheus, prometheus
from promql import compared, filled, metrics_of
from routes import ROUTES
from server_process import ROOT, LiveServer, live_server

from server.http.routes import FRAMES

# By `server.observe.drift`, 20 a bin for the six labels of the shipped bundle.
ENOUGH_FOR_DRIFT = 125
# What Prometheus itself has.
ITS_OWN = {"up", "ALERTS"}


@pytest.fixture(scope="module")
def device(sample: bytes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A live server on a made-up Raspberry Pi, that has seen enough frames to tell of drift, and
    a job."""
    root = raspberry_pi(tmp_path_factory.mktemp("machine"))
    output = '[{"name": "plc", "kind": "mqtt", "host": "127.0.0.1", "port": 1}]'
    camera = '[{"name": "folder", "kind": "folder", "path": "."}]'
    trigger = '[{"name": "t", "kind": "gpio", "camera": "folder", "chip": "none", "line": 1}]'
    vote = '[{"name": "sides", "cameras": ["st4-side"], "frames": 2, "timeout_s": 1}]'
    settings: dict[str, object] = {"samples": "on", "drift_min_frames": 1, "golden_check_s": 2}
    settings |= {"output": output, "camera": camera, "trigger": trigger, "image_health": "on"}
    settings["vote"] = vote
    with live_server(
        "-m", "tests.support.serve_machine", str(root), **settings, traced=True
    ) as running:
        with requests.Session() as session:
            for _ in range(ENOUGH_FOR_DRIFT):
                url = running.url + "/v1/recognize"
                answer = session.post(url, {"camera": "st4-top"}, files={"file": sample})
                assert answer.status_code == 200
            answer = session.post(running.url + "/v1/jobs", files={"file": sample})
            assert answer.status_code == 202
        yield running


@pytest.fixture(scope="module")
def watching(device: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that watches `device`."""
    target = device.url.removeprefix("http://")
    with prometheus(tmp_path_factory.mktemp("prometheus"), target) as running:
        yield running


def send_some(server: LiveServer, sample: bytes) -> None:
    """Good, bad and refused frames of two cameras, one of which sends some that are damaged; and a
    trigger of the camera that the server reads."""
    requests.post(server.url + "/v1/cameras/folder/trigger", timeout=60)
    answers = [
        server.recognize(sample, camera="st4-top"),
        server.recognize(sample, camera="st4-side"),
        server.recognize(sample[:2000], camera="st4-side"),
        server.recognize(b"no image", camera="st4-side"),
        server.recognize(sample, camera="st4-top", deadline_ms=0.001),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 422, 415, 503]


def exposed(server: LiveServer) -> set[str]:
    """The names of all samples of /metrics."""
    text = requests.get(server.url + "/metrics", timeout=60).text
    families = text_string_to_metric_families(text)
    return {sample.name for family in families for sample in family.samples}


def without_series(watching: Prometheus, exprs: set[str]) -> set[str]:
    """Those of `exprs` that have no series at this moment."""
    return {expr for expr in exprs if not watching.query(expr)}


def await_series(
    server: LiveServer, watching: Prometheus, sample: bytes, exprs: set[str], timeout: float = 60
) -> None:
    """Sends frames until each of `exprs` has series; fails with those that have none."""
    pause, until = threading.Event(), time.monotonic() + timeout
    while exprs := without_series(watching, exprs):
        assert time.monotonic() < until, f"no series: {sorted(exprs)}"
        send_some(server, sample)
        pause.wait(0.5)


def test_every_rule_has_series_after_a_mixed_load(
    device: LiveServer, watching: Prometheus, sample: bytes
) -> None:
    rules = watching.rules()
    exprs = {
        compared(rule["query"]) if rule["type"] == "alerting" else rule["query"] for rule in rules
    }
    assert len(exprs) >= 20
    await_series(device, watching, sample, exprs)
    assert {rule["health"] for rule in watching.rules()} == {"ok"}


def test_every_panel_has_series_after_a_mixed_load(
    device: LiveServer, watching: Prometheus, sample: bytes
) -> None:
    exprs = {filled(expr) for queries in panel_queries().values() for _, expr in queries}
    assert len(exprs) >= 40
    await_series(device, watching, sample, exprs)


def test_every_variable_has_values(device: LiveServer, watching: Prometheus, sample: bytes) -> None:
    send_some(device, sample)
    watching.await_up()
    for board in boards().values():
        assert board.templating.list_val is not None
        for variable in board.templating.list_val:
            if isinstance(variable.query, str) and "label_values" in variable.query:
                found = re.fullmatch(r"label_values\((.*), (\w+)\)", variable.query)
                assert found, variable.query
                await_series(device, watching, sample, {filled(found[1])})
                assert all(found[2] in s["metric"] for s in watching.query(filled(found[1])))


def test_rules_and_panels_name_existing_metrics(
    device: LiveServer, watching: Prometheus, sample: bytes
) -> None:
    """No rule and no panel names a metric that does not exist."""
    send_some(device, sample)
    rules = watching.rules()
    recorded = {rule["name"] for rule in rules if rule["type"] == "recording"}
    known = exposed(device) | recorded | ITS_OWN
    named = {f"rule {rule['name']}": rule["query"] for rule in rules}
    for name, queries in panel_queries().items():
        named |= {f"{name}: {title}: {expr}": expr for title, expr in queries}
    for where, expr in named.items():
        assert metrics_of(expr), where
        assert metrics_of(expr) <= known, f"{where} names {metrics_of(expr) - known}"


def test_the_routes_of_the_rules_are_those_of_single_frames(watching: Prometheus) -> None:
    frames = {route.rule for route in ROUTES if route.rights == FRAMES}
    found = {
        text for rule in watching.rules() for text in re.findall(r'route=~"([^"]*)"', rule["query"])
    }
    assert len(found) == 1, "the rules do not agree on the routes"
    pattern = re.compile(found.pop().replace(r"\\", "\\"))
    matched = {route.rule for route in ROUTES if pattern.fullmatch(route.rule)}
    assert matched <= frames
    assert {"/v1/recognize", "/classify", "/predict", "/api/recognize"} <= matched
    assert {route for route in frames if route.endswith(("/infer", ":predict"))} <= matched
    assert "/v1/recognize/batch" not in matched


def test_prometheus_scrapes_with_the_configured_key(colors: Path, tmp_path: Path) -> None:
    """Prometheus scrapes with a key as its configuration shows."""
    keys = tmp_path / "keys.jsonl"
    made = subprocess.run(
        [sys.executable, "-m", "server", "key", "add", "prometheus", "--rights", "metrics"],
        cwd=ROOT,
        env={"LINESIDE_KEYS_FILE": str(keys)},
        capture_output=True,
        text=True,
        check=True,
    )
    key = made.stdout.strip().splitlines()[-1]
    with live_server(models=colors, auth="required", keys_file=keys, traced=True) as server:
        assert requests.get(server.url + "/metrics", timeout=60).status_code == 401
        with prometheus(tmp_path, server.url.removeprefix("http://"), key) as watching:
            (ready,) = await_that(lambda: watching.query("lineside_ready"), "lineside_ready")
            assert ready["value"][1] == "1"
            assert ready["metric"]["station"] == "station-1"


def test_a_device_is_added_by_a_file_without_a_restart(
    device: LiveServer, watching: Prometheus, colors_server: LiveServer
) -> None:
    added = watching.targets / "second.json"
    target = colors_server.url.removeprefix("http://")
    labels = {"line": "line-2", "station": "station-1"}
    written = added.with_suffix(".new")
    written.write_bytes(msgspec.json.encode([{"targets": [target], "labels": labels}]))
    written.rename(added)
    pause, until = threading.Event(), time.monotonic() + 60
    while not watching.query(f'up{{instance="{target}", line="line-2"}} == 1'):
        assert time.monotonic() < until, watching.get("targets")
        pause.wait(0.1)
    added.unlink()
    watching.await_up()  # as the other tests find it
