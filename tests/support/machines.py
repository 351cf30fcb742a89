"""Made-up machines: a tree of the kernel's files, as a Raspberry Pi has them."""

from pathlib import Path

MB = 1024 * 1024


def write(root: Path, files: dict[str, object]) -> None:
    """Files by path under `root`, each with its content as one line or several."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n", "utf-8")


def raspberry_pi(root: Path) -> Path:
    """A Raspberry Pi of 1 GB that was short of voltage and is too hot, with a limit of 512 MB
    around the server; and, as no Raspberry Pi has, an x86's count of throttling."""
    unit = "sys/fs/cgroup/system.slice/lineside.service"
    write(
        root,
        {
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
            "sys/class/thermal/thermal_zone0/temp": 61234,
            "sys/devices/platform/soc/soc:firmware/get_throttled": "0x10008",
            "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": 3,
            "proc/meminfo": "MemTotal:  1048576 kB\nMemFree:  20000 kB\nMemAvailable:  524288 kB",
            "proc/self/cgroup": "0::/system.slice/lineside.service",
            f"{unit}/memory.max": 512 * MB,
            f"{unit}/memory.current": 200 * MB,
            f"{unit}/memory.stat": f"anon {150 * MB}\ninactive_file {72 * MB}",
        },
    )
    return root
