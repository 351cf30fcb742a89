"""How many cores this process may really use."""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

CGROUP, SELF = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def available_cores(cgroup: Path = CGROUP, own: Path = SELF) -> int:
    """Cores granted by the scheduler's affinity and the quotas of the process's cgroup and of all
    those above it, at least 1. A quota that is not whole is rounded up.

    `cgroup` is the mounted root: cpu.max of version 2 (`QUOTA PERIOD` in microseconds, or `max`),
    or cpu/cpu.cfs_quota_us and cpu.cfs_period_us of version 1. `own` names the process's cgroups,
    as cgroups(7) has it; a container may show a path there that it doesn't see. Source: the
    kernel's Documentation/admin-guide/cgroup-v2.rst.
    """
    cores = len(os.sched_getaffinity(0))
    for quota, period in _quotas(cgroup, own):
        if quota > 0 and period > 0:
            cores = min(cores, math.ceil(quota / period))
    return max(1, cores)


def _quotas(cgroup: Path, own: Path) -> Iterator[tuple[int, int]]:
    """Microseconds of processor time in each so many microseconds, of every cgroup that tells."""
    for controllers, path in _paths(own):
        for folder in (path, *path.parents):
            inside = str(folder).lstrip("/")
            try:
                if not controllers:
                    words = (cgroup / inside / "cpu.max").read_text().split()
                else:
                    at = cgroup / "cpu" / inside
                    names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
                    words = [(at / name).read_text() for name in names]
                yield int(words[0]), int(words[1])
            except (OSError, ValueError, IndexError):
                continue  # not there, or without a limit


def _paths(own: Path) -> list[tuple[str, PurePosixPath]]:
    """The process's cgroups that may limit it, and both roots: (controllers, path) each."""
    found = [("", PurePosixPath("/")), ("cpu", PurePosixPath("/"))]
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers or "cpu" in controllers.split(","):
            found.append((controllers, PurePosixPath(path)))
    return found
