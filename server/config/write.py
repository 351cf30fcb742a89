"""Settings written into a settings file, whose other lines and comments stay as they are."""

import os
import re
import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path

from server.errors import SettingsError
from server.system.files.durable import beside

# A table begins here; what follows belongs to it, so that settings stand before.
TABLE = re.compile(r"[ \t]*\[", re.MULTILINE)


def merge_settings(text: str, values: Mapping[str, int | float]) -> str:
    """The TOML `text` with the top-level `values` in place of those that it has, or added.

    Raises ValueError if the text is not TOML, or sets a value in a way that can't be replaced.
    """
    before = tomllib.loads(text)
    table = TABLE.search(text)
    head, tail = (text[: table.start()], text[table.start() :]) if table else (text, "")
    for name, value in values.items():
        line = f"{name} = {value}"
        head, replaced = re.subn(
            rf"^[ \t]*{name}[ \t]*=[^#\n]*?(?=[ \t]*(#.*)?$)", line, head, flags=re.M
        )
        if not replaced:
            head = head.rstrip("\n") + "\n" * bool(head.strip()) + line + "\n"
    merged = head + "\n" * bool(tail and not head.endswith("\n\n")) + tail
    if tomllib.loads(merged) != {**before, **values}:
        raise ValueError("it sets them in a way that can't be replaced")
    return merged


def write_settings(path: Path, values: Mapping[str, int | float]) -> None:
    """Sets `values`, by name, in the settings file `path`, which keeps its mode and owner. A file
    that is missing is made. Raises SettingsError that names the file if it can't be written.
    """
    fresh = beside(path)
    try:
        text = path.read_text("utf-8") if path.exists() else ""
        merged = merge_settings(text, values)
        fresh.write_text(merged, "utf-8")
        if path.exists():
            owner = path.stat()
            shutil.copymode(path, fresh)
            os.chown(fresh, owner.st_uid, owner.st_gid)
        fresh.replace(path)
    except (OSError, ValueError) as error:
        fresh.unlink(missing_ok=True)
        raise SettingsError(f"the settings file {path} can't be changed: {error}") from None
