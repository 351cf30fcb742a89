"""Checks values against a type, and says in one sentence of ours what is wrong with them.

msgspec checks them; its messages speak its own language, so what is wrong is described from the
type's own constraints: the name as the user wrote it, what the value may be, and the value that
came. Pure functions.
"""

import math
import re
from collections.abc import Hashable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, TypeVar, cast

import msgspec
from msgspec import inspect

from server.values.wording import (
    SHOWN_CHARS_MAX,
    counted,
    join_path,
    shown,
    shown_name,
    unknown_name,
)

T = TypeVar("T")

# `Meta(extra=NUMBER_TOO)` marks a text that may also come as a JSON number, such as a part's.
NUMBER_TOO = {"number_too": True}
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
# Whole numbers that a float holds exactly, and that a text of them is quickly made of.
EXACT = 2.0**53
# Items of a list that are looked at one by one, when one of them is wrong.
CHECKED_ITEMS_MAX = 1000


class InvalidValueError(ValueError):
    """A value does not fit its type; the message is one sentence that names it."""


def convert(
    value: object, kind: type[T], *, text: bool = False, name: str = "", lenient: bool = True
) -> T:
    """Converts `value`, of plain types, to `kind`; if `lenient`, with some allowances.

    The allowances: null for a field that may be left out counts as left out; a whole float counts
    as a whole number, a numeric text as a number, and a number as a text marked by NUMBER_TOO.
    text: the values of a query string or form, which are all text. name: what the user calls
    `value` itself. Raises InvalidValueError.
    """
    try:
        return msgspec.convert(value, kind, strict=not text)
    except msgspec.ValidationError:
        pass
    described = _described(cast(Hashable, kind))
    if lenient:
        value = _tidied(value, described, text)
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise InvalidValueError(_why(value, described, name, error)) from None


def may_be(kind: Any) -> str:
    """Says what a value of `kind`, an annotated type, may be, such as «a number from 0 to 1»."""
    return _may_be(_without_null(_described(kind)))


@lru_cache(maxsize=512)
def _described(kind: Any) -> inspect.Type:
    return inspect.type_info(kind)


def _plain(kind: inspect.Type) -> inspect.Type:
    """Returns `kind` without its description."""
    while isinstance(kind, inspect.Metadata):
        kind = kind.type
    return kind


def _choices(kind: inspect.Type) -> tuple[inspect.Type, ...]:
    kind = _plain(kind)
    return kind.types if isinstance(kind, inspect.UnionType) else (kind,)


def _takes_null(kind: inspect.Type) -> bool:
    return any(
        isinstance(_plain(each), inspect.NoneType | inspect.AnyType) for each in _choices(kind)
    )


def _without_null(kind: inspect.Type) -> inspect.Type:
    """Returns `kind` without null, which messages about an optional field leave out."""
    if isinstance(kind, inspect.UnionType):
        others = tuple(each for each in kind.types if not isinstance(each, inspect.NoneType))
        return others[0] if len(others) == 1 else inspect.UnionType(others)
    return kind


def _marked(kind: inspect.Type) -> bool:
    """Returns whether a text may come as a number too."""
    if isinstance(kind, inspect.UnionType):
        return any(map(_marked, kind.types))
    if isinstance(kind, inspect.Metadata):
        return "number_too" in (kind.extra or {}) or _marked(kind.type)
    return False


def _tidied(value: Any, kind: inspect.Type, text: bool) -> Any:
    """Returns `value` with the allowances of `convert` applied, as msgspec expects it."""
    choices = [_plain(each) for each in _choices(kind)]
    for choice in choices:
        if isinstance(choice, inspect.StructType) and isinstance(value, Mapping):
            return _tidied_fields(value, choice, text)
        if isinstance(choice, inspect.ListType | inspect.VarTupleType) and isinstance(value, list):
            item = choice.item_type
            structs = any(isinstance(_plain(c), inspect.StructType) for c in _choices(item))
            if structs and len(value) <= CHECKED_ITEMS_MAX:
                return [_tidied(each, item, text) for each in value]
    kinds = set(map(type, choices))
    if type(value) is str and not kinds & {inspect.StrType, inspect.AnyType}:
        return _from_text(value, kinds, text)
    if type(value) is float and inspect.IntType in kinds and value.is_integer():
        return int(value) if abs(value) <= EXACT else value
    if type(value) in (int, float) and inspect.StrType in kinds and _marked(kind):
        # A float's shortest text says the same number; longer integers are no one's names.
        return str(value) if abs(value) < 10**20 else value
    return value


