"""A disk that is full, and one that takes no writes. `data` has to be a file system of its own."""

import os
import subprocess
import time
from typing import Any

from chaos.faults.fault import Context, Fault
from chaos.plant import Plant
from chaos.processes import await_that

FILLER = "filler"
BLOCK_BYTES = 1 << 16
REMOUNT_TIMEOUT_S = 15.0


def _fill(context: Context) -> dict[str, Any]:
    """Fill the disk while the server runs; give the room back after a while."""
    path = context.plant.data / FILLER
    try:
        size = _write_until_full(str(path))
        time.sleep(context.hold_s())
    finally:
        path.unlink(missing_ok=True)
    return {"bytes": size}


def _write_until_full(path: str) -> int:
    """Write a file until no byte more fits. Return its size."""
    size = 0
    with open(path, "wb", buffering=0) as file:
        for block in (BLOCK_BYTES, 512, 1):
            try:
                while True:
                    size += os.write(file.fileno(), b"\0" * block)
            except OSError:
                continue
    return size


def _make_read_only(context: Context) -> None:
    """Start the server on a disk that takes no writes; have it take writes while the server
    runs. A file system in use can't be made read-only, so the server is killed before."""
    plant = context.plant
    context.kill_server()
    _remount(plant, "ro")
    try:
        context.start_server()
        time.sleep(context.hold_s())
    finally:
        _remount(plant, "rw")


def _remount(plant: Plant, mode: str) -> None:
    """Remount `data`, once the last of the killed processes has let go of its files."""
    command = ["mount", "-o", f"remount,{mode}", str(plant.data)]
    await_that(
        lambda: subprocess.run(command, capture_output=True, check=False).returncode == 0,
        f"data is remounted {mode}",
        REMOUNT_TIMEOUT_S,
    )


FAULTS = (
    Fault("fill disk", _fill, missing="disk"),
    # An outbox that can't be read is not continued: the messages get a stream of their own.
    Fault("start on read-only disk", _make_read_only, missing="disk", loses=("numbers",)),
)
