"""Whether an object of the Grafana Foundation SDK is what the types of its fields say.

The SDK reads and writes JSON by its types and does not check them.
"""

import enum
import typing
from collections.abc import Iterator
from types import UnionType
from typing import Any

SDK = "grafana_foundation_sdk"


def faults(value: Any, hint: Any = object, where: str = "") -> Iterator[str]:
    """A line for each part of `value` that is not of the type `hint`, nor of those of its own
    fields."""
    if not _is_a(value, hint):
        yield f"{where or 'it'} is {value!r}, not {hint}"
    if isinstance(value, list):
        (inner,) = typing.get_args(hint) or (object,)
        for index, item in enumerate(value):
            yield from faults(item, inner, f"{where}[{index}]")
    elif isinstance(value, dict):
        inner = (typing.get_args(hint) or (str, object))[1]
        for key, item in value.items():
            yield from faults(item, inner, f"{where}.{key}")
    elif type(value).__module__.startswith(SDK) and not isinstance(value, enum.Enum):
        hints = typing.get_type_hints(type(value))
        for name, item in vars(value).items():
            yield from faults(item, _inside(item, hints[name]), f"{where}.{name}")


def _inside(value: Any, hint: Any) -> Any:
    """Of an optional list or dictionary the type it has where it is there."""
    if typing.get_origin(hint) not in (typing.Union, UnionType):
        return hint
    fitting = [kind for kind in typing.get_args(hint) if _is_a(value, kind)]
    return fitting[0] if fitting else hint


def _is_a(value: Any, hint: Any) -> bool:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, UnionType):
        return any(_is_a(value, kind) for kind in inner)
    if origin is typing.Literal:
        return value in inner
    if hint in (object, Any):
        return True
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int and isinstance(value, bool):
        return False
    kind = origin or hint
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return value in {member.value for member in kind}
    return isinstance(value, kind)
