"""Settings as text: read from their sources, listed as a table, written into their file.

Sources in order of increasing precedence: a TOML file, the environment (`LINESIDE_NAME`), flags
(`--name`). All are read strictly, before the port opens: an unknown key or an unusable value is a
SettingsError that names it and its source.
"""

import os
import re
import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from server.config.settings import Settings
from server.config.tables import Table, as_text, read_tables, table_kinds, type_name
from server.errors import SettingsError
from server.recognition.manifest import Recipe
from server.system.files import beside, read_plain_file
from server.values import json_values, validation
from server.values.validation import InvalidValueError, may_be
from server.values.wording import shown

PREFIX = "LINESIDE_"
CONFIG = "LINESIDE_CONFIG"
# Settings that hold a password or a secret, or may.
SECRET = frozenset({"broker_url", "cache_url", "webhook_secret"})
# The beginning of a list of texts as JSON, which no item has: an IPv6 address begins with `[`.
JSON_LIST = '["'
# The beginning of a table in a TOML file. All that follows belongs to it, so settings come before.
TABLE = re.compile(r"[ \t]*\[", re.MULTILINE)


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_plain_file(path).decode())
    except FileNotFoundError:
        raise SettingsError(
            f"the settings file {path} does not exist: make it, it may be empty, or name another"
        ) from None
    except OSError as error:
        raise SettingsError(f"the settings file {path} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(
            f"the settings file {path} can't be read: it is no text in UTF-8"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"the settings file {path} is not valid TOML: {error}") from None
    except RecursionError:
        raise SettingsError(
            f"the settings file {path} has lists or tables that are nested too deeply"
        ) from None
    except ValueError:
        # Python's own bound on the digits of a number.
        raise SettingsError(
            f"the settings file {path} has a number of more digits than any setting takes"
        ) from None


def _why(kind: Any) -> str:
    """Says what a value of `kind`, an annotated type, may be."""
    plain, meta = kind.__origin__, kind.__metadata__[0]
    if get_origin(plain) is Literal:
        return "it may be " + " or ".join(choice or "empty" for choice in get_args(plain))
    if plain is bool:
        return "it may be true or false"
    # A pattern says less to a person than the setting's help does.
    return str(meta.description) if meta.pattern else f"it may be {may_be(kind)}"


def _convert(name: str, value: object, source: str, *, strict: bool) -> object:
    kinds = get_type_hints(Settings, include_extras=True)
    if name not in kinds:
        raise SettingsError(
            f"{source}: there is no such setting; `python -m server settings` lists them"
        )
    if kinds_of_tables := table_kinds(kinds[name]):
        return read_tables(value, name, kinds_of_tables, source.removesuffix(f": {name}"))
    try:
        if not strict and isinstance(value, str) and name == "recipe":
            return json_values.decode(value.encode(), kinds[name], name=name)
        if name == "recipe":
            return validation.convert(value, kinds[name], name=name, lenient=False)
        if not strict and isinstance(value, str) and get_origin(kinds[name].__origin__) is tuple:
            value = _items(value)
        return msgspec.convert(value, kinds[name], strict=strict)
    except (msgspec.ValidationError, InvalidValueError) as error:
        why = str(error) if isinstance(error, InvalidValueError) else _why(kinds[name])
        what = "that" if name in SECRET else _written(value)
        raise SettingsError(f"{source} can't be {what}: {why}") from None


def _items(text: str) -> list[str]:
    """Returns the items of a list as text: separated by commas, or as JSON, in which an item may
    have a comma too. Raises InvalidValueError."""
    if text.startswith(JSON_LIST):
        return json_values.decode(text.encode("utf-8", "replace"), list[str], name="the list")
    return [item for item in map(str.strip, text.split(",")) if item]


def _written(value: object) -> str:
    try:
        return repr(value)
    except ValueError:
        # Python writes no number of thousands of digits, which hexadecimal ones may have.
        return shown(value)


def to_environ(settings: Settings) -> dict[str, str]:
    """Returns the environment from which `load` makes `settings` again, for a process of this
    server's."""
    environ = {}
    for name in Settings.__struct_fields__:
        value = getattr(settings, name)
        items = value if isinstance(value, tuple) else ()
        if isinstance(value, Recipe) or any(map(_needs_json, items)):
            environ[PREFIX + name.upper()] = msgspec.json.encode(value).decode()
        elif value is not None:
            environ[PREFIX + name.upper()] = as_text(value)
    return environ


