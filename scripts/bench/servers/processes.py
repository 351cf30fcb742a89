"""A process with all its descendants: what it costs, and its end. Reads Linux's /proc."""

import os
import signal
import subprocess
import time
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
# Fields of /proc/PID/stat after the name in parentheses (proc_pid_stat(5)), counted from 0.
STATE, PARENT, USER, SYSTEM = 0, 1, 11, 12


def _stat(pid: int) -> list[str] | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def tree(pid: int) -> list[int]:
    """`pid` and all its living descendants."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (fields := _stat(int(name))) and fields[STATE] != "Z":
            children.setdefault(int(fields[PARENT]), []).append(int(name))
    found, todo = [], [pid]
    while todo:
        found.append(todo.pop())
        todo += children.get(found[-1], [])
    return found


def cpu_seconds(pids: list[int]) -> tuple[float, float]:
    """User and system seconds that the processes have used so far, together."""
    user = system = 0
    for fields in filter(None, map(_stat, pids)):
        user, system = user + int(fields[USER]), system + int(fields[SYSTEM])
    return user / TICKS, system / TICKS


def memory(pids: list[int]) -> dict[str, float]:
    """Resident (`rss`) and proportional (`pss`) megabytes (10^6 bytes) of all the processes."""
    total = {"Rss:": 0, "Pss:": 0}
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        for words in map(str.split, lines):
            if words[0] in total:
                total[words[0]] += int(words[1])
    return {"rss": total["Rss:"] * 1024 / 1e6, "pss": total["Pss:"] * 1024 / 1e6}


def _alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if (fields := _stat(pid)) and fields[STATE] != "Z"]


def stop(process: "subprocess.Popen[bytes]", patience: float = 15.0) -> None:
    """SIGTERM to the process, and after `patience` seconds SIGKILL to whatever is left of its
    tree, orphans included."""
    pids = tree(process.pid)
    process.terminate()
    until = time.monotonic() + patience
    while _alive(pids) and time.monotonic() < until:
        process.poll()
        time.sleep(0.05)
    for pid in _alive(pids):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()
