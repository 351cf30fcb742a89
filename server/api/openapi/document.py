"""The API described (OpenAPI 3.1), from the types that validate it."""

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import msgspec

from server import __version__
from server.api.openapi.operation import FORM, JSON, Files, Operation
from server.api.openapi.operations import EXAMPLES
from server.api.recognize.options import FrameOptions
from server.http.access.rights import OPEN, PROBES, RIGHTS_OF
from server.http.errors import ErrorAnswer, ForeignError
from server.store.keys import Right

Schema = dict[str, Any]
REF = "#/components/schemas/{name}"
PARAMETERS: dict[str, Schema] = {
    "name": {"type": "string", "description": "the model"},
    "version": {"type": "integer", "minimum": 1, "description": "the version that serves"},
    "label": {"type": "string", "description": "`stable`: the version that serves"},
    "file": {"type": "string"},
    "sample": {"type": "string", "description": "the sample's id"},
    "job": {"type": "string", "description": "the id that was answered with 202"},
}
BINARY: Schema = {"type": "string", "format": "binary"}
# By path as it stands in the document.
RIGHTS: dict[str, tuple[Right, ...]] = {
    re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule): rights for rule, rights in RIGHTS_OF.items()
}
KEY, TOKEN = "key", "bearer"
SECURITY_SCHEMES: dict[str, Schema] = {
    KEY: {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-Key",
        "description": "a key of `python -m server key add`, where the server asks for one",
    },
    TOKEN: {
        "type": "http",
        "scheme": "bearer",
        "description": "the same key, or a token of the identity provider in the settings",
    },
}
_TEXT: Schema = {"type": "string"}
HEADERS: dict[str, Schema] = {
    "X-Request-Id": {
        "description": "the request's id: as sent, or a new one; the log has it too",
        "schema": _TEXT,
    },
    "Retry-After": {
        "description": "seconds after which the request may succeed; absent if it never will",
        "schema": {"type": "integer", "minimum": 1},
    },
    "X-Should-Retry": {
        "description": "`false`, in place of Retry-After: the same request can't succeed later",
        "schema": {"type": "string", "enum": ["false"]},
    },
    "RateLimit": {
        "description": "what is left of each limit (draft-ietf-httpapi-ratelimit-headers)",
        "schema": _TEXT,
    },
    "RateLimit-Policy": {"description": "each limit", "schema": _TEXT},
    "WWW-Authenticate": {"description": "how to sign in (RFC 6750)", "schema": _TEXT},
}
HEADERS_OF: dict[int, tuple[str, ...]] = {
    401: ("WWW-Authenticate",),
    429: ("Retry-After", "RateLimit", "RateLimit-Policy"),
    503: ("Retry-After", "X-Should-Retry"),
}


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _types(table: Iterable[Operation]) -> list[type]:
    found: dict[type, None] = dict.fromkeys((FrameOptions, ErrorAnswer, ForeignError))
    for operation in table:
        kinds = [kind for answer in operation.answers.values() for kind in answer]
        kinds += [*operation.accepted, operation.asks]
        for body in operation.bodies.values():
            kinds.append(body.fields if isinstance(body, Files) else body)
        found |= dict.fromkeys(kind for kind in kinds if _is_struct(kind))
    return list(found)


