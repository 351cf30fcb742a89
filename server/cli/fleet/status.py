"""python -m server fleet status: how each device is, by its own metrics and alerts."""

import argparse
import json

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from server.cli.fleet.device import Device, DeviceError
from server.cli.fleet.hosts import find_devices, on_each

OLDER = "without a digest"


class FiringAlert(msgspec.Struct, frozen=True):
    """One alert of a device."""

    alert: str
    subject: str
    state: str


class AlertList(msgspec.Struct, frozen=True):
    """The alerts of a device."""

    alerts: tuple[FiringAlert, ...]


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of a device's metrics; None for what they don't have.

    program: digest of the program's files, None of a program that came before it. requests, errors:
    since the server's start. drift: the highest index of all models and signals. disk_free: the
    least free share of a disk that the server uses. temperature: of the hottest zone, in degrees
    Celsius. throttled: the firmware slows the machine down now.
    """

    version: str | None
    program: str | None
    requests: int
    errors: int
    drift: float | None
    disk_free: float | None
    temperature: float | None
    throttled: bool


class DeviceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One row. serving, refused: as NAME/VERSION. measured, alerts: None if the device did not
    tell; why is in `missing`."""

    name: str
    ready: bool
    error: str | None = None
    serving: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    measured: Measured | None = None
    alerts: tuple[str, ...] | None = None
    missing: tuple[str, ...] = ()


def measure(text: str) -> Measured:
    """Read the metrics `text`, in Prometheus's format. Raises ValueError if it is in none."""
    values: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for line in family.samples:
            values.setdefault(line.name, []).append((line.labels, line.value))

    def numbers(name: str) -> list[float]:
        return [value for _, value in values.get(f"lineside_{name}", ())]

    sizes = {labels["folder"]: size for labels, size in values.get("lineside_disk_size_bytes", ())}
    free = [
        value / sizes[labels["folder"]]
        for labels, value in values.get("lineside_disk_free_bytes", ())
        if sizes.get(labels["folder"])
    ]
    build = next((labels for labels, _ in values.get("lineside_build_info", ())), {})
    return Measured(
        version=build.get("version"),
        program=build.get("program"),
        requests=round(sum(numbers("requests_total"))),
        errors=round(sum(numbers("request_errors_total"))),
        drift=max(numbers("drift_ratio"), default=None),
        disk_free=min(free, default=None),
        temperature=max(numbers("device_temperature_celsius"), default=None),
        throttled=any(numbers("device_throttled")),
    )


def measured(device: Device) -> Measured:
    """Return what the device's metrics say. Raises DeviceError, also if they are none."""
    text = device.ask("GET", "/metrics").decode("utf-8", "replace")
    try:
        return measure(text)
    except ValueError:
        raise DeviceError("it answers /metrics, but not with metrics") from None


def look(device: Device) -> DeviceStatus:
    """Ask one device. Raises DeviceError if it does not answer as a Lineside server."""
    models = device.models()
    error: str | None = None
    try:
        device.ask("GET", "/readyz")
    except DeviceError as fault:
        error = str(fault)
    figures: Measured | None = None
    alerts: tuple[str, ...] | None = None
    missing: list[str] = []
    try:
        figures = measured(device)
    except DeviceError as fault:
        missing.append(f"no metrics: {fault}")
    try:
        found = device.get("/v1/alerts", AlertList).alerts
        firing = (each for each in found if each.state == "firing")
        alerts = tuple(
            f"{each.alert} ({each.subject})" if each.subject else each.alert for each in firing
        )
    except DeviceError as fault:
        missing.append(f"no alerts: {fault}")
    return DeviceStatus(
        name=device.name,
        ready=error is None,
        error=error,
        serving=tuple(f"{each.name}/{each.serving}" for each in models if each.serving),
        refused=tuple(f"{m.name}/{failed.version}" for m in models for failed in m.failures),
        measured=figures,
        alerts=alerts,
        missing=tuple(missing),
    )


def program_text(figures: Measured) -> str:
    """Return the program of a device in words: its version, and the digest of its files."""
    return f"{figures.version or 'of no version'} ({figures.program or OLDER})"


def _line(row: DeviceStatus) -> str:
    """Return the row as a line for people."""
    parts = [f"ready, {', '.join(row.serving)}" if row.ready else f"failed, {row.error}"]
    if row.refused:
        parts.append(f"refused: {', '.join(row.refused)}")
    if (figures := row.measured) is not None:
        parts.append(f"program {program_text(figures)}")
        parts.append(f"{figures.errors} errors of {figures.requests} requests")
        if figures.drift is not None:
            parts.append(f"drift {figures.drift:.2f}")
        if figures.disk_free is not None:
            parts.append(f"disk {figures.disk_free * 100:.0f} % free")
        if figures.temperature is not None:
            hot = ", throttled" if figures.throttled else ""
            parts.append(f"{figures.temperature:.0f} °C{hot}")
    if row.alerts:
        parts.append(f"alerts: {', '.join(row.alerts)}")
    return f"{row.name}: {'; '.join([*parts, *row.missing])}"


def status(args: argparse.Namespace) -> int:
    """Print a line a device, or a JSON object; return 0 if all answer and are ready, else 1."""
    code = 0
    for device, found in on_each(find_devices(args), look, args.parallel):
        row = (
            DeviceStatus(name=device.name, ready=False, error=str(found))
            if isinstance(found, DeviceError)
            else found
        )
        print(json.dumps(msgspec.to_builtins(row)) if args.json else _line(row), flush=True)
        code = code if row.ready else 1
    return code
