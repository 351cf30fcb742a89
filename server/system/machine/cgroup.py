"""Memory against its limit: the cgroup's, version 1 and 2, and the machine's."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import msgspec

from server.system.machine.procfs import read_fields, read_number, read_text

CGROUPS = "sys/fs/cgroup"


class Usage(msgspec.Struct, frozen=True):
    """Bytes in use that can't be had back by dropping caches, and the most there may be."""

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
    """The machine's memory, by MemAvailable of proc(5)'s meminfo; None where that is absent."""
    fields = read_fields(root / "proc/meminfo")
    try:
        total, available = fields["MemTotal"] * 1024, fields["MemAvailable"] * 1024
    except KeyError:
        return None
    return Usage(total - available, total)


def cgroup_usage(root: Path, machine: int | None = None) -> Usage | None:
    """The narrowest limit of this process's cgroup and those around it, and what is in use of it.

    In use is, as Kubernetes counts its working set, the usage without inactive file pages. None
    where nothing is limited to less than `machine`'s bytes.
    """
    found = [
        usage
        for folder, names in _folders(root)
        if (usage := _usage(folder, names)) is not None
        and (machine is None or usage.limit < machine)
    ]
    return min(found, key=lambda usage: usage.limit, default=None)


def _usage(folder: Path, names: _Names) -> Usage | None:
    # No limit reads as `max` in version 2, and as more than any machine has in version 1.
    limit, used = read_number(folder / names.limit), read_number(folder / names.usage)
    if not limit or used is None:
        return None
    inactive = read_fields(folder / "memory.stat").get(names.inactive, 0)
    return Usage(max(0, used - inactive), limit)


def _folders(root: Path) -> Iterator[tuple[Path, _Names]]:
    """The folders of this process's memory cgroup and of those around it (cgroups(7),
    /proc/PID/cgroup). A container may see the path of outside, where only the top exists."""
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        parts = line.split(":", 2)
        if len(parts) != 3 or not parts[2].startswith("/"):
            continue
        number, controllers, path = parts
        if "memory" in controllers.split(","):
            base, names = root / CGROUPS / "memory", V1
        elif number == "0" and not controllers:
            base, names = root / CGROUPS, V2
        else:
            continue
        inside = PurePosixPath(path).relative_to("/")
        for place in (inside, *inside.parents):
            if ".." not in place.parts:
                yield base / place, names
