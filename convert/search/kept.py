"""Keeps what a search found at its beginning in its folder of work, so that it goes on alike."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from convert.errors import ConvertError

Found = TypeVar("Found")


def kept(
    file: Path,
    kind: type[Found],
    find: Callable[[], Found],
    is_usable: Callable[[Found], bool] = lambda _: True,
) -> Found:
    """Return what an earlier call wrote to `file`, of the type `kind`, if it is usable; otherwise
    what `find` returns, which is written. Raises ConvertError if it can't be written."""
    # There is none if this is the first call.
    with suppress(OSError, msgspec.DecodeError):
        earlier = msgspec.json.decode(file.read_bytes(), type=kind)
        if is_usable(earlier):
            return earlier
    found = find()
    part = file.with_suffix(".part")
    try:
        part.write_bytes(msgspec.json.encode(found))
        part.replace(file)
    except OSError as error:
        raise ConvertError(f"{file} can't be written: {error.strerror}") from None
    return found
