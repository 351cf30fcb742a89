"""Newer versions of the model that are broken: none of them may serve."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chaos.faults.fault import Context, Fault
from chaos.plant import MODEL

MANIFEST, MODEL_FILE, LABELS = "bundle.json", "model.tflite", "labels.txt"
# Each try is a version of its own.
VERSIONS = range(2, 1000)


def _cut_model(folder: Path) -> None:
    path = folder / MODEL_FILE
    os.truncate(path, path.stat().st_size // 2)


def _spoil_model(folder: Path) -> None:
    """Damage the model, with a checksum that fits."""
    data = bytearray((folder / MODEL_FILE).read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4096] = b"\xff" * 4096
    (folder / MODEL_FILE).write_bytes(data)
    _sign(folder, MODEL_FILE)


def _swap_labels(folder: Path) -> None:
    """Exchange the labels, with a checksum that fits: the golden frames tell."""
    labels = (folder / LABELS).read_text("utf-8").splitlines()
    (folder / LABELS).write_text("\n".join(labels[1:] + labels[:1]) + "\n", "utf-8")
    _sign(folder, LABELS)


def _cut_manifest(folder: Path) -> None:
    path = folder / MANIFEST
    os.truncate(path, path.stat().st_size // 2)


def _no_model(folder: Path) -> None:
    (folder / MODEL_FILE).unlink()


def _fifo(folder: Path) -> None:
    """A pipe in place of the model: who opens it waits for ever."""
    (folder / MODEL_FILE).unlink()
    os.mkfifo(folder / MODEL_FILE)


def _sign(folder: Path, name: str) -> None:
    """Write the checksum of a changed file."""
    manifest = json.loads((folder / MANIFEST).read_bytes())
    manifest["sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(manifest), "utf-8")


WAYS: tuple[Callable[[Path], None], ...] = (
    _cut_model,
    _spoil_model,
    _swap_labels,
    _cut_manifest,
    _no_model,
    _fifo,
)


def _swap_in(context: Context) -> dict[str, Any]:
    """Put a broken version beside the one that serves, for the server to find; in half of the
    cases kill the server meanwhile, so that it finds it at its start."""
    plant, rng = context.plant, context.rng
    home = plant.models / MODEL
    version = next(each for each in VERSIONS if not (home / str(each)).exists())
    way = rng.choice(WAYS)
    made = plant.folder / f"version-{context.op}"
    shutil.copytree(home / "1", made)
    manifest = json.loads((made / MANIFEST).read_bytes())
    (made / MANIFEST).write_text(json.dumps(manifest | {"version": version}), "utf-8")
    way(made)
    made.rename(home / str(version))
    killed = rng.random() < 0.5
    try:
        if killed:
            context.kill_server()
            context.start_server()
        plant.ask("POST", f"/v1/models/{MODEL}/load")
        plant.ask("POST", f"/v1/models/{MODEL}/activate", json.dumps({"version": version}).encode())
        time.sleep(context.hold_s())
    finally:
        shutil.rmtree(home / str(version))
    return {"way": way.__name__.strip("_"), "killed": killed}


FAULTS = (Fault("swap in broken bundle", _swap_in),)
