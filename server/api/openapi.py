"""The API described (OpenAPI 3.1), from the types that validate it."""

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import msgspec

from server import __version__
from server.api.operation import JSON, Files, Operation
from server.api.operations import EXAMPLES
from server.api.query import Query
from server.api.responses import ErrorAnswer, ForeignError

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


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _types(table: Iterable[Operation]) -> list[type]:
    found: dict[type, None] = dict.fromkeys((Query, ErrorAnswer, ForeignError))
    for operation in table:
        kinds = [kind for answer in operation.answers.values() for kind in answer]
        kinds += [*operation.accepted, operation.asks]
        for body in operation.bodies.values():
            kinds.append(body.fields if isinstance(body, Files) else body)
        found |= dict.fromkeys(kind for kind in kinds if _is_struct(kind))
    return list(found)


class Description:
    """The description of a table of operations, put together once."""

    def __init__(self, table: list[Operation]) -> None:
        types = _types(table)
        refs, self.schemas = msgspec.json.schema_components(types, ref_template=REF)
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
            "components": {"schemas": self.schemas},
        }

    def _schema(self, kind: Any) -> Schema:
        if kind is bytes:
            return BINARY
        if kind in self._refs:
            return self._refs[kind]
        return msgspec.json.schema(kind)

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
            "parameters": parameters,
            "responses": self._responses(operation),
        }
        if operation.bodies:
            found["requestBody"] = {
                "required": True,
                "content": {
                    media: {
                        "schema": self._body(body),
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
                "content": {
                    media: {"schema": self._alternatives(kinds)}
                    for media, kinds in operation.answers.items()
                },
            }
        if operation.accepted:
            found["202"] = {
                "description": "Accepted",
                "content": {JSON: {"schema": self._alternatives(operation.accepted)}},
            }
        error = self._schema(ForeignError if operation.foreign else ErrorAnswer)
        for status in operation.errors:
            found[str(status)] = {
                "description": HTTPStatus(status).phrase,
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

    def _body(self, body: Any) -> Schema:
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
