"""Arrays of tables in the settings, such as `[[output]]`: read strictly, listed with their help.

A setting is an array of tables if its type is a tuple of `Table`s:

    output: Annotated[tuple[MqttOutput | WebhookOutput, ...], _help("...")] = ()

The key `kind` of each table, the struct's tag, says which of the types it belongs to. An array of
one type needs no `kind`.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from server.errors import SettingsError
from server.system.files import open_plain_file
from server.values import json_values, validation
from server.values.validation import InvalidValueError, may_be
from server.values.wording import shown, shown_name, unknown_name

# In a field's `Meta(extra=...)`: its value is never shown; it names a file that must be readable.
SECRET, FILE = "secret", "file"
FILE_BYTES_MAX = 1 << 20
TAG = "kind"


def key_help(text: str, unit: str = "", *marks: str, **bounds: Any) -> Meta:
    """Return the description of one key of a table. marks: SECRET, FILE. bounds: of `Meta`."""
    return Meta(description=text, extra={"unit": unit, **dict.fromkeys(marks, True)}, **bounds)


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field=TAG):
    """One table of an array; each type of its own has a tag. Its keys are described by `key_help`.
    A `__post_init__` may raise SettingsError, whose message begins with the key."""

    name: Annotated[
        str,
        key_help(
            "its name in the log, the metrics and answers, which no other table of the array has",
            # `$` alone would take a line feed at the end.
            pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}(?!\n)$",
            extra_json_schema={
                "description": "1 to 64 of the characters A-Z a-z 0-9 _ . -, the first a letter or"
                " a digit"
            },
        ),
    ]


AnyTable = TypeVar("AnyTable", bound=Table)


class DescribedKey(msgspec.Struct, frozen=True):
    """One row of the list of an array's keys. kinds: of the tables that may have it; empty: all."""

    name: str
    kinds: tuple[str, ...]
    type: str
    default: str
    unit: str
    help: str


def table_kinds(hint: Any) -> dict[str, type[Table]]:
    """Return the types of an array's tables by their `kind`; empty if a setting of the type `hint`
    is no array of tables."""
    plain = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if get_origin(plain) is not tuple:
        return {}
    item = get_args(plain)[0]
    types = [each for each in get_args(item) or (item,) if isinstance(each, type)]
    return {_tag(each): each for each in types if issubclass(each, Table)}


def _tag(kind: type[Table]) -> str:
    return str(kind.__struct_config__.tag)


def read_tables(
    value: object, array: str, kinds: Mapping[str, type[AnyTable]], source: str
) -> tuple[AnyTable, ...]:
    """Return the tables of the setting `array`, given as a list of mappings, or as JSON text, of
    which the empty one has none.

    source: the file, variable or flag that `value` is from. Raises SettingsError, which names the
    source, the table and its key.
    """
    if isinstance(value, str):
        try:
            value = json_values.decode(value.encode() or b"[]", list[dict[str, Any]], name=array)
        except InvalidValueError as error:
            raise SettingsError(f"{source} can't be read: {error}") from None
    if not isinstance(value, list) or not all(isinstance(each, Mapping) for each in value):
        raise SettingsError(f"{source}: {array} should be tables, each under [[{array}]]")
    tables, faults = read_usable(value, kinds)
    for number, reason in faults.items():
        name = value[number].get("name")
        called = shown_name(name) if isinstance(name, str) else f"number {number + 1}"
        raise SettingsError(f"{source}: [[{array}]] {called}: {reason}")
    return tables


def read_usable(
    given: Sequence[Any], kinds: Mapping[str, type[AnyTable]]
) -> tuple[tuple[AnyTable, ...], dict[int, str]]:
    """Return the tables among `given`, and why each of the others can't be used, by its index."""
    tables: dict[str, AnyTable] = {}
    faults: dict[int, str] = {}
    for index, each in enumerate(given):
        try:
            if not isinstance(each, Mapping):
                raise SettingsError("it should be an object")
            table = read_table(each, kinds)
            if table.name in tables:
                raise SettingsError("another table has this name")
        except (InvalidValueError, SettingsError) as error:
            faults[index] = str(error)
        else:
            tables[table.name] = table
    return tuple(tables.values()), faults


