"""The cameras that were added while the server ran: `data/cameras.json`, which the owner alone can
read, since it has their passwords."""

import logging
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from server.config.cameras import CAMERA_KINDS, CameraTable
from server.config.tables import read_usable
from server.errors import StorageError
from server.system.files import make_folder, read_plain_file, set_aside, write_whole
from server.values import json_values
from server.values.validation import InvalidValueError
from server.values.wording import shown_name

logger = logging.getLogger(__name__)

FILE = "cameras.json"


class CameraFile:
    """The file in the folder `data`, for one writer at a time."""

    def __init__(self, data: Path) -> None:
        self._path = data / FILE
        self._unusable: list[Any] = []

    def read(self) -> list[CameraTable]:
        """Return the cameras that can be used. The others stay in the file as they are, for whoever
        mends it. A file that is no list is set aside; one that can't be read now stays."""
        try:
            given = json_values.decode(read_plain_file(self._path), list[Any])
        except (FileNotFoundError, NotADirectoryError):
            return []
        except (OSError, InvalidValueError) as error:
            aside = None
            if not isinstance(error, OSError):
                with suppress(OSError):  # the folder can't be written
                    aside = set_aside(self._path)
            fields = {"reason": str(error), "moved_to": str(aside or "")}
            logger.error("added cameras can't be read", extra={"fields": fields})
            return []
        tables, faults = read_usable(given, CAMERA_KINDS)
        self._unusable = [given[index] for index in faults]
        for index, reason in faults.items():
            name = _name_of(given[index])
            called = f"number {index + 1}" if name is None else shown_name(name)
            fields = {"camera": called, "file": str(self._path), "reason": reason}
            logger.error("an added camera can't be used", extra={"fields": fields})
        return list(tables)

    def write(self, tables: Iterable[CameraTable]) -> None:
        """Keep `tables`, and of those that could not be used the ones of other names. Raises
        StorageError."""
        tables = list(tables)
        names = {table.name for table in tables}
        others = [each for each in self._unusable if _name_of(each) not in names]
        try:
            make_folder(self._path.parent)
            data = msgspec.json.format(msgspec.json.encode([*tables, *others]))
            write_whole(self._path, data, private=True)
        except OSError as error:
            raise StorageError(f"the cameras can't be kept: {error.strerror}") from None


def _name_of(entry: object) -> str | None:
    name = entry.get("name") if isinstance(entry, dict) else None
    return name if isinstance(name, str) else None
