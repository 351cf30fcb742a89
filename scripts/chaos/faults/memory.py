"""A server that is starved of memory, by a cgroup of its own or else by RLIMIT_AS."""

import contextlib
import os
import resource
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from chaos.clients import NotAnsweredError, post
from chaos.faults.fault import Context, Fault
from chaos.frames import UNKNOWN
from chaos.plant import Plant
from chaos.processes import await_that

MOUNTS = Path("/proc/self/mountinfo")
# Bytes beyond what the server takes; a large frame needs more than that.
ROOM_BYTES = 24 << 20
# Pixels on a side of a large frame: 147 MB as RGB.
SIDE = 7000
LARGE_FRAMES = 3
POLL_INTERVAL_S = 0.02
REMOVAL_TIMEOUT_S = 15.0


def _own_cgroup() -> Path | None:
    """Return the folder of this process's memory cgroup, of version 2 or 1; None if there is
    none."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        root = Path("/sys/fs/cgroup")
        if controllers == "memory":
            return root / "memory" / path.lstrip("/")
        if number == "0" and (root / "cgroup.controllers").exists():
            return root / path.lstrip("/")
    return None


@contextlib.contextmanager
def _limited(plant: Plant) -> Iterator[str]:
    """Limit the memory of the server's processes for the block. Yield what limits it."""
    own = _own_cgroup()
    group = own / f"lineside-faults-{os.getpid()}" if own is not None else None
    try:
        if group is None:
            raise OSError("no cgroup")
        group.mkdir()
    except OSError:
        _limit_address_space(plant)
        yield "RLIMIT_AS"
        return
    limit = group / ("memory.max" if (group / "memory.max").exists() else "memory.limit_in_bytes")
    try:
        if not limit.exists():
            _limit_address_space(plant)
            yield "RLIMIT_AS"
            return
        pids = plant.server.pids()
        for pid in pids:
            _move(pid, group)
        limit.write_text(str(sum(map(_resident, pids)) + ROOM_BYTES))
        yield limit.name
    finally:
        assert own is not None
        await_that(partial(_is_removed, group, own), f"{group} is removed", REMOVAL_TIMEOUT_S)


def _is_removed(group: Path, own: Path) -> bool:
    """Take all processes out of a cgroup, and remove it. Return whether it worked: others may have
    been started meanwhile, or be on their way out."""
    for pid in map(int, (group / "cgroup.procs").read_text().split()):
        _move(pid, own)
    try:
        group.rmdir()
    except OSError:
        return False
    return True


def _move(pid: int, group: Path) -> None:
    with contextlib.suppress(OSError):  # it has ended
        (group / "cgroup.procs").write_text(str(pid))


def _resident(pid: int) -> int:
    """Return the bytes that a process takes."""
    with contextlib.suppress(OSError):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return 0


def _limit_address_space(plant: Plant) -> None:
    """Limit the process that answers, until it ends."""
    for pid in plant.web_pids():
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + ROOM_BYTES
        resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))


def _starve(context: Context) -> dict[str, Any]:
    """Send frames that need more memory than there is, beside those of the cameras."""
    plant = context.plant
    picture = np.zeros((SIDE, SIDE, 3), np.uint8)
    data = cv2.imencode(".png", picture)[1].tobytes()
    watch = _Watch(context)
    try:
        with _limited(plant) as means:
            watch.start()
            _send_large(context, data)
            time.sleep(context.hold_s())
    finally:
        watch.stop()
    if means == "RLIMIT_AS":
        # The limit goes with the process.
        context.kill_server()
        context.start_server()
    await_that(plant.is_ready, "the server is ready")
    return {"means": means, "kills": watch.kills}


def _send_large(context: Context, data: bytes) -> None:
    """Send some large frames at once, and return when all have ended."""
    senders = [
        threading.Thread(target=_send, args=(context, f"{context.op}-large-{number}", data))
        for number in range(LARGE_FRAMES)
    ]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()


class _Watch(threading.Thread):
    """Notes each time that the kernel has killed the process that answers."""

    def __init__(self, context: Context) -> None:
        super().__init__(daemon=True)
        self._context = context
        self._stopping = threading.Event()
        self.kills = 0

    def run(self) -> None:
        before = self._context.plant.web_pids()
        while not self._stopping.wait(POLL_INTERVAL_S):
            now = self._context.plant.web_pids()
            if before and now != before:
                self.kills += 1
                self._context.killed()
            before = now

    def stop(self) -> None:
        self._stopping.set()
        if self.ident is not None:
            self.join()


def _send(context: Context, op: str, data: bytes) -> None:
    record = context.history.record
    record(op, "large", "invoke", frame=UNKNOWN)
    headers = {"Content-Type": "image/png", "X-Request-Id": op}
    try:
        answer = post(context.plant, f"/v1/recognize?camera=st8&part={op}", data, headers)
    except NotAnsweredError as end:
        record(op, "large", end.event, frame=UNKNOWN, **end.fields)
        return
    label = answer["predictions"][0]["label"] if answer["predictions"] else None
    verdict, version = answer["verdict"], answer["model_version"]
    record(op, "large", "ok", frame=UNKNOWN, label=label, verdict=verdict, version=version)


FAULTS = (Fault("starve memory", _starve, down=True),)
