"""The cameras that were added while the server ran: `data/cameras.json`, which the owner alone can
read, since it has their passwords."""

import logging
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from server.config.cameras import CAMERA_KINDS, CameraTable
from server.config.tables import read_tables
from server.errors import SettingsError, StorageError
from server.system.files import make_folder, read_plain_file, set_aside, write_whole
from server.values import json_values
from server.values.validation import InvalidValueError

logger = logging.getLogger(__name__)

FILE = "cameras.json"


class CameraFile:
    """The file in the folder `data`, for one writer at a time."""

    def __init__(self, data: Path) -> None:
        self._path = data / FILE

    def read(self) -> list[CameraTable]:
        """Return the cameras. A file that is no list of cameras is set aside; one that can't be
        read now stays."""
        try:
            given = json_values.decode(read_plain_file(self._path), list[dict[str, Any]])
            return list(read_tables(given, "camera", CAMERA_KINDS, FILE))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except (OSError, InvalidValueError, SettingsError) as error:
            aside = None
            if not isinstance(error, OSError):
                with suppress(OSError):  # the folder can't be written
                    aside = set_aside(self._path)
            fields = {"reason": str(error), "moved_to": str(aside or "")}
            logger.error("added cameras can't be read", extra={"fields": fields})
            return []

    def write(self, tables: Iterable[CameraTable]) -> None:
        """Keep `tables` alone. Raises StorageError."""
        try:
            make_folder(self._path.parent)
            data = msgspec.json.format(msgspec.json.encode(list(tables)))
            write_whole(self._path, data, private=True)
        except OSError as error:
            raise StorageError(f"the cameras can't be kept: {error.strerror}") from None
