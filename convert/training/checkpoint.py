"""The checkpoint of a training, from which it continues after a kill; replaced after each epoch."""

import fcntl
import hashlib
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from convert.data.dataset import Dataset
from convert.errors import ConvertError

CHECKPOINT = "checkpoint.npz"
Arrays = list[NDArray[Any]]
_GROUPS = ("weights", "best", "optimizer", "logits")
# Raise it with any change of what the arrays mean: a training then begins anew.
_FORMAT = 2


@dataclass(slots=True)
class Checkpoint:
    """A training between two epochs.

    epoch: epochs of fine-tuning finished; 0 means that the head is trained. best_epoch: the one
    after which the validation was best so far; best_top1 (0..1) and best_loss: what it was then.
    weights, best, optimizer: the variables' values in the model's order. logits: of each epoch from
    0 on, those of the validation frames, float32 [frames, classes].
    """

    epoch: int = 0
    best_epoch: int = 0
    best_top1: float = -1.0
    best_loss: float = float("inf")
    weights: Arrays = field(default_factory=list)
    best: Arrays = field(default_factory=list)
    optimizer: Arrays = field(default_factory=list)
    logits: Arrays = field(default_factory=list)

    def save(self, file: Path) -> None:
        """Replace `file`, all or nothing, also when the machine loses power.

        Raises ConvertError if it can't be written.
        """
        numbers = msgspec.json.encode(
            [self.epoch, self.best_epoch, self.best_top1.hex(), self.best_loss.hex()]
        )
        groups = {name: getattr(self, name) for name in _GROUPS}
        arrays = {
            f"{name}.{index}": array
            for name, group in groups.items()
            for index, array in enumerate(group)
        }
        part = file.with_suffix(".part")
        try:
            with part.open("wb") as out:
                np.savez(out, numbers=np.frombuffer(numbers, np.uint8), **arrays)
                out.flush()
                os.fsync(out.fileno())
            part.replace(file)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise ConvertError(f"{file} can't be written: {error.strerror}") from None

    @classmethod
    def load(cls, file: Path) -> "Checkpoint | None":
        """Read what `save` wrote. Return None if there is no such file or it is damaged."""
        try:
            # NumPy leaves a file open that it was given by name and can't read.
            with file.open("rb") as source, np.load(source) as stored:
                epoch, best_epoch, *best = msgspec.json.decode(stored["numbers"].tobytes())
                best_top1, best_loss = map(float.fromhex, best)
                groups: dict[str, Arrays] = {name: [] for name in _GROUPS}
                for key in stored.files:
                    name, _, index = key.partition(".")
                    if index:
                        groups[name].append(stored[key])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        return cls(epoch, best_epoch, best_top1, best_loss, **groups)


@contextmanager
def exclusive_lock(work: Path) -> Iterator[None]:
    """Make the folder `work` and keeps other trainings out of it, until the block or the process
    ends. Raises ConvertError if another is in it, or if it can't be made."""
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = (work / "lock").open("w")
    except OSError as error:
        raise ConvertError(f"{work} can't be used: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConvertError(
                f"the same training is at work in {work}; wait for it, or give another --work"
            ) from None
        except OSError as error:
            raise ConvertError(f"{work} can't be locked: {error.strerror}") from None
        yield


def fingerprint(options: object, *datasets: Dataset) -> str:
    """12 hex digits that change with any option, class, label or byte of an image."""
    state = hashlib.sha256(repr((_FORMAT, options)).encode())
    for dataset in datasets:
        state.update(repr(dataset.classes).encode())
        for item in dataset.frames:
            with item.path.open("rb") as file:
                state.update(
                    f"{item.label}{hashlib.file_digest(file, 'sha256').hexdigest()}".encode()
                )
    return state.hexdigest()[:12]
