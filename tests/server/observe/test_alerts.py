"""The alerts that a server finds by itself are those of deploy/prometheus."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from server.observe.alert_rules import FRAME_ROUTES, RULES, UNSEEN
from server.observe.alerts import Alerts

FOLDER = Path(__file__).parents[3] / "deploy" / "prometheus" / "rules"
NUMBER = re.compile(r"(?:<|>|==) (\d+(?:\.\d+)?)")
UNITS = {"s": 1, "m": 60}


def written() -> dict[str, dict[str, Any]]:
    """The rules of Prometheus by name."""
    groups = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def test_rules_are_those_of_prometheus() -> None:
    rules = written()
    assert {rule.name for rule in RULES} | set(UNSEEN) == set(rules)
    for rule in RULES:
        other = rules[rule.name]
        lasts = other.get("for", "0s")
        assert rule.severity == other["labels"]["severity"], rule.name
        assert rule.for_s == int(lasts[:-1]) * UNITS[lasts[-1]], rule.name
        assert rule.bound in [float(number) for number in NUMBER.findall(other["expr"])], rule.name
    assert FRAME_ROUTES in (FOLDER / "recording.yml").read_text()


class Machine:
    """A few metrics of a server, and what is found by them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.ready = Gauge("lineside_ready", "", registry=self.registry)
        self.ready.set(1)
        self.alerts = Alerts(self.registry)

    def counter(self, name: str, *labels: str) -> Counter:
        return Counter(f"lineside_{name}", "", labels, registry=self.registry)

    def gauge(self, name: str, *labels: str) -> Gauge:
        return Gauge(f"lineside_{name}", "", labels, registry=self.registry)

    def found(self) -> dict[tuple[str, str], str]:
        """The states by name and subject."""
        return {(each.alert, each.subject): each.state for each in self.alerts.find()[0]}


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_condition_is_pending_at_first(machine: Machine) -> None:
    connected = machine.gauge("camera_connected", "camera")
    connected.labels("a").set(1)
    connected.labels("b").set(0)
    machine.ready.set(0)
    expected = {("LinesideNotReady", ""): "pending", ("LinesideCameraLost", "b"): "pending"}
    assert machine.found() == expected
    parts = {part.part: (part.state, part.value) for part in machine.alerts.find()[1]}
    assert parts["cameras connected"] == ("failed", "1 / 2")
    assert parts["outputs connected"] == ("off", "off")
    machine.ready.set(1)
    connected.labels("b").set(1)
    assert machine.found() == {}


def test_counters_since_the_start_are_judged(machine: Machine) -> None:
    frames = machine.counter("camera_frames_total", "camera", "result")
    verdicts = machine.counter("camera_verdicts_total", "camera", "verdict")
    problems = machine.counter("camera_image_problems_total", "camera", "problem")
    runs = machine.counter("camera_fail_runs_total", "camera")
    lost = machine.counter("output_messages_total", "output", "result")
    frames.labels("bad", "refused").inc(3)
    frames.labels("few", "refused").inc(2)
    frames.labels("good", "answered").inc(20)
    problems.labels("good", "blurred").inc(11)
    verdicts.labels("good", "unsure").inc(3)
    verdicts.labels("good", "pass").inc(9)
    runs.labels("good").inc()
    lost.labels("plc", "dropped").inc(2)
    lost.labels("plc", "delivered").inc(5)
    assert machine.found() == {
        ("LinesideOutputLosing", "plc"): "firing",
        ("LinesideCameraFailRun", "good"): "firing",
        ("LinesideCameraFailing", "bad"): "pending",
        ("LinesideImageUnhealthy", "good"): "pending",
        ("LinesideCameraUnsure", "good"): "pending",
    }


def test_slow_and_failing_requests_are_found(machine: Machine) -> None:
    seconds = Histogram(
        "lineside_request_duration_seconds",
        "",
        ("route",),
        buckets=(0.1, 1, 2),
        registry=machine.registry,
    )
    requests = machine.counter("requests_total", "route", "status")
    errors = machine.counter("request_errors_total", "route", "reason")
    for value in (0.05, 1.9):
        seconds.labels("/v1/recognize").observe(value)
    seconds.labels("/v1/journal").observe(50)
    requests.labels("/v1/recognize", "200").inc(90)
    requests.labels("/v1/recognize", "422").inc(10)
    errors.labels("/v1/recognize", "STALE_FRAME").inc(2)
    errors.labels("/v1/recognize", "UNDECODABLE_IMAGE").inc(10)
    found = machine.alerts.find()[0]
    values = {each.alert: (each.subject, each.value) for each in found}
    assert values == {
        "LinesideSlow": ("", pytest.approx(1.98, abs=0.01)),
        "LinesideErrors": ("", 0.1),
        "LinesideRefusingFrames": ("STALE_FRAME", 0.02),
    }