def _tidied_fields(values: Mapping[Any, Any], kind: inspect.StructType, text: bool) -> Any:
    fields = {field.encode_name: field for field in kind.fields}
    problem = {}
    for name, value in values.items():
        field = fields.get(name)
        if field is not None:
            value = _tidied(value, field.type, text)
            if value is None and not field.required and not _takes_null(field.type):
                continue
        problem[name] = value
    return problem


def _from_text(value: str, kinds: set[type], text: bool) -> Any:
    if kinds & {inspect.IntType, inspect.FloatType} and len(value) <= SHOWN_CHARS_MAX:
        if NUMBER.fullmatch(value):
            if re.fullmatch("[+-]?[0-9]+", value):
                return int(value)
            number = float(value)
            if inspect.FloatType in kinds:
                return number if math.isfinite(number) else value
            return int(number) if number.is_integer() and abs(number) <= EXACT else value
        return None if text and value == "null" else value
    if text and inspect.BoolType in kinds:
        return BOOLEANS.get(value.lower(), value)
    return value


def _why(value: object, kind: inspect.Type, name: str, error: msgspec.ValidationError) -> str:
    problem = _problem(value, kind, name)
    if problem:
        return problem
    if isinstance(error.__cause__, ValueError):  # of a __post_init__ of ours
        return str(error.__cause__)
    return f"{name or 'the body'} has a value that can't be used"


def _problem(value: Any, kind: inspect.Type, path: str) -> str | None:
    """Says what is wrong with `value` at `path`; None if nothing is."""
    choices = [_plain(each) for each in _choices(kind)]
    for choice in choices:
        if isinstance(choice, inspect.StructType) and isinstance(value, Mapping):
            return _problem_of_fields(value, choice, path)
        if isinstance(choice, _LISTS) and isinstance(value, _LIST) and _long_enough(value, choice):
            return _problem_of_items(value, choice, path)
        if isinstance(choice, inspect.DictType) and isinstance(value, Mapping):
            items = list(value.items())[:CHECKED_ITEMS_MAX]
            problems = (
                _problem(v, choice.value_type, join_path(path, shown_name(k))) for k, v in items
            )
            return next(filter(None, problems), None)
        if _fits(value, choice):
            return None
    return f"{path or 'the body'} should be {_may_be(kind)}, not {_shown_beside(value, choices)}"


def _problem_of_fields(
    values: Mapping[Any, Any], kind: inspect.StructType, path: str
) -> str | None:
    fields = {field.encode_name: field for field in kind.fields}
    if kind.forbid_unknown_fields:
        for name in values:
            if name not in fields:
                return unknown_name(name, fields, path)
    for name, field in fields.items():
        if name in values:
            of_field = field.type
            if not field.required and values[name] is not None:
                of_field = _without_null(of_field)
            problem = _problem(values[name], of_field, join_path(path, name))
            if problem:
                return problem
        elif field.required:
            return f"{join_path(path, name)} is missing: it should be {_may_be(field.type)}"
    return None


def _problem_of_items(value: Sequence[Any], kind: Any, path: str) -> str | None:
    if isinstance(kind, inspect.TupleType):
        kinds = kind.item_types
    else:
        kinds = (kind.item_type,) * min(len(value), CHECKED_ITEMS_MAX)
    for number, (item, each) in enumerate(zip(value, kinds, strict=False)):
        problem = _problem(item, each, f"{path}[{number}]")
        if problem:
            return problem
    if len(value) > CHECKED_ITEMS_MAX and not isinstance(kind, inspect.TupleType):
        return f"{path or 'the body'} should be {_may_be(kind)}, and an item of it is not"
    return None


_LISTS = inspect.ListType | inspect.VarTupleType | inspect.TupleType
_LIST = list | tuple


