"""Reads what the processes and files of the server under test take at a moment."""

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

# The process ends while it is read.
GONE = (FileNotFoundError, ProcessLookupError)


class Reading(NamedTuple):
    """at: seconds since the run began. memory: bytes of all processes, what they share counted
    once (PSS). threads, descriptors, processes: sums. journal, samples, jobs, outbox: bytes on the
    disk, with what is written ahead."""

    at: float
    memory: int
    threads: int
    descriptors: int
    processes: int
    journal: int
    samples: int
    jobs: int
    outbox: int


def process_tree(pid: int) -> list[int]:
    """`pid` and all its descendants that live."""
    found = [pid]
    for parent in found:
        with suppress(*GONE):
            for task in os.listdir(f"/proc/{parent}/task"):
                with suppress(*GONE):
                    children = Path(f"/proc/{parent}/task/{task}/children").read_text("ascii")
                    found += map(int, children.split())
    return found


def memory_of(pid: int) -> int:
    """Proportional set size in bytes; a process that ends has none."""
    with suppress(*GONE):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def _entries(path: str) -> int:
    with suppress(*GONE):
        return len(os.listdir(path))
    return 0


def _bytes_of(folder: Path, pattern: str) -> int:
    total = 0
    for path in folder.glob(pattern):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def read(pid: int, data: Path, at: float) -> Reading:
    """Return what the process `pid`, its descendants and the folder `data` take."""
    tree = process_tree(pid)
    return Reading(
        at,
        sum(map(memory_of, tree)),
        sum(_entries(f"/proc/{process}/task") for process in tree),
        sum(_entries(f"/proc/{process}/fd") for process in tree),
        len(tree),
        # Its index (-shm) is no part of what the setting limits.
        _bytes_of(data, "journal.db") + _bytes_of(data, "journal.db-wal"),
        _bytes_of(data / "samples", "**/*"),
        _bytes_of(data, "jobs*.db*"),
        _bytes_of(data, "outbox.db*"),
    )
