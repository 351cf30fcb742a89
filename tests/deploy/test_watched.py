"""A real Prometheus watches a live server: every rule and panel has something to show."""

import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import requests
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard, Panel, RowPanel
from grafana_foundation_sdk.models.prometheus import Dataquery
from live import ROOT, LiveServer, live_server
from machines import raspberry_pi
from prometheus_client.parser import text_string_to_metric_families
from prometheus_server import PROMETHEUS, Prometheus, prometheus
from promql import compared, filled, metrics_of
from sdk_types import faults

from server.api.access import FRAMES, RIGHTS_OF

GRAFANA = ROOT / "deploy" / "grafana"
# Metrics of parts that are not in this tree yet.
COMING = {
    "lineside_cache_lookups_total",
    "lineside_jobs_total",
    "lineside_jobs_pending",
    "lineside_journal_rows_total",
    "lineside_journal_lost_total",
}
# By `server.observe.drift`, 20 a bin for the six labels of the shipped bundle.
ENOUGH_FOR_DRIFT = 125
# What Prometheus itself has.
ITS_OWN = {"up", "ALERTS"}
# By dashboard: title and expression of each query of its panels.
Queries = dict[str, list[tuple[str, str]]]


@pytest.fixture(scope="module")
def device(sample: bytes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A live server on a made-up Raspberry Pi, that has seen enough frames to tell of drift."""
    root = raspberry_pi(tmp_path_factory.mktemp("machine"))
    settings = {"samples": "on", "drift_min_frames": 1}
    with live_server("-m", "tests.serve_machine", str(root), **settings) as running:
        with requests.Session() as session:
            for _ in range(ENOUGH_FOR_DRIFT):
                answer = session.post(running.url + "/v1/recognize", {}, files={"file": sample})
                assert answer.status_code == 200
        yield running


@pytest.fixture(scope="module")
def watching(device: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that watches `device`."""
    target = device.url.removeprefix("http://")
    with prometheus(tmp_path_factory.mktemp("prometheus"), target) as running:
        yield running


def send_some(server: LiveServer, sample: bytes) -> None:
    """Good, bad and refused frames of two cameras, one of which sends some that are damaged."""
    answers = [
        server.recognize(sample, camera="st4-top"),
        server.recognize(sample, camera="st4-side"),
        server.recognize(sample[:2000], camera="st4-side"),
        server.recognize(b"no image", camera="st4-side"),
        server.recognize(sample, camera="st4-top", deadline_ms=0.001),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 422, 415, 503]


def boards() -> dict[str, Dashboard]:
    """The committed dashboards as the SDK's types, by file name."""
    plugins.register_default_plugins()
    files = sorted((GRAFANA / "dashboards").glob("*.json"))
    return {
        file.name: Dashboard.from_json(msgspec.json.decode(file.read_bytes())) for file in files
    }


def panel_queries() -> Queries:
    """Every query of every panel."""
    found: Queries = {}
    for name, board in boards().items():
        found[name] = [
            (panel.title or "", query.expr)
            for panel in board.panels or []
            if not isinstance(panel, RowPanel)
            for query in panel.targets or []
            if isinstance(query, Dataquery)
        ]
    return found


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
    while exprs:
        assert time.monotonic() < until, f"no series: {sorted(exprs)}"
        send_some(server, sample)
        pause.wait(0.5)
        exprs = without_series(watching, exprs)


def test_every_rule_has_series_after_a_mixed_load(
    device: LiveServer, watching: Prometheus, sample: bytes
) -> None:
    rules = watching.rules()
    exprs = {
        compared(rule["query"]) if rule["type"] == "alerting" else rule["query"] for rule in rules
    }
    assert len(exprs) >= 20
    ready = {expr for expr in exprs if not metrics_of(expr) & COMING}
    await_series(device, watching, sample, ready)
    assert {rule["health"] for rule in watching.rules()} == {"ok"}


def test_every_panel_has_series_after_a_mixed_load(
    device: LiveServer, watching: Prometheus, sample: bytes
) -> None:
    exprs = {filled(expr) for queries in panel_queries().values() for _, expr in queries}
    assert len(exprs) >= 40
    ready = {expr for expr in exprs if not metrics_of(expr) & COMING}
    await_series(device, watching, sample, ready)


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


def test_no_rule_and_no_panel_names_a_metric_that_is_not_there(
    device: LiveServer, watching: Prometheus, sample: bytes
) -> None:
    send_some(device, sample)
    rules = watching.rules()
    recorded = {rule["name"] for rule in rules if rule["type"] == "recording"}
    known = exposed(device) | recorded | ITS_OWN | COMING
    named = {f"rule {rule['name']}": rule["query"] for rule in rules}
    for name, queries in panel_queries().items():
        named |= {f"{name}: {title}: {expr}": expr for title, expr in queries}
    for where, expr in named.items():
        assert metrics_of(expr), where
        assert metrics_of(expr) <= known, f"{where} names {metrics_of(expr) - known}"


def test_what_is_coming_is_not_there_yet(device: LiveServer, sample: bytes) -> None:
    send_some(device, sample)
    assert not COMING & exposed(device), "take these from COMING"


def test_the_routes_of_the_rules_are_those_of_single_frames(watching: Prometheus) -> None:
    frames = {route for route, rights in RIGHTS_OF.items() if rights == FRAMES}
    found = {
        text for rule in watching.rules() for text in re.findall(r'route=~"([^"]*)"', rule["query"])
    }
    assert len(found) == 1, "the rules do not agree on the routes"
    pattern = re.compile(found.pop().replace(r"\\", "\\"))
    matched = {route for route in RIGHTS_OF if pattern.fullmatch(route)}
    assert matched <= frames
    assert {"/v1/recognize", "/classify", "/predict", "/api/recognize"} <= matched
    assert {route for route in frames if route.endswith(("/infer", ":predict"))} <= matched
    assert "/v1/recognize/batch" not in matched


def test_prometheus_scrapes_with_a_key_as_its_configuration_shows(
    colors: Path, tmp_path: Path
) -> None:
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
    with live_server(models=colors, auth="required", keys_file=keys) as server:
        assert requests.get(server.url + "/metrics", timeout=60).status_code == 401
        with prometheus(tmp_path, server.url.removeprefix("http://"), key) as watching:
            (ready,) = watching.query("lineside_ready")
            assert ready["value"][1] == "1"
            assert ready["metric"]["station"] == "station-1"


def promtool(*arguments: str) -> str:
    """What promtool says; fails where it is not content."""
    if shutil.which("promtool") is None:
        pytest.skip("the Debian package prometheus, which has promtool, is not installed")
    done = subprocess.run(
        ["promtool", *arguments], cwd=PROMETHEUS, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_accepts_the_configuration_and_the_rules() -> None:
    assert "SUCCESS" in promtool("check", "config", "prometheus.yml")
    files = [str(path.relative_to(PROMETHEUS)) for path in (PROMETHEUS / "rules").glob("*.yml")]
    assert promtool("check", "rules", *files).count("SUCCESS") == len(files) == 2


def test_promtool_passes_a_test_of_every_alert_firing_and_not() -> None:
    (file,) = (PROMETHEUS / "tests").glob("*.yml")
    assert "SUCCESS" in promtool("test", "rules", str(file))
    rules = msgspec.yaml.decode((PROMETHEUS / "rules" / "alerts.yml").read_bytes())
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    fires: set[str] = set()
    quiet: set[str] = set()
    for test in msgspec.yaml.decode(file.read_bytes())["tests"]:
        for case in test.get("alert_rule_test", ()):
            (fires if case["exp_alerts"] else quiet).add(case["alertname"])
    assert fires == alerts
    assert quiet == alerts


def test_every_alert_says_how_bad_it_is_and_what_to_look_at_first() -> None:
    rules = msgspec.yaml.decode((PROMETHEUS / "rules" / "alerts.yml").read_bytes())
    for group in rules["groups"]:
        for rule in group["rules"]:
            assert rule["labels"]["severity"] in ("warning", "critical")
            assert set(rule["annotations"]) == {"summary", "description"}
            assert rule["annotations"]["description"].startswith("Look first")


def test_the_dashboards_are_those_that_the_program_makes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, GRAFANA / "make.py", tmp_path], check=True, timeout=60)
    made = {file.name: file.read_text("utf-8") for file in tmp_path.iterdir()}
    kept = {file.name: file.read_text("utf-8") for file in (GRAFANA / "dashboards").iterdir()}
    assert set(made) == {"line.json", "device.json"}
    assert made == kept, "run deploy/grafana/make.py"


