"""The machine's figures, from made-up trees of the kernel's files."""

import os
from pathlib import Path

import pytest
from machines import MB, raspberry_pi, write
from prometheus_client import CollectorRegistry, generate_latest

from server.observe.device import (
    FIRMWARE,
    DeviceCollector,
    disk,
    temperatures,
    thermal_throttles,
    throttled_bits,
)
from server.system.resources import Usage, cgroup_usage, machine_usage

ZONES = "sys/class/thermal"
V1 = "sys/fs/cgroup/memory"


def command(folder: Path, body: str) -> str:
    """An executable `vcgencmd` that does `body`."""
    path = folder / "vcgencmd"
    path.write_text(f"#!/bin/sh\n{body}\n", "utf-8")
    path.chmod(0o755)
    return str(path)


def test_the_hottest_zone_of_each_kind_is_told(tmp_path: Path) -> None:
    files: dict[str, object] = {}
    for number, (kind, milli) in enumerate(
        [("acpitz", 40000), ("acpitz", 45500), ("off", -274000), ("pkg", "?"), ("", 3)]
    ):
        files[f"{ZONES}/thermal_zone{number}/type"] = kind
        files[f"{ZONES}/thermal_zone{number}/temp"] = milli
    write(tmp_path, files)
    (tmp_path / ZONES / "thermal_zone9").mkdir()
    assert temperatures(tmp_path) == {"acpitz": 45.5}


@pytest.mark.parametrize(
    ("text", "bits"),
    [("0x50005", 0x50005), ("0", 0), ("throttled=0x8", 8), ("", None), ("what", None)],
)
def test_the_firmwares_file_is_read(tmp_path: Path, text: str, bits: int | None) -> None:
    write(tmp_path, {FIRMWARE: text})
    assert throttled_bits(tmp_path, None) == bits


@pytest.mark.parametrize(
    ("body", "bits"),
    [("echo throttled=0x50000", 0x50000), ("exit 255", None), ("echo VCHI failed", None)],
)
def test_without_the_file_vcgencmd_is_asked(tmp_path: Path, body: str, bits: int | None) -> None:
    assert throttled_bits(tmp_path, command(tmp_path, body)) == bits


def test_without_both_the_voltage_sensor_is_read(tmp_path: Path) -> None:
    sensor = "sys/class/hwmon/hwmon1"
    write(tmp_path, {f"{sensor}/name": "rpi_volt", f"{sensor}/in0_lcrit_alarm": 1})
    write(tmp_path, {"sys/class/hwmon/hwmon0/name": "nvme"})
    assert throttled_bits(tmp_path, str(tmp_path / "no such command")) == 1
    (tmp_path / sensor / "in0_lcrit_alarm").unlink()
    assert throttled_bits(tmp_path, None) is None


def test_a_pcs_cores_are_summed(tmp_path: Path) -> None:
    assert thermal_throttles(tmp_path) is None
    cpus = "sys/devices/system/cpu"
    write(tmp_path, {f"{cpus}/cpu{n}/thermal_throttle/core_throttle_count": n for n in (1, 10)})
    assert thermal_throttles(tmp_path) == 11


def test_the_narrowest_cgroup_of_version_2_counts(tmp_path: Path) -> None:
    root = raspberry_pi(tmp_path)
    assert cgroup_usage(root) == Usage(128 * MB, 512 * MB)
    outer = "sys/fs/cgroup/system.slice"
    write(root, {f"{outer}/memory.max": 256 * MB, f"{outer}/memory.current": 201 * MB})
    assert cgroup_usage(root) == Usage(201 * MB, 256 * MB)
    write(root, {f"{outer}/memory.max": "max"})
    assert cgroup_usage(root) == Usage(128 * MB, 512 * MB)


def test_a_containers_own_view_of_version_2(tmp_path: Path) -> None:
    """Its path is of outside, and its limit lies at the top."""
    write(tmp_path, {"proc/self/cgroup": "0::/docker/abc\n"})
    write(tmp_path, {"sys/fs/cgroup/memory.max": MB, "sys/fs/cgroup/memory.current": 1000})
    assert cgroup_usage(tmp_path) == Usage(1000, MB)


