"""Cores and memory that this process may use, and readers of the kernel's small files. Any of these
files may be absent, unreadable, or have content that is new to us."""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import msgspec

CGROUP, SELF = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


class Usage(msgspec.Struct, frozen=True):
    """Memory in bytes: `used` can't be freed by dropping caches, `limit` is the most."""

    used: int
    limit: int


class _Names(msgspec.Struct, frozen=True):
    """A version's files: the limit, the usage, and of memory.stat the files' pages that were not
    used lately."""

    limit: str
    usage: str
    inactive: str


# The kernel's Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
V1 = _Names("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = _Names("memory.max", "memory.current", "inactive_file")


def machine_usage(root: Path) -> Usage | None:
    """Return the machine's memory by MemAvailable of proc(5)'s meminfo; None without that."""
    fields = read_fields(root / "proc/meminfo")
    try:
        total, available = fields["MemTotal"] * 1024, fields["MemAvailable"] * 1024
    except KeyError:
        return None
    return Usage(total - available, total)


def cgroup_usage(root: Path, machine: int | None = None) -> Usage | None:
    """Return the narrowest limit of this process's cgroup and those around it, with its usage.

    The usage leaves out inactive file pages, as Kubernetes counts a working set. None if nothing
    is limited to less than `machine`, the machine's bytes.
    """
    usages = [
        usage
        for folder, is_v1 in _cgroup_folders(_below(root, CGROUP), _below(root, SELF), "memory")
        if (usage := _usage(folder, V1 if is_v1 else V2)) is not None
        and (machine is None or usage.limit < machine)
    ]
    return min(usages, key=lambda usage: usage.limit, default=None)


def _usage(folder: Path, names: _Names) -> Usage | None:
    # No limit reads as `max` in version 2, and as more than any machine has in version 1.
    limit, used = read_number(folder / names.limit), read_number(folder / names.usage)
    if not limit or used is None:
        return None
    inactive = read_fields(folder / "memory.stat").get(names.inactive, 0)
    return Usage(max(0, used - inactive), limit)


def _below(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


def available_cores(cgroup: Path = CGROUP, own: Path = SELF) -> int:
    """Return the cores that the scheduler's affinity and the quotas of the process's cgroup and of
    all those above it leave, at least 1. A quota that is not whole is rounded up.

    cgroup: the mounted root, with cpu.max of version 2 (`QUOTA PERIOD` in microseconds, or `max`),
    or cpu/cpu.cfs_quota_us and cpu.cfs_period_us of version 1. own: the file that names the
    process's cgroups (cgroups(7)); in a container, these may not be visible. Source: the kernel's
    Documentation/admin-guide/cgroup-v2.rst.
    """
    cores = len(os.sched_getaffinity(0))
    roots = [(cgroup, False), (cgroup / "cpu", True)]
    for folder, is_v1 in [*roots, *_cgroup_folders(cgroup, own, "cpu")]:
        quota, period = _read_quota(folder, is_v1)
        if quota > 0 and period > 0:
            cores = min(cores, math.ceil(quota / period))
    return max(1, cores)


def _read_quota(folder: Path, is_v1: bool) -> tuple[int, int]:
    """Return the microseconds of processor time in each period, and those of the period; (0, 0)
    if the cgroup has no limit, or is not there."""
    if is_v1:
        words = [read_text(folder / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period")]
    else:
        words = (read_text(folder / "cpu.max") or "").split()
    try:
        return int(words[0]), int(words[1])
    except (ValueError, IndexError):
        return 0, 0


def _cgroup_folders(mounted: Path, own: Path, controller: str) -> Iterator[tuple[Path, bool]]:
    """Yield the folders of this process's cgroup for `controller` and of those around it, each with
    True for version 1 (cgroups(7)). A container may see the path outside of it; only the top exists
    inside."""
    for line in (read_text(own) or "").splitlines():
        parts = line.split(":", 2)
        if len(parts) != 3 or not parts[2].startswith("/"):
            continue
        number, controllers, path = parts
        is_v1 = controller in controllers.split(",")
        if not is_v1 and (number != "0" or controllers):
            continue
        inside = PurePosixPath(path).relative_to("/")
        for place in (inside, *inside.parents):
            if ".." not in place.parts:
                yield (mounted / controller if is_v1 else mounted) / place, is_v1


def read_text(path: Path) -> str | None:
    """Return the file's text without white space around it; None if it can't be read."""
    try:
        return path.read_text("utf-8").strip()
    except (OSError, ValueError):
        return None


def read_number(path: Path) -> int | None:
    """Return the whole number that is all of the file's text; None if there is none."""
    try:
        return int(read_text(path) or "")
    except ValueError:
        return None


def read_fields(path: Path) -> dict[str, int]:
    """Return whole numbers by the word before them, one a line, as in /proc/meminfo and
    memory.stat. Other lines and a unit after the number are ignored."""
    fields = {}
    for line in (read_text(path) or "").splitlines():
        name, _, rest = line.replace(":", " ").partition(" ")
        number = rest.split()[:1]
        if number and number[0].isdecimal():
            fields[name] = int(number[0])
    return fields
