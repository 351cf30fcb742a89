"""The machine of this moment, for Prometheus: temperature, throttling, memory, disks.

What can't be read is left out, and nothing here raises: a scrape must not fail for a sensor.
"""

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.system.resources import Usage, cgroup_usage, machine_usage, read_number, read_text

# Bits of `vcgencmd get_throttled` (Raspberry Pi's documentation of vcgencmd); the same shifted by
# SINCE_BOOT say what has happened since the machine was started.
REASONS = {"under_voltage": 0, "frequency_capped": 1, "throttled": 2, "soft_temperature_limit": 3}
SINCE_BOOT = 16
FIRMWARE = "sys/devices/platform/soc/soc:firmware/get_throttled"
VCGENCMD_TIMEOUT_S = 2.0
ABSOLUTE_ZERO_C = -273.15


def temperatures(root: Path) -> dict[str, float]:
    """Return the degrees Celsius by the kind of thermal zone, the hottest of each (the kernel's
    Documentation/driver-api/thermal/sysfs-api.rst: `temp` is in thousandths)."""
    hottest: dict[str, float] = {}
    for zone in root.glob("sys/class/thermal/thermal_zone*"):
        kind, milli = read_text(zone / "type"), read_number(zone / "temp")
        # A zone that is switched off shows a temperature below any.
        if kind and milli is not None and milli / 1000 > ABSOLUTE_ZERO_C:
            hottest[kind] = max(hottest.get(kind, ABSOLUTE_ZERO_C), milli / 1000)
    return hottest


def throttled_bits(root: Path, vcgencmd: str | None) -> int | None:
    """Return the Raspberry Pi's throttling as bits; None on other machines.

    From the firmware's file, else from the command `vcgencmd`, else the one bit that the voltage
    sensor `rpi_volt` (drivers/hwmon/raspberrypi-hwmon.c) has.
    """
    if (text := read_text(root / FIRMWARE)) or (text := _ask(vcgencmd)):
        try:
            return int(text.rpartition("=")[2], 16)
        except ValueError:
            return None
    for sensor in root.glob("sys/class/hwmon/hwmon*"):
        if read_text(sensor / "name") == "rpi_volt":
            alarm = read_number(sensor / "in0_lcrit_alarm")
            return None if alarm is None else alarm << REASONS["under_voltage"]
    return None


def _ask(vcgencmd: str | None) -> str:
    if vcgencmd is None:
        return ""
    try:
        done = subprocess.run(
            [vcgencmd, "get_throttled"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=VCGENCMD_TIMEOUT_S,
        )
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def thermal_throttles(root: Path) -> int | None:
    """Return how often the cores were slowed down for their heat since the start; x86 only."""
    pattern = "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count"
    counts = [count for path in root.glob(pattern) if (count := read_number(path)) is not None]
    return sum(counts) if counts else None


def disk(folder: Path) -> tuple[int, int] | None:
    """Return free and all bytes of the file system that holds `folder`, or will once it is made."""
    for place in (folder, *folder.parents):
        try:
            usage = shutil.disk_usage(place)
        except FileNotFoundError:
            continue
        except OSError:
            return None
        return usage.free, usage.total
    return None


class DeviceCollector(Collector):
    """Reads the machine whenever Prometheus asks, and only then."""

    def __init__(
        self, folders: Mapping[str, Path], root: Path = Path("/"), vcgencmd: str | None = "vcgencmd"
    ) -> None:
        """folders: those whose disks are reported, by name. root: the folder of `sys` and `proc`.
        vcgencmd: the command, None for none."""
        self._folders = {name: folder.absolute() for name, folder in folders.items()}
        self._root = root
        self._vcgencmd = shutil.which(vcgencmd) if vcgencmd else None

    def collect(self) -> Iterator[Metric]:
        yield gauge(
            "lineside_device_temperature_celsius",
            "Temperature by thermal zone",
            "zone",
            temperatures(self._root),
        )
        yield from self._throttling()
        yield from self._memory()
        yield from self._disks()

    def _throttling(self) -> Iterator[Metric]:
        bits = throttled_bits(self._root, self._vcgencmd)
        known = {} if bits is None else REASONS
        yield gauge(
            "lineside_device_throttled",
            "1 while the firmware slows the machine down or misses voltage, by reason",
            "reason",
            {reason: (bits or 0) >> bit & 1 for reason, bit in known.items()},
        )
        yield gauge(
            "lineside_device_throttled_since_boot",
            "1 once it has happened since the machine was started, by reason",
            "reason",
            {reason: (bits or 0) >> (bit + SINCE_BOOT) & 1 for reason, bit in known.items()},
        )
        count = thermal_throttles(self._root)
        if count is not None:
            yield CounterMetricFamily(
                "lineside_device_thermal_throttles_total",
                "Times that cores were slowed down for their heat since the machine's start",
                value=count,
            )

    def _memory(self) -> Iterator[Metric]:
        machine = machine_usage(self._root)
        cgroup = cgroup_usage(self._root, machine.limit if machine else None)
        usages: dict[str, Usage | None] = {"cgroup": cgroup, "machine": machine}
        known = {scope: usage for scope, usage in usages.items() if usage is not None}
        yield gauge(
            "lineside_memory_used_bytes",
            "Memory that can't be had back by dropping caches: of the server's cgroup where that"
            " is limited, and of the machine",
            "scope",
            {scope: usage.used for scope, usage in known.items()},
        )
        yield gauge(
            "lineside_memory_limit_bytes",
            "The most of it: the cgroup's limit, the machine's memory",
            "scope",
            {scope: usage.limit for scope, usage in known.items()},
        )

    def _disks(self) -> Iterator[Metric]:
        sizes = {name: disk(folder) for name, folder in self._folders.items()}
        known = {name: size for name, size in sizes.items() if size is not None}
        yield gauge(
            "lineside_disk_free_bytes",
            "Free bytes of the disk that holds the folder",
            "folder",
            {name: free for name, (free, _) in known.items()},
        )
        yield gauge(
            "lineside_disk_size_bytes",
            "Size of the disk that holds the folder",
            "folder",
            {name: size for name, (_, size) in known.items()},
        )


def gauge(name: str, text: str, label: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    """Return the gauge `name` with one value for each value of its label."""
    family = GaugeMetricFamily(name, text, labels=(label,))
    for key, value in values.items():
        family.add_metric((key,), value)
    return family