def _needs_json(item: object) -> bool:
    """Returns whether a list with this item can't be given as items between commas."""
    return isinstance(item, Table) or (
        isinstance(item, str)
        and (not item or item != item.strip() or "," in item or item.startswith(JSON_LIST))
    )


def settings_file(environ: Mapping[str, str], file: Path | None = None) -> Path | None:
    """Returns the settings file: `file`, or the one that LINESIDE_CONFIG names, or None."""
    if file is None and environ.get(CONFIG):
        return Path(environ[CONFIG])
    return file


def load(
    environ: Mapping[str, str], flags: Mapping[str, str] | None = None, file: Path | None = None
) -> Settings:
    """Returns the settings from `file` (or the one LINESIDE_CONFIG names), `environ` and `flags`
    (by name).

    Raises SettingsError for an unknown key, an unusable value or a missing file.
    """
    file = settings_file(environ, file)
    values: dict[str, Any] = {}
    for name, value in (_read_file(file) if file else {}).items():
        values[name] = _convert(name, value, f"{file}: {name}", strict=True)
    for key, value in environ.items():
        if key.startswith(PREFIX) and key != CONFIG:
            name = key.removeprefix(PREFIX).lower()
            values[name] = _convert(name, value, key, strict=False)
    for name, value in (flags or {}).items():
        values[name] = _convert(name, value, "--" + name.replace("_", "-"), strict=False)
    return Settings(**values)


class Described(msgspec.Struct, frozen=True):
    """One row of the settings table."""

    name: str
    env: str
    flag: str
    type: str
    default: str
    unit: str
    help: str


def describe_settings() -> list[Described]:
    """Returns the settings table, in the order of `Settings`."""
    rows = []
    info = msgspec.inspect.type_info(Settings)
    assert isinstance(info, msgspec.inspect.StructType)
    hints = get_type_hints(Settings, include_extras=True)
    for field in info.fields:
        meta = next(m for m in hints[field.name].__metadata__ if isinstance(m, Meta))
        rows.append(
            Described(
                field.name,
                PREFIX + field.name.upper(),
                "--" + field.name.replace("_", "-"),
                type_name(hints[field.name]),
                as_text(field.default),
                (meta.extra or {}).get("unit", ""),
                meta.description or "",
            )
        )
    return rows


class SettingInForce(msgspec.Struct, frozen=True):
    """One setting with its value as text. source: `default`, `environment`, or `file or flag`."""

    name: str
    value: str
    unit: str
    help: str
    source: str


def settings_in_force(settings: Settings) -> list[SettingInForce]:
    """Return the settings with their values; of secrets, and of tables, which may hold some, only
    whether they are set."""
    rows, arrays = [], arrays_of_tables()
    for row in describe_settings():
        value = getattr(settings, row.name)
        if row.name in arrays:
            text = ", ".join(each.name for each in value)
        elif row.name in SECRET:
            text = "***" if value else ""
        elif isinstance(value, Recipe):
            text = msgspec.json.encode(value).decode()
        else:
            text = as_text(value) if value is not None else ""
        default = not text if row.name in arrays else text == row.default
        source = (
            "environment" if row.env in os.environ else "default" if default else "file or flag"
        )
        rows.append(SettingInForce(row.name, text, row.unit, row.help, source))
    return rows


def arrays_of_tables() -> dict[str, dict[str, type[Table]]]:
    """Return the settings that are arrays of tables, each with the types of its tables by kind."""
    hints = get_type_hints(Settings, include_extras=True)
    return {name: kinds for name, hint in hints.items() if (kinds := table_kinds(hint))}


def merge_settings(text: str, values: Mapping[str, int | float]) -> str:
    """Returns the TOML `text` with the top-level `values` in place of those that it has, or added.

    Raises ValueError if the text is not TOML, or sets a value in a way that can't be replaced.
    """
    try:
        before = tomllib.loads(text)
    except RecursionError:
        raise ValueError("its lists or tables are nested too deeply") from None
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
