"""The settings as a table, a row each: what `python -m server settings` and `--help` print."""

from typing import get_type_hints

import msgspec
from msgspec import Meta

from server.config.load import PREFIX, as_text
from server.config.settings import Settings


class Described(msgspec.Struct, frozen=True):
    """One row of the settings table."""

    name: str
    env: str
    flag: str
    type: str
    default: str
    unit: str
    help: str


def _type_name(field: msgspec.inspect.Field) -> str:
    kind = field.type.type if isinstance(field.type, msgspec.inspect.Metadata) else field.type
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


def describe_settings() -> list[Described]:
    """The settings table, in the order of `Settings`."""
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
                _type_name(field),
                as_text(field.default),
                (meta.extra or {}).get("unit", ""),
                meta.description or "",
            )
        )
    return rows
