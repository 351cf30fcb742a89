"""The machine of this moment, for Prometheus: temperature, throttling, memory, disks.

What a machine does not tell is left out, and nothing here raises: a scrape must not fail for a
sensor.
"""

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.system.resources import Usage, cgroup_usage, machine_usage, read_number, read_text

# Bits of `vcgencmd get_throttled` (Raspberry Pi's documentation of vcgencmd); the same shifted by
# SINCE_BOOT tell what has happened since the machine was started.
REASONS = {"under_voltage": 0, "frequency_capped": 1, "throttled": 2, "soft_temperature_limit": 3}
SINCE_BOOT = 16
FIRMWARE = "sys/devices/platform/soc/soc:firmware/get_throttled"
VCGENCMD_SECONDS = 2.0
ABSOLUTE_ZERO = -273.15


def temperatures(root: Path) -> dict[str, float]:
    """Degrees Celsius by the kind of thermal zone, the hottest of each (the kernel's
    Documentation/driver-api/thermal/sysfs-api.rst: `temp` is in thousandths)."""
    found: dict[str, float] = {}
    for zone in root.glob("sys/class/thermal/thermal_zone*"):
        kind, milli = read_text(zone / "type"), read_number(zone / "temp")
        # A zone that is switched off tells a temperature below any.
        if kind and milli is not None and milli / 1000 > ABSOLUTE_ZERO:
            found[kind] = max(found.get(kind, ABSOLUTE_ZERO), milli / 1000)
    return found


def throttled_bits(root: Path, vcgencmd: str | None) -> int | None:
    """What the Raspberry Pi's firmware tells of throttling, as bits; None on other machines.

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
            timeout=VCGENCMD_SECONDS,
        )
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def thermal_throttles(root: Path) -> int | None:
    """How often the cores were slowed down for their heat since the start; x86 only."""
    pattern = "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count"
    counts = [count for path in root.glob(pattern) if (count := read_number(path)) is not None]
    return sum(counts) if counts else None


def disk(folder: Path) -> tuple[int, int] | None:
    """Free and all bytes of the file system that holds `folder`, or will once it is made."""
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
        self,
        folders: Mapping[str, Path],
        root: Path = Path("/"),
        vcgencmd: str | None = "vcgencmd",
    ) -> None:
        """folders: those whose disks are told of, by name. root: where `sys` and `proc` lie.
        vcgencmd: the command, None for none."""
        self._folders = {name: folder.absolute() for name, folder in folders.items()}
        self._root = root
        self._vcgencmd = shutil.which(vcgencmd) if vcgencmd else None

    def collect(self) -> Iterator[Metric]:
        temperature = GaugeMetricFamily(
            "lineside_device_temperature_celsius", "Temperature by thermal zone", labels=("zone",)
        )
        for zone, celsius in temperatures(self._root).items():
            temperature.add_metric((zone,), celsius)
        yield temperature
        yield from self._throttling()
        yield from self._memory()
        yield from self._disks()

    def _throttling(self) -> Iterator[Metric]:
        now = GaugeMetricFamily(
            "lineside_device_throttled",
            "1 while the firmware slows the machine down or misses voltage, by reason",
            labels=("reason",),
        )
        before = GaugeMetricFamily(
            "lineside_device_throttled_since_boot",
            "1 once it has happened since the machine was started, by reason",
            labels=("reason",),
        )
        bits = throttled_bits(self._root, self._vcgencmd)
        if bits is not None:
            for reason, bit in REASONS.items():
                now.add_metric((reason,), bits >> bit & 1)
                before.add_metric((reason,), bits >> (bit + SINCE_BOOT) & 1)
        yield now
        yield before
        count = thermal_throttles(self._root)
        if count is not None:
            yield CounterMetricFamily(
                "lineside_device_thermal_throttles_total",
                "Times that cores were slowed down for their heat since the machine's start",
                value=count,
            )

    def _memory(self) -> Iterator[Metric]:
        used = GaugeMetricFamily(
            "lineside_memory_used_bytes",
            "Memory that can't be had back by dropping caches: of the server's cgroup where that"
            " is limited, and of the machine",
            labels=("scope",),
        )
        limit = GaugeMetricFamily(
            "lineside_memory_limit_bytes",
            "The most of it: the cgroup's limit, the machine's memory",
            labels=("scope",),
        )
        machine = machine_usage(self._root)
        usages: dict[str, Usage | None] = {
            "cgroup": cgroup_usage(self._root, machine.limit if machine else None),
            "machine": machine,
        }
        for scope, usage in usages.items():
            if usage is not None:
                used.add_metric((scope,), usage.used)
                limit.add_metric((scope,), usage.limit)
        yield used
        yield limit

    def _disks(self) -> Iterator[Metric]:
        free = GaugeMetricFamily(
            "lineside_disk_free_bytes",
            "Free bytes of the disk that holds the folder",
            labels=("folder",),
        )
        size = GaugeMetricFamily(
            "lineside_disk_size_bytes",
            "Size of the disk that holds the folder",
            labels=("folder",),
        )
        for name, folder in self._folders.items():
            found = disk(folder)
            if found is not None:
                free.add_metric((name,), found[0])
                size.add_metric((name,), found[1])
        yield free
        yield size
