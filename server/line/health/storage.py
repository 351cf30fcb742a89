"""Keeps what was learned of cameras, in `data/image_health.json`, so that a restart does not learn
from a lens that is covered then."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from server.line.health.baseline import Baseline
from server.observe.logs import ProblemLog
from server.recognition.images.measurement import CELLS, THUMBNAIL_SIDE_MAX
from server.system.files import make_folder, read_plain_file, set_aside, write_whole
from server.values import json_values
from server.values.validation import InvalidValueError

logger = logging.getLogger(__name__)

FILE = "image_health.json"


class Learned(msgspec.Struct, frozen=True):
    """The usual figures of a camera's frames for one model."""

    camera: str
    model: str
    baseline: Baseline


class _Content(msgspec.Struct, frozen=True):
    format: Literal[1]
    cameras: tuple[Learned, ...]


class HealthFile:
    """The file in the folder `data`; for one thread at a time."""

    def __init__(self, data: Path) -> None:
        self.path = data / FILE
        self._problem = ProblemLog("image health can't be kept", "image health is kept again")

    def load(self) -> tuple[Learned, ...]:
        """Read what was learned; nothing if there is no file. A damaged one is set aside, which is
        logged: its cameras learn anew."""
        try:
            content = json_values.decode(read_plain_file(self.path), _Content, name="it")
            for each in content.cameras:
                _check(each.baseline)
        except FileNotFoundError:
            return ()
        except OSError as error:
            self._problem.failed(error.strerror or str(error), file=str(self.path))
            return ()
        except InvalidValueError as error:
            fields = {"file": str(self.path), "reason": str(error)}
            logger.error("image health is damaged, cameras learn anew", extra={"fields": fields})
            try:
                set_aside(self.path)
            except OSError as failure:
                self._problem.failed(failure.strerror or str(failure), file=str(self.path))
            return ()
        return content.cameras

    def save(self, cameras: Sequence[Learned]) -> None:
        """Write what was learned. A failure is logged, and the cameras are judged all the same."""
        try:
            make_folder(self.path.parent)
            write_whole(self.path, msgspec.json.encode(_Content(1, tuple(cameras))))
        except OSError as error:
            self._problem.failed(error.strerror or str(error), file=str(self.path))
        else:
            self._problem.went_well(file=str(self.path))


def _check(baseline: Baseline) -> None:
    """Raise InvalidValueError for parts that do not fit together."""
    width, height = baseline.thumbnail_size
    cells = CELLS[0] * CELLS[1]
    length = width * height * np.dtype(np.float32).itemsize if baseline.reference else 0
    if not (
        0 < width <= THUMBNAIL_SIDE_MAX
        and 0 < height <= THUMBNAIL_SIDE_MAX
        and len(baseline.cells) == cells
        and baseline.chosen
        and all(0 <= cell < cells for cell in baseline.chosen)
        and len(baseline.reference) == len(baseline.weights) == length
    ):
        raise InvalidValueError("a camera's values do not belong together")
