"""Closed-loop load from wrk, and the CPU time that a server spends under it."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.clients.forms import Request

SCRIPT = Path(__file__).parents[1] / "post.lua"
Cpu = Callable[[], tuple[float, float]]
Figures = dict[str, Any]
# Answers that were not good: another label, 429 or 503, another status, none.
BAD = ("wrong", "refused", "failed", "socket_errors", "timeouts")


def watch_cpu(cpu: Cpu, seconds: float) -> tuple[float, float]:
    """User and system CPU seconds a second, from 10% to 95% of the coming `seconds`.

    The edges are left out: what a load starts with and what is in flight when it ends is CPU time
    without a counted answer.
    """
    time.sleep(seconds * 0.1)
    start, before = time.monotonic(), cpu()
    time.sleep(seconds * 0.85)
    elapsed, after = time.monotonic() - start, cpu()
    return (after[0] - before[0]) / elapsed, (after[1] - before[1]) / elapsed


def per_frame(figures: Figures, rates: tuple[float, float]) -> Figures:
    """`figures` (with `good` and `seconds`) and what follows: `fps` of good answers, and user,
    system and total CPU milliseconds a good answer."""
    fps = figures["good"] / figures["seconds"]
    user, system = (rate * 1000 / fps if fps else None for rate in rates)
    total = sum(rates) * 1000 / fps if fps else None
    return {**figures, "fps": fps, "cpu_user_ms": user, "cpu_system_ms": system, "cpu_ms": total}


def settle(cpu: Cpu, patience: float = 5.0) -> None:
    """Waits until a server has worked off what a load that ended left with it: at most 20% of a
    core for 0.1 s, or `patience` seconds, for those that poll."""
    until, before = time.monotonic() + patience, sum(cpu())
    while time.monotonic() < until:
        time.sleep(0.1)
        now = sum(cpu())
        if now - before <= 0.02:
            return
        before = now


def wrk(
    url: str, request: Request, label: str, clients: int, folder: Path, cpu: Cpu, seconds: float
) -> Figures:
    """`clients` connections that each post `request` again as soon as it is answered.

    Returns good answers (200, `label` first) and others by kind, latency percentiles in ms, `fps`
    of good answers, CPU ms a good answer by `cpu`, which tells a server's CPU seconds so far, and
    `load_cpu_ms`, what wrk itself used a good answer, once the server is idle again. `folder` takes
    temporary files.
    """
    body, headers = request.write(folder, "wrk")
    whole = max(1, round(seconds))  # wrk takes whole seconds only
    command = ["wrk", "-t1", f"-c{clients}", f"-d{whole}s", "--timeout", "10s"]
    env = {**os.environ, "BODY": str(body), "HEADERS": str(headers), "LABEL": label}
    before = os.times()
    process = subprocess.Popen(
        [*command, "-s", str(SCRIPT), url], env=env, stdout=subprocess.PIPE, text=True
    )
    rates = watch_cpu(cpu, whole)
    output, _ = process.communicate()
    after = os.times()
    settle(cpu)
    _, found, line = output.partition("RESULT")
    if not found:
        raise RuntimeError(f"wrk gave no result for {url}; it said: {output[-300:]}")
    figures = per_frame(json.loads(line.splitlines()[0]), rates)
    own = after.children_user + after.children_system
    own -= before.children_user + before.children_system
    figures["load_cpu_ms"] = own * 1000 / figures["good"] if figures["good"] else None
    return figures