def test_the_dashboards_fit_the_schema() -> None:
    """What Grafana's schema does not know is lost on the way through the SDK's types."""
    for name, board in boards().items():
        kept = msgspec.json.decode((GRAFANA / "dashboards" / name).read_bytes())
        assert msgspec.json.decode(JSONEncoder().encode(board)) == kept
        assert list(faults(board)) == []


def test_a_dashboard_that_does_not_fit_the_schema_is_found() -> None:
    board = boards()["line.json"]
    board.refresh = 30  # type: ignore[assignment]
    assert board.panels is not None
    panel = board.panels[1]
    assert isinstance(panel, Panel)
    assert panel.grid_pos is not None
    panel.grid_pos.h = "high"  # type: ignore[assignment]
    assert [fault.split(" is ")[0] for fault in faults(board)] == [
        ".refresh",
        ".panels[1].grid_pos.h",
    ]


def test_every_panel_is_explained_and_asks_the_chosen_source() -> None:
    for board in boards().values():
        panels = [panel for panel in board.panels or [] if not isinstance(panel, RowPanel)]
        assert len({panel.id_val for panel in panels}) == len(panels)
        for panel in panels:
            assert panel.description, panel.title
            assert panel.datasource is not None
            assert panel.datasource.uid == "$datasource"
            assert panel.grid_pos is not None


def test_the_provisioning_names_what_is_there() -> None:
    folder = GRAFANA / "provisioning"
    sources = msgspec.yaml.decode((folder / "datasources" / "prometheus.yml").read_bytes())
    (source,) = sources["datasources"]
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    config = msgspec.yaml.decode((PROMETHEUS / "prometheus.yml").read_bytes())
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]
    providers = msgspec.yaml.decode((folder / "dashboards" / "lineside.yml").read_bytes())
    assert [provider["type"] for provider in providers["providers"]] == ["file"]
