"""Wrong values of every field that a request may have: named, in words of ours, and null."""

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from msgspec import inspect
from routes import API

from server.api.compat.tutorials import Recent
from server.errors import InvalidFieldError
from server.http.body.image import refuse_unknown, to_options
from server.http.body.json_body import decode_json
from server.http.routes import Files
from server.values.wording import counted, shown

# What msgspec says, and Python.
FOREIGN_WORDS = (
    *("Expected `", "at `$", "Object missing", "Invalid enum", "contains unknown", "out of range"),
    *("truncated", "malformed", "sys.", "Traceback", "NoneType", "`"),
)
WRONG: tuple[Any, ...] = (
    True,
    [],
    [1],
    {},
    {"a": 1},
    "\x00",
    "x" * 3000,
    "",
    -1,
    1e30,
    10**30,
    0.5,
    "1e999",
)


def request_kinds() -> list[type[msgspec.Struct]]:
    """Every type of a JSON body, a form's fields or a query string."""
    found: dict[type, None] = {Recent: None}
    for route in API:
        if route.query:
            found[route.query] = None
        for body in route.bodies.values():
            kind = body.fields if isinstance(body, Files) else body
            if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
                found[kind] = None
    return list(found)


def plain(kind: inspect.Type) -> inspect.Type:
    while isinstance(kind, inspect.Metadata):
        kind = kind.type
    return kind


def choices(kind: inspect.Type) -> list[inspect.Type]:
    kind = plain(kind)
    return [plain(c) for c in kind.types] if isinstance(kind, inspect.UnionType) else [kind]


def sample(kind: inspect.Type) -> Any:
    """A value that fits."""
    found = next(c for c in choices(kind) if not isinstance(c, inspect.NoneType))
    match found:
        case inspect.StructType():
            return {f.encode_name: sample(f.type) for f in found.fields if f.required}
        case inspect.ListType():
            return [sample(found.item_type)] * (found.min_length or 0)
        case inspect.DictType() | inspect.AnyType():
            return {}
        case inspect.BoolType():
            return True
        case inspect.IntType() | inspect.FloatType():
            return found.ge or 1
        case inspect.LiteralType():
            return found.values[0]
    return "x"


Place = tuple[type[msgspec.Struct], tuple[str, ...], inspect.Field]


def places(kind: type[msgspec.Struct]) -> Iterator[Place]:
    """Every field of a request's type, those of structs within it too."""

    def within(described: inspect.Type, path: tuple[str, ...]) -> Iterator[Place]:
        for choice in choices(described):
            if isinstance(choice, inspect.StructType):
                for field in choice.fields:
                    yield kind, (*path, field.encode_name), field
                    yield from within(field.type, (*path, field.encode_name))
            if isinstance(choice, inspect.ListType):
                yield from within(choice.item_type, (*path, "0"))

    yield from within(inspect.type_info(kind), ())


PLACES = [place for kind in request_kinds() for place in places(kind)]
IDS = [f"{kind.__name__}.{'.'.join(path)}" for kind, path, _ in PLACES]


def nested(kind: type[msgspec.Struct], path: tuple[str, ...], value: object) -> Any:
    """A body that fits `kind`, but for `value` at `path`."""
    described, steps = inspect.type_info(kind), []
    for name in path:
        struct = next((c for c in choices(described) if isinstance(c, inspect.StructType)), None)
        steps.append((described, name))
        if struct is not None:
            described = next(f.type for f in struct.fields if f.encode_name == name)
        else:
            described = next(
                c.item_type for c in choices(described) if isinstance(c, inspect.ListType)
            )
    for parent, name in reversed(steps):
        value = [value] if name == "0" else {**sample(parent), name: value}
    return value


def dotted(path: tuple[str, ...]) -> str:
    return ".".join(path).replace(".0", "[0]")


def fault(kind: type[msgspec.Struct], data: bytes) -> str | None:
    try:
        decode_json(kind, data)
    except InvalidFieldError as error:
        return error.message
    return None


def assert_own_words(message: str, name: str) -> None:
    assert message.startswith(name) or f"`{name}`" in message, message
    assert len(message) < 500
    plain_message = message.replace(f"`{name}`", name).replace("`next`", "next")
    for word in FOREIGN_WORDS:
        assert word not in plain_message, message