def read_table(given: Mapping[str, Any], kinds: Mapping[str, type[AnyTable]]) -> AnyTable:
    """Return one table. Raises SettingsError and InvalidValueError that name the key."""
    known = " or ".join(kinds)
    if TAG not in given and len(kinds) > 1:
        raise SettingsError(f"{TAG} is missing: it may be {known}")
    tag = given.get(TAG, known)
    if not isinstance(tag, str) or tag not in kinds:
        raise SettingsError(f"{TAG} can't be {shown(tag)}: it may be {known}")
    kind = kinds[tag]
    hints = get_type_hints(kind, include_extras=True)
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key == TAG:
            continue
        if key not in hints:
            raise SettingsError(unknown_name(key, hints))
        values[key] = _read_key(key, value, hints[key])
    for field in msgspec.structs.fields(kind):
        if field.required and field.name not in values:
            raise SettingsError(
                f"{field.name} is missing: it should be {may_be(hints[field.name])}"
            )
    return kind(**values)


def _read_key(key: str, value: object, hint: Any) -> object:
    try:
        return validation.convert(value, hint, name=key, lenient=False)
    except InvalidValueError:
        if not _marked(hint, SECRET):
            raise
    raise SettingsError(f"{key} can't be that: it should be {may_be(hint)}")


def _meta(hint: Any) -> Meta:
    meta: Meta = hint.__metadata__[0]
    return meta


def _marked(hint: Any, mark: str) -> bool:
    return mark in (_meta(hint).extra or {})


def check_url(url: str, advice: str = "") -> None:
    """Raise SettingsError for the value of a key `url` with a user or a password, which is followed
    by `advice`, or with a host or a port that can't be one."""
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise SettingsError("url has a host or a port that can't be one")
    if "@" in parts.netloc:
        raise SettingsError(f"url can't have a user or a password{advice}")


def check_files(array: str, tables: tuple[Table, ...]) -> None:
    """Raise SettingsError if a key of the setting `array` names a file that can't be read."""
    for table in tables:
        for key, hint in get_type_hints(type(table), include_extras=True).items():
            path = getattr(table, key)
            if not _marked(hint, FILE) or not path:
                continue
            try:
                open_plain_file(Path(path), FILE_BYTES_MAX).close()
            except OSError as error:
                raise SettingsError(
                    f"[[{array}]] {table.name}: {key} can't be {path!r}: {error.strerror}"
                ) from None


def describe_tables(kinds: Mapping[str, type[Table]]) -> Iterator[DescribedKey]:
    """Yield the keys of an array's tables, in the order of their types; a key that differs between
    types once for each."""
    tags: dict[DescribedKey, list[str]] = {}
    for tag, kind in kinds.items():
        fields = {field.name: field for field in msgspec.structs.fields(kind)}
        # Those that all tables have come first.
        for key, hint in get_type_hints(kind, include_extras=True).items():
            tags.setdefault(_describe_key(fields[key], hint), []).append(tag)
    if len(kinds) > 1:
        yield DescribedKey(TAG, (), " or ".join(kinds), "required", "", "decides on the other keys")
    for row, of_kinds in tags.items():
        names = () if len(of_kinds) == len(kinds) else tuple(of_kinds)
        yield msgspec.structs.replace(row, kinds=names)


def _describe_key(field: msgspec.structs.FieldInfo, hint: Any) -> DescribedKey:
    meta = _meta(hint)
    return DescribedKey(
        field.name,
        (),
        type_name(hint),
        "required" if field.required else as_text(field.default),
        (meta.extra or {}).get("unit", ""),
        meta.description or "",
    )


def as_text(value: object) -> str:
    """Return a value that is no table, as the environment gives it; '' for none."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(value)
    return "" if value is None else str(value)


def type_name(hint: Any) -> str:
    """Return the word for the type `hint` in the lists of settings."""
    if table_kinds(hint):
        return "tables"
    kind = msgspec.inspect.type_info(hint)
    while isinstance(kind, msgspec.inspect.Metadata):
        kind = kind.type
    if isinstance(kind, msgspec.inspect.LiteralType):
        return " or ".join(str(value) for value in kind.values)
    names = {
        "BoolType": "true or false",
        "IntType": "whole number",
        "FloatType": "number",
        "StrType": "text",
        "VarTupleType": "list",
    }
    return names.get(type(kind).__name__, "table")