def _fits(value: Any, kind: inspect.Type) -> bool:
    """Returns whether `value` is of `kind`, which is no struct, list or dictionary."""
    match kind:
        case inspect.AnyType():
            return True
        case inspect.NoneType():
            return value is None
        case inspect.BoolType():
            return isinstance(value, bool)
        case inspect.LiteralType():
            return any(type(value) is type(each) and value == each for each in kind.values)
        case inspect.IntType():
            return type(value) is int and _in_range(value, kind)
        case inspect.FloatType():
            return type(value) in (int, float) and _in_range(value, kind)
        case inspect.StrType():
            return (
                isinstance(value, str)
                and _long_enough(value, kind)
                and (kind.pattern is None or re.search(kind.pattern, value) is not None)
            )
        case inspect.DateTimeType():
            return isinstance(value, str) and _is_moment(value)
    return False


def _is_moment(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def _in_range(value: float, kind: Any) -> bool:
    return (
        (kind.gt is None or value > kind.gt)
        and (kind.ge is None or value >= kind.ge)
        and (kind.lt is None or value < kind.lt)
        and (kind.le is None or value <= kind.le)
    )


def _long_enough(value: Any, kind: Any) -> bool:
    if isinstance(kind, inspect.TupleType):
        return len(value) == len(kind.item_types)
    least, most = kind.min_length or 0, kind.max_length
    return least <= len(value) and (most is None or len(value) <= most)


def _shown_beside(value: object, choices: list[inspect.Type]) -> str:
    """Says what `value` is, for a sentence on what it should be; its length, if that is wrong."""
    if isinstance(value, str) and len(value) > SHOWN_CHARS_MAX:
        return f"text of {counted(len(value), 'character')}"
    if isinstance(value, _LIST) and any(isinstance(each, _LISTS) for each in choices):
        return f"a list of {counted(len(value), 'item')}"
    return shown(value)


def _may_be(kind: inspect.Type) -> str:
    if isinstance(kind, inspect.Metadata):
        plain, schema = _plain(kind), kind.extra_json_schema or {}
        if isinstance(plain, inspect.StrType) and plain.pattern and "description" in schema:
            return str(schema["description"])  # a pattern says less to a person
        return _may_be(kind.type)
    match kind:
        case inspect.UnionType():
            return _listed([_may_be(each) for each in kind.types])
        case inspect.NoneType():
            return "null"
        case inspect.BoolType():
            return "true or false"
        case inspect.LiteralType():
            return _listed([str(each) if each != "" else "empty" for each in kind.values])
        case inspect.IntType():
            return "a whole number" + _range(kind)
        case inspect.FloatType():
            return "a number" + _range(kind)
        case inspect.StrType():
            form = f" of the form {kind.pattern}" if kind.pattern else ""
            return "text" + _length(kind, "character") + form
        case inspect.DateTimeType():
            return "a date and time with its zone, such as 2026-01-31T06:00:00Z"
        case inspect.ListType() | inspect.VarTupleType():
            return "a list" + _length(kind, "item")
        case inspect.TupleType():
            return f"a list of {counted(len(kind.item_types), 'item')}"
        case inspect.AnyType():
            return "any value"
    return "an object"


def _listed(texts: list[str]) -> str:
    *first, last = dict.fromkeys(texts)
    return f"{', '.join(first)} or {last}" if first else last


def _range(kind: Any) -> str:
    if kind.ge is not None and kind.le is not None:
        return f" from {_figure(kind.ge)} to {_figure(kind.le)}"
    bounds = [
        f"{word} {_figure(bound)}"
        for word, bound in (
            ("above", kind.gt),
            ("at least", kind.ge),
            ("below", kind.lt),
            ("at most", kind.le),
        )
        if bound is not None
    ]
    text = " and ".join(bounds)
    return f" of {text}" if text.startswith("at") else f" {text}" if text else ""


def _figure(bound: float) -> str:
    return str(int(bound)) if float(bound).is_integer() else f"{bound:g}"


def _length(kind: Any, unit: str) -> str:
    least, most = kind.min_length or 0, kind.max_length
    if least and most is not None:
        return f" of {least:,} to {counted(most, unit)}"
    if least:
        return f" of at least {counted(least, unit)}"
    return f" of at most {counted(most, unit)}" if most is not None else ""
