"""The alerts that would fire now, by the server's own metrics."""

import threading
import time
from collections.abc import Sequence
from typing import Literal

import msgspec
from prometheus_client import CollectorRegistry

from server.observe.alert_rules import DISK_FREE_MIN, MEMORY_MAX, RULES, Rule, Severity
from server.observe.series import History
from server.system.clock import rfc3339

# Metrics by part: 1 if connected; counts of what was lost.
CONNECTIONS = {
    "cameras connected": "camera_connected",
    "outputs connected": "output_connected",
    "triggers connected": "trigger_connected",
}
LOSSES = {
    "rows that the journal lost": "journal_lost_total",
    "samples lost": "samples_lost_total",
    "crashes of the worker": "worker_crashes_total",
}


class Alert(msgspec.Struct, frozen=True):
    """One condition that holds. alert: the rule's name in deploy/prometheus/rules. subject: the
    camera, model, output... that it is about, empty for the server. state: pending until it has
    held for `for_s` seconds. since: when it was first seen, RFC 3339. value: the one that is out
    of bounds; bound: of the rule. text: a sentence."""

    alert: str
    severity: Severity
    subject: str
    state: Literal["pending", "firing"]
    since: str
    for_s: float
    value: float
    bound: float
    text: str


class Part(msgspec.Struct, frozen=True):
    """The health of one part of the server. value: a number, a share or a count, in words of no
    language; `off` if the part is switched off."""

    part: str
    state: Literal["ok", "warning", "failed", "off"]
    value: str


def _connected(history: History, part: str, name: str) -> Part:
    values = [value for _, value in history.latest(name)]
    if not values:
        return Part(part, "off", "off")
    state: Literal["ok", "failed"] = "ok" if all(values) else "failed"
    return Part(part, state, f"{sum(values):.0f} / {len(values)}")


def _lost(history: History, part: str, name: str) -> Part:
    values = [value for _, value in history.latest(name)]
    if not values:
        return Part(part, "off", "off")
    return Part(part, "failed" if sum(values) else "ok", f"{sum(values):.0f}")


def parts_of(history: History) -> list[Part]:
    """Return the health of every part, by the bounds of the alerts where there are any."""
    ready = [value for _, value in history.latest("ready")]
    serving = len(list(history.latest("model_info")))
    parts = [Part("models that serve", "ok" if all(ready) else "failed", str(serving))]
    for part, name in CONNECTIONS.items():
        parts.append(_connected(history, part, name))
    for part, name in LOSSES.items():
        parts.append(_lost(history, part, name))
    for scope, used in history.ratios("memory_used_bytes", "memory_limit_bytes", "scope"):
        state: Literal["ok", "warning"] = "warning" if used > MEMORY_MAX else "ok"
        parts.append(Part(f"memory used ({scope})", state, f"{used * 100:.0f} %"))
    for folder, free in history.ratios("disk_free_bytes", "disk_size_bytes", "folder"):
        state = "warning" if free < DISK_FREE_MIN else "ok"
        parts.append(Part(f"disk used ({folder})", state, f"{(1 - free) * 100:.0f} %"))
    throttled = any(value for _, value in history.latest("device_throttled"))
    for _, celsius in history.latest("device_temperature_celsius"):
        state = "warning" if throttled else "ok"
        parts.append(Part("temperature", state, f"{celsius:.0f} °C"))
    return parts


class Alerts:
    """Finds the alerts of a server by the metrics in `registry`. `_lock` guards all."""

    def __init__(self, registry: CollectorRegistry, rules: Sequence[Rule] = RULES) -> None:
        self._lock = threading.Lock()
        self._history = History(registry)
        self._rules = rules
        # When each condition that holds was first seen: of time.monotonic(), and of the clock.
        self._since: dict[tuple[str, str, str], tuple[float, float]] = {}

    def find(self) -> tuple[list[Alert], list[Part], float]:
        """Return what holds now, what fires first; the health of every part; and of how many
        seconds of the past it is judged."""
        with self._lock:
            self._history.refresh()
            now, wall = time.monotonic(), self._history.wall
            since: dict[tuple[str, str, str], tuple[float, float]] = {}
            alerts = []
            for rule in self._rules:
                for found in rule.find(self._history, rule.bound):
                    key = rule.name, found.subject, found.detail
                    since[key] = began = self._since.get(key, (now, wall))
                    alerts.append(
                        Alert(
                            rule.name,
                            rule.severity,
                            found.subject,
                            "firing" if now - began[0] >= rule.for_s else "pending",
                            rfc3339(began[1]),
                            rule.for_s,
                            round(found.value, 4),
                            rule.bound,
                            found.text,
                        )
                    )
            self._since = since
            parts, reach = parts_of(self._history), self._history.reach()
        order = {"critical": 0, "warning": 1}
        alerts.sort(key=lambda each: (each.state != "firing", order[each.severity]))
        return alerts, parts, reach
