"""How many cores this process may really use."""

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def granted_cores(cgroup: Path = CGROUP) -> int:
    """Cores granted by the scheduler's affinity and the cgroup's CPU quota, at least 1.

    `cgroup` is the mounted root: cpu.max of version 2 (`QUOTA PERIOD` in microseconds, or `max`),
    or cpu/cpu.cfs_quota_us and cpu.cfs_period_us of version 1. Source: the kernel's
    Documentation/admin-guide/cgroup-v2.rst. A quota that is not whole is rounded up.
    """
    cores = len(os.sched_getaffinity(0))
    for quota_file, period_file in (
        ("cpu.max", None),
        ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"),
    ):
        try:
            words = (cgroup / quota_file).read_text().split()
            if period_file:
                words += (cgroup / period_file).read_text().split()
        except OSError:
            continue
        if len(words) == 2 and words[0] not in ("max", "-1"):
            cores = min(cores, math.ceil(int(words[0]) / int(words[1])))
    return max(1, cores)