def _for_generators(schema: Any) -> Any:
    """`schema` as generators of clients take it: each array with a schema of its `items`. A tuple's
    bounds on its length say the same as `false` there."""
    if isinstance(schema, list):
        return [_for_generators(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _for_generators(value) for key, value in schema.items()}
    if made.get("type") == "array" and not made.get("items"):
        kinds: list[Any] = []
        for kind in made.get("prefixItems", ()):
            if kind not in kinds:
                kinds.append(kind)
        made["items"] = {"anyOf": kinds} if len(kinds) > 1 else (kinds or [{}])[0]
    return made


def _security(path: str) -> list[dict[str, list[str]]]:
    """What a caller of the operation at `path` signs in with, one of the list; nothing if empty."""
    return [] if RIGHTS[path] == OPEN else [{KEY: []}, {TOKEN: []}]


def _errors(operation: Operation) -> list[int]:
    """All statuses of errors that the operation may answer, in their order."""
    path = operation.path
    given = set(operation.errors)
    if path not in PROBES:
        given |= {403, 429}
    if RIGHTS[path] != OPEN:
        given.add(401)
    if operation.bodies:
        given |= {408, 411, 413, 503}
    return sorted(given)


def _headers(status: int) -> dict[str, Schema]:
    names = ("X-Request-Id", *HEADERS_OF.get(status, ()))
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


class Description:
    """The description of a table of operations, put together once."""

    def __init__(self, table: list[Operation]) -> None:
        types = _types(table)
        refs, self.schemas = msgspec.json.schema_components(types, ref_template=REF)
        self.schemas = _for_generators(self.schemas)
        self._refs = dict(zip(types, refs, strict=True))
        self._table = table

    def document(self) -> dict[str, Any]:
        """The OpenAPI document."""
        paths: dict[str, dict[str, Any]] = {}
        for operation in self._table:
            paths.setdefault(operation.path, {})[operation.method] = self._operation(operation)
        return {
            "openapi": "3.1.0",
            "info": {
                "title": "Lineside",
                "version": __version__,
                "description": "Recognition for the production line: frames in, labels out.",
            },
            # Beside this document (RFC 3986, 5.2), under whatever prefix that was fetched.
            "servers": [{"url": "."}],
            "paths": paths,
            "components": {
                "schemas": self.schemas,
                "securitySchemes": SECURITY_SCHEMES,
                "headers": HEADERS,
            },
        }

    def _schema(self, kind: Any) -> Schema:
        if kind is bytes:
            return BINARY
        if kind in self._refs:
            return self._refs[kind]
        schema: Schema = _for_generators(msgspec.json.schema(kind))
        return schema

    def _operation(self, operation: Operation) -> dict[str, Any]:
        names = re.findall(r"{(\w+)}", operation.path)
        parameters = [
            {"name": name, "in": "path", "required": True, "schema": PARAMETERS[name]}
            for name in names
        ]
        if operation.query:
            parameters += self._parameters(operation.asks)
        found = {
            "tags": [operation.tag],
            "summary": operation.summary,
            "operationId": re.sub(r"\W+", "_", f"{operation.method}{operation.path}").strip("_"),
            "security": _security(operation.path),
            "parameters": parameters,
            "responses": self._responses(operation),
        }
        if operation.bodies:
            found["requestBody"] = {
                "required": True,
                "content": {
                    media: {
                        "schema": self._body(body, media),
                        **({"example": EXAMPLES[body]} if media == JSON else {}),
                    }
                    for media, body in operation.bodies.items()
                },
            }
        return found

    def _parameters(self, kind: type) -> list[Schema]:
        needed = self.schemas[kind.__name__].get("required", ())
        return [
            {"name": name, "in": "query", "required": name in needed, "schema": schema}
            for name, schema in self._fields(kind).items()
        ]

    def _responses(self, operation: Operation) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if operation.answers:
            found["200"] = {
                "description": "OK",
                "headers": _headers(200),
                "content": {
                    media: {"schema": self._alternatives(kinds)}
                    for media, kinds in operation.answers.items()
                },
            }
        if operation.accepted:
            found["202"] = {
                "description": "Accepted",
                "headers": _headers(202),
                "content": {JSON: {"schema": self._alternatives(operation.accepted)}},
            }
        error = self._schema(ForeignError if operation.foreign else ErrorAnswer)
        for status in _errors(operation):
            found[str(status)] = {
                "description": HTTPStatus(status).phrase,
                "headers": _headers(status),
                "content": {"application/json": {"schema": error}},
            }
        return found

    def _alternatives(self, kinds: tuple[Any, ...]) -> Schema:
        schemas = [self._schema(kind) for kind in kinds]
        return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}

    def _fields(self, kind: type) -> dict[str, Schema]:
        """The fields of a struct as text in a query or form, where null can't be sent."""
        properties: dict[str, Schema] = self.schemas[kind.__name__]["properties"]
        return {name: _without_null(schema) for name, schema in properties.items()}

    def _body(self, body: Any, media: str) -> Schema:
        if media == FORM:
            # Of its own, or generated clients could not tell it from the same fields as JSON.
            return {"type": "object", "properties": self._fields(body)}
        if not isinstance(body, Files):
            return self._schema(body)
        one: Schema = {"type": "array", "items": BINARY} if body.several else BINARY
        properties = self._fields(body.fields) if body.fields else {}
        properties = {name: schema for name, schema in properties.items() if schema}
        return {"type": "object", "properties": {**dict.fromkeys(body.names, one), **properties}}


def _without_null(schema: Schema) -> Schema:
    choices = [choice for choice in schema.get("anyOf", ()) if choice != {"type": "null"}]
    if not choices:
        return {key: value for key, value in schema.items() if key != "default"}
    return choices[0] if len(choices) == 1 else {"anyOf": choices}