@pytest.mark.parametrize(("kind", "path", "field"), PLACES, ids=IDS)
def test_json_fault_names_the_field(
    kind: type[msgspec.Struct], path: tuple[str, ...], field: inspect.Field
) -> None:
    """Whatever value of JSON stands there, it is taken or called wrong by the name as written."""
    for value in WRONG:
        message = fault(kind, json.dumps(nested(kind, path, value)).encode())
        if message is not None:
            assert_own_words(message, dotted(path))


@pytest.mark.parametrize(("kind", "path", "field"), PLACES, ids=IDS)
def test_json_boolean_is_no_name_and_no_number(
    kind: type[msgspec.Struct], path: tuple[str, ...], field: inspect.Field
) -> None:
    taken = (inspect.BoolType, inspect.AnyType)
    message = fault(kind, json.dumps(nested(kind, path, True)).encode())
    assert (message is None) == any(isinstance(c, taken) for c in choices(field.type))


OPTIONAL = [(place, name) for place, name in zip(PLACES, IDS, strict=True) if not place[2].required]


@pytest.mark.parametrize("place", [p for p, _ in OPTIONAL], ids=[name for _, name in OPTIONAL])
def test_null_of_an_optional_member_is_absence(place: Place) -> None:
    kind, path, _ = place
    absent: Any = nested(kind, path, None)
    node = absent
    for name in path[:-1]:
        node = node[0] if name == "0" else node[name]
    given = decode_json(kind, json.dumps(absent).encode())
    del node[path[-1]]
    assert given == decode_json(kind, json.dumps(absent).encode())


TEXTS = [(k, p, f) for k, p, f in PLACES if len(p) == 1]


@pytest.mark.parametrize(
    ("kind", "path", "field"), TEXTS, ids=[f"{k.__name__}.{p[0]}" for k, p, _ in TEXTS]
)
def test_text_fault_names_the_field(
    kind: type[msgspec.Struct], path: tuple[str, ...], field: inspect.Field
) -> None:
    """As in a query string and a form."""
    for value in ("-1", "1e999", "nan", "x" * 3000, "9" * 400, "FAIL", "true", "1.5", "[]", "\x00"):
        required = {f.encode_name: "1" for _, _, f in places(kind) if f.required and len(path) == 1}
        try:
            to_options(kind, {**required, path[0]: value})
        except InvalidFieldError as error:
            if not error.message.startswith(tuple(required) or "\0"):
                assert_own_words(error.message, path[0])


def test_missing_field_of_a_query_is_named() -> None:
    """Also if the query string is empty."""

    class Needs(msgspec.Struct):
        since: int

    for values in ({}, {"since": ""}, {"other": "1"}):
        with pytest.raises(InvalidFieldError, match="since is missing: it should be a whole"):
            to_options(Needs, values)


@pytest.mark.parametrize(
    ("name", "meant"), [("deadline", "deadline_ms"), ("kamera", "camera"), ("Top_K", "top_k")]
)
def test_unknown_name_is_told_the_nearest(name: str, meant: str) -> None:
    known = ("model", "top_k", "camera", "deadline_ms")
    with pytest.raises(InvalidFieldError, match=f"{name} is not known here, did you mean {meant}"):
        refuse_unknown([name], known)
    refuse_unknown([meant, "_"], known)


def test_long_or_secret_unknown_name_is_not_repeated() -> None:
    """Unknown name that is long or secret is not repeated."""
    for name in ("ls_" + "a" * 43, "x" * 100_000):
        with pytest.raises(InvalidFieldError) as caught:
            refuse_unknown([name], ("camera",))
        assert name not in caught.value.message
        assert len(caught.value.message) < 200


def test_shown_value_is_short_and_hides_keys() -> None:
    assert shown("ls_" + "a" * 43) == "'(secret)'"
    assert len(shown("x" * 1000)) < 80
    assert "\n" not in shown("a\nb")
    assert len(shown(10**5000)) < 80
    assert shown([1] * 1000) == "a list"


def test_counts_take_the_right_noun() -> None:
    assert [counted(n, "label") for n in (0, 1, 2)] == ["0 labels", "1 label", "2 labels"]
    assert counted(1, "class", "classes") == "1 class"