def test_version_1_where_no_limit_is_a_huge_one(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": "9:cpu,cpuacct:/\n4:memory:/docker/abc\n0::/\n",
            f"{V1}/memory.limit_in_bytes": 9223372036854771712,
            f"{V1}/memory.usage_in_bytes": 90 * MB,
            f"{V1}/docker/abc/memory.limit_in_bytes": 100 * MB,
            f"{V1}/docker/abc/memory.usage_in_bytes": 90 * MB,
            f"{V1}/docker/abc/memory.stat": f"cache 5\ntotal_inactive_file {30 * MB}",
        },
    )
    assert cgroup_usage(tmp_path, 4096 * MB) == Usage(60 * MB, 100 * MB)
    write(tmp_path, {"proc/self/cgroup": "4:memory:/\n"})
    assert cgroup_usage(tmp_path, 4096 * MB) is None


@pytest.mark.parametrize("text", ["", "nonsense", "4:memory:relative", "0::/../../etc", "x:y:z:/"])
def test_a_cgroup_that_is_not_understood_has_no_limit(tmp_path: Path, text: str) -> None:
    write(tmp_path, {"proc/self/cgroup": text, "etc/memory.max": 5, "etc/memory.current": 5})
    assert cgroup_usage(tmp_path) is None


def test_the_machines_memory(tmp_path: Path) -> None:
    assert machine_usage(raspberry_pi(tmp_path)) == Usage(512 * MB, 1024 * MB)
    write(tmp_path, {"proc/meminfo": "MemTotal: 5 kB\nMemAvailable: some kB"})
    assert machine_usage(tmp_path) is None


def test_this_machine_has_memory_and_disks() -> None:
    usage = machine_usage(Path("/"))
    assert usage is not None
    assert 0 < usage.used < usage.limit
    free_and_size = disk(Path.cwd())
    assert free_and_size is not None
    assert 0 <= free_and_size[0] <= free_and_size[1]


def test_a_folder_that_is_not_made_yet_has_its_parents_disk(tmp_path: Path) -> None:
    size = os.statvfs(tmp_path)
    found = disk(tmp_path / "not" / "yet")
    assert found is not None
    assert found[1] == size.f_blocks * size.f_frsize


def test_a_folder_in_a_file_has_no_disk(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert disk(tmp_path / "file" / "data") is None


def told(collector: DeviceCollector) -> str:
    registry = CollectorRegistry()
    registry.register(collector)
    return generate_latest(registry).decode()


def test_a_scrape_tells_of_the_whole_machine(tmp_path: Path) -> None:
    root = raspberry_pi(tmp_path)
    text = told(DeviceCollector({"data": tmp_path / "data"}, root, None))
    for line in (
        'lineside_device_temperature_celsius{zone="cpu-thermal"} 61.234',
        'lineside_device_throttled{reason="under_voltage"} 0.0',
        'lineside_device_throttled{reason="soft_temperature_limit"} 1.0',
        'lineside_device_throttled_since_boot{reason="under_voltage"} 1.0',
        'lineside_device_throttled_since_boot{reason="throttled"} 0.0',
        "lineside_device_thermal_throttles_total 3.0",
        f'lineside_memory_used_bytes{{scope="cgroup"}} {128 * MB:.8e}',
        f'lineside_memory_limit_bytes{{scope="machine"}} {1024 * MB:.9e}',
        'lineside_disk_free_bytes{folder="data"} ',
    ):
        name, _, value = line.rpartition(" ")
        found = [text for text in text.splitlines() if text.startswith(name + " ")]
        assert len(found) == 1, name
        if value:
            assert float(found[0].rpartition(" ")[2]) == float(value)


def test_scrape_without_sensors_still_has_the_disk(tmp_path: Path) -> None:
    """A scrape of a machine without any sensor still reports the disk."""
    text = told(DeviceCollector({"data": tmp_path}, tmp_path, None))
    lines = [line.split(" ")[0] for line in text.splitlines() if not line.startswith("#")]
    assert lines == [
        'lineside_disk_free_bytes{folder="data"}',
        'lineside_disk_size_bytes{folder="data"}',
    ]


def test_files_that_are_folders_or_no_text_do_not_hurt(tmp_path: Path) -> None:
    root = raspberry_pi(tmp_path)
    for name in (FIRMWARE, "proc/meminfo", f"{ZONES}/thermal_zone0/temp"):
        (root / name).unlink()
    (root / FIRMWARE).write_bytes(b"\xff\xfe\x00")
    (root / "proc/meminfo").mkdir()
    (root / f"{ZONES}/thermal_zone0/temp").write_text("9" * 5000)
    assert "lineside_disk_free_bytes{" in told(DeviceCollector({"data": tmp_path}, root, None))
