"""The API described (OpenAPI 3.1), from what the routes declare and the types that validate it."""

import importlib
import pkgutil
import re
from collections.abc import Collection, Iterable
from http import HTTPStatus
from typing import Any

import msgspec

import server.api
from server import __version__
from server.http.errors import ErrorAnswer, ForeignError
from server.http.routes import FORM, JSON, OPEN, Files, Route, declared

Schema = dict[str, Any]
REF = "#/components/schemas/{name}"
# Variables of paths that are more than a text.
PARAMETERS: dict[str, Schema] = {
    "name": {"type": "string", "description": "the model or the camera"},
    "version": {"type": "integer", "minimum": 1, "description": "the version that serves"},
    "label": {"type": "string", "description": "`stable`: the version that serves"},
    "sample": {"type": "string", "description": "the sample's id"},
    "job": {"type": "string", "description": "the id that was answered with 202"},
}
BINARY: Schema = {"type": "string", "format": "binary"}
KEY, TOKEN = "key", "bearer"
SECURITY_SCHEMES: dict[str, Schema] = {
    KEY: {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-Key",
        "description": "a key of `python -m server key add`, if the server asks for one",
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
    "X-Model": {"description": "of a picture: the model and its version", "schema": _TEXT},
    "X-Verdict": {"description": "of a picture: the verdict; absent if null", "schema": _TEXT},
    "X-Verdict-Reason": {
        "description": "of a picture: the rule that decided; absent without a verdict",
        "schema": _TEXT,
    },
    "WWW-Authenticate": {"description": "how to sign in (RFC 6750)", "schema": _TEXT},
}
HEADERS_OF: dict[int, tuple[str, ...]] = {
    401: ("WWW-Authenticate",),
    429: ("Retry-After", "RateLimit", "RateLimit-Policy"),
    503: ("Retry-After", "X-Should-Retry"),
}
PICTURE_HEADERS = ("X-Model", "X-Verdict", "X-Verdict-Reason")


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _types(routes: Iterable[Route]) -> list[type]:
    types: dict[type, None] = dict.fromkeys((ErrorAnswer, ForeignError))
    for route in routes:
        kinds = [kind for answer in route.answers.values() for kind in answer]
        kinds += [*route.accepted, route.query]
        for body in route.bodies.values():
            kinds.append(body.fields if isinstance(body, Files) else body)
        types |= dict.fromkeys(kind for kind in kinds if _is_struct(kind))
    return list(types)


def _for_generators(schema: Any) -> Any:
    """Return `schema` as generators of clients take it: each array with a schema of its `items`. A
    tuple's bounds on its length say the same as `false` there."""
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


def _errors(route: Route) -> list[int]:
    """Return all statuses of errors that `route` may answer, in their order."""
    statuses = set(route.errors)
    if not route.unguarded:
        statuses.add(403)
    if not route.unlimited:
        statuses.add(429)
    if route.rights != OPEN:
        statuses.add(401)
    if route.bodies:
        statuses |= {408, 411, 413, 503}
    return sorted(statuses)


def _headers(status: int, media: Collection[str] = ()) -> dict[str, Schema]:
    """Return the headers of an answer. media: its types; one that may be a picture in place of JSON
    has some of the JSON's fields in its headers."""
    pictures = PICTURE_HEADERS if {JSON, "image/jpeg"} <= set(media) else ()
    names = ("X-Request-Id", *HEADERS_OF.get(status, ()), *pictures)
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


class Description:
    """The description of those of `routes` that are described."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._routes = [route for route in routes if route.described]
        types = _types(self._routes)
        refs, self.schemas = msgspec.json.schema_components(types, ref_template=REF)
        self.schemas = _for_generators(self.schemas)
        self._refs = dict(zip(types, refs, strict=True))

    def document(self) -> dict[str, Any]:
        paths: dict[str, dict[str, Any]] = {}
        for route in self._routes:
            paths.setdefault(route.path, {})[route.method.lower()] = self._operation(route)
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
        # A union's members have names, by which it refers to them.
        (schema,), named = msgspec.json.schema_components((kind,), ref_template=REF)
        self.schemas |= _for_generators(named)
        made: Schema = _for_generators(schema)
        return made

    def _operation(self, route: Route) -> dict[str, Any]:
        parameters = [
            {
                "name": name,
                "in": "path",
                "required": True,
                "schema": PARAMETERS.get(name, {"type": "string"}),
            }
            for name in re.findall(r"{(\w+)}", route.path)
        ]
        if route.query:
            parameters += self._parameters(route.query)
        method = route.method.lower()
        operation = {
            "tags": [route.group.tag],
            "summary": route.summary,
            "operationId": re.sub(r"\W+", "_", f"{method}{route.path}").strip("_"),
            # One of these is enough to sign in.
            "security": [] if route.rights == OPEN else [{KEY: []}, {TOKEN: []}],
            "parameters": parameters,
            "responses": self._responses(route),
        }
        if route.bodies:
            operation["requestBody"] = {
                "required": True,
                "content": {
                    media: {
                        "schema": self._body(body, media),
                        **({"example": route.example} if media == JSON else {}),
                    }
                    for media, body in route.bodies.items()
                },
            }
        return operation

    def _parameters(self, kind: type) -> list[Schema]:
        needed = self.schemas[kind.__name__].get("required", ())
        return [
            {"name": name, "in": "query", "required": name in needed, "schema": schema}
            for name, schema in self._fields(kind).items()
        ]

    def _responses(self, route: Route) -> dict[str, Any]:
        responses: dict[str, Any] = {}
        if route.answers:
            responses["200"] = {
                "description": "OK",
                "headers": _headers(200, route.answers),
                "content": {
                    media: {"schema": self._alternatives(kinds)}
                    for media, kinds in route.answers.items()
                },
            }
        if route.accepted:
            responses["202"] = {
                "description": "Accepted",
                "headers": _headers(202),
                "content": {JSON: {"schema": self._alternatives(route.accepted)}},
            }
        error = self._schema(ForeignError if route.foreign else ErrorAnswer)
        for status in _errors(route):
            responses[str(status)] = {
                "description": HTTPStatus(status).phrase,
                "headers": _headers(status),
                "content": {"application/json": {"schema": error}},
            }
        return responses

    def _alternatives(self, kinds: tuple[Any, ...]) -> Schema:
        schemas = [self._schema(kind) for kind in kinds]
        return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}

    def _fields(self, kind: type) -> dict[str, Schema]:
        """Return the fields of a struct as text in a query or form, which have no null."""
        properties: dict[str, Schema] = self.schemas[kind.__name__]["properties"]
        return {name: _without_null(schema) for name, schema in properties.items()}

    def _body(self, body: Any, media: str) -> Schema:
        if media == FORM:
            # Its own schema, else generated clients confuse it with the same fields as JSON.
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


def declared_routes() -> list[Route]:
    """Return the routes that the modules of `server.api` declare, which needs no application."""
    routes = []
    for module in pkgutil.walk_packages(server.api.__path__, "server.api."):
        for member in vars(importlib.import_module(module.name)).values():
            if isinstance(member, type) and member.__module__ == module.name:
                routes += [each for each, _ in declared(member)]
    return routes
