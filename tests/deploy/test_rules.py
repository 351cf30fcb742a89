"""Prometheus's own tool on the configuration, the rules and their unit tests."""

import shutil
import subprocess

import msgspec
import pytest
from prometheus_server import PROMETHEUS


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


def test_promtool_tests_every_alert_firing_and_silent() -> None:
    """Promtool passes a test of every alert, firing and silent."""
    files = sorted((PROMETHEUS / "tests").glob("*.yml"))
    assert promtool("test", "rules", *map(str, files)).count("SUCCESS") == len(files) == 2
    rules = msgspec.yaml.decode((PROMETHEUS / "rules" / "alerts.yml").read_bytes())
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    fires: set[str] = set()
    quiet: set[str] = set()
    tests = [test for file in files for test in msgspec.yaml.decode(file.read_bytes())["tests"]]
    for test in tests:
        for case in test.get("alert_rule_test", ()):
            (fires if case["exp_alerts"] else quiet).add(case["alertname"])
    assert fires == alerts
    assert quiet == alerts


def test_alerts_have_severity_and_first_step() -> None:
    """Every alert says how bad it is and what to look at first."""
    rules = msgspec.yaml.decode((PROMETHEUS / "rules" / "alerts.yml").read_bytes())
    for group in rules["groups"]:
        for rule in group["rules"]:
            assert rule["labels"]["severity"] in ("warning", "critical")
            assert set(rule["annotations"]) == {"summary", "description"}
            assert rule["annotations"]["description"].startswith("Look first")
