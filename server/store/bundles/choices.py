"""Which version of a model was asked for, kept beside its versions so that it outlives a restart.

`models/NAME/active.json` is written when someone activates a version or rolls back, and when a
newer version takes over from one that served; it is read at every start.
"""

import errno
import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from server.system.files import read_plain_file, set_aside, write_whole
from server.values import json_values
from server.values.validation import InvalidValueError

logger = logging.getLogger(__name__)

CHOICE = "active.json"


class VersionChoice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A person's decision about a model, and what took over by itself since.

    version: the one to serve. skip: versions that were passed over by the decision, so that only
    one newer than those takes over by itself. history: versions that served before, the last
    one last.
    """

    version: int
    skip: tuple[int, ...] = ()
    history: tuple[int, ...] = ()


def read_choice(folder: Path) -> VersionChoice | None:
    """The choice kept in models/NAME; None where there is none, or where it is damaged (logged)."""
    path = folder / CHOICE
    try:
        return json_values.decode(read_plain_file(path), VersionChoice, name="it", lenient=False)
    except FileNotFoundError:
        return None
    except (OSError, InvalidValueError) as error:
        moved = _set_aside_damaged(path, error)
        _warn("the kept choice of a version can't be read and is ignored", path, error, moved)
        return None


def _set_aside_damaged(path: Path, error: Exception) -> Path | None:
    """Makes way for the next choice if the file itself is at fault, and not its disk or its rights;
    else it would be told at every start, and a folder in its place would stop the next choice."""
    if isinstance(error, OSError) and error.errno not in (errno.EINVAL, errno.EFBIG):
        return None
    with suppress(OSError):  # a folder that can't be written to
        return set_aside(path)
    return None


def write_choice(folder: Path, choice: VersionChoice) -> bool:
    """Keeps `choice` in models/NAME: whole or not at all. False where that can't be written to
    (logged): the choice then holds until the next start."""
    path = folder / CHOICE
    try:
        write_whole(path, msgspec.json.encode(choice))
    except OSError as error:
        _warn("the choice of a version can't be kept and holds until the next start", path, error)
        return False
    return True


def _warn(event: str, path: Path, error: Exception, moved: Path | None = None) -> None:
    fields = {"file": str(path), "reason": str(error)}
    if moved is not None:
        fields["moved_to"] = str(moved)
    logger.warning(event, extra={"fields": fields})


def candidates(
    numbers: Sequence[int], choice: VersionChoice | None = None, pinned: int | None = None
) -> tuple[int, ...]:
    """The versions that may serve, in the order in which they are tried.

    numbers: those on disk, newest first. A pinned version is the only one. After a choice, newer
    versions that it did not pass over come first, then the chosen one, then older ones.
    """
    if pinned is not None:
        return (pinned,) if pinned in numbers else ()
    if choice is None:
        return tuple(numbers)
    return tuple(number for number in numbers if number not in choice.skip)


def history_before(version: int, choice: VersionChoice, numbers: Sequence[int]) -> list[int]:
    """What served before `version`, the last one last, as far as `choice` and the versions on disk
    tell. What came after the choice, while the server stood still, went unrecorded: it counts as
    having served."""
    since = [n for n in numbers if choice.version <= n < version and n not in choice.skip]
    return [*choice.history, *sorted(since)]
