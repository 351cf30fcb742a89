"""Routes, declared once, at their handlers:

    class ModelRoutes:
        @route("GET", "/v1/models", rights=KNOWN)
        def models(self) -> Models: ...

`RouteTable.add` registers the declared methods of an object with Flask. All else that depends on a
route is read from its declaration: who may ask, what counts as a frame, the names that its query
string may have, the shape of its errors, and /openapi.json.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from types import UnionType
from typing import Any, TypeVar, get_args

import msgspec
from flask import Flask, Response, current_app, request
from werkzeug.routing import BaseConverter

from server.http.body.image import need_length, refuse_unknown
from server.http.wsgi import current
from server.store.keys import Right

JSON, MULTIPART, FORM = (
    "application/json",
    "multipart/form-data",
    "application/x-www-form-urlencoded",
)
BINARY, TAR = "application/octet-stream", "application/x-tar"

Rights = tuple[Right, ...]
# The rights of which a caller needs one. OPEN: nobody needs a key, for probes and for pages without
# data. KNOWN: what the server holds, for everyone with a key. JOBS: a key sees the jobs that it
# made, an administrator all.
OPEN: Rights = ()
FRAMES: Rights = ("recognize",)
ADMIN: Rights = ("admin",)
JOBS: Rights = ("recognize", "admin")
METRICS: Rights = ("metrics",)
KNOWN: Rights = ("recognize", "admin", "metrics")

VARIABLE = re.compile(r"<(?:\w+:)?(\w+)>")
# Where Flask keeps the table of an application, and a method its declarations.
EXTENSION, DECLARED = "lineside.routes", "declared_routes"

View = TypeVar("View", bound=Callable[..., Any])


class Files(msgspec.Struct, frozen=True):
    """A multipart form. names: its file fields, of which one is sent, or any number if `several`.
    fields: the type that its other fields belong to."""

    names: tuple[str, ...]
    fields: type | None = None
    several: bool = False


class Group(msgspec.Struct, frozen=True):
    """Routes of one kind. tag: their section in /openapi.json. foreign_paths: for the routes of
    another protocol, a pattern of the paths whose errors have that protocol's shape, with those
    that are no route's."""

    tag: str
    foreign_paths: str = ""


LINESIDE = Group("Lineside")


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One method at one path.

    rule: the path as Flask writes it. query: the type of its query string. bodies: what it takes,
    by media type: a type, `Files`, or `bytes`. example: a JSON body that the model iris answers.
    answers: what it answers with 200, by media type; several types are alternatives. accepted: the
    same with 202, as JSON. errors: its statuses beside those that follow from the rest. frame: a
    request that fails counts as a refused frame. described: in /openapi.json. probe: HTTP threads
    are reserved for it. quiet: logged at the level debug. unlimited: no limit of rates applies.
    unguarded: answered to anybody, whatever machine or page asks.
    """

    method: str
    rule: str
    rights: Rights
    summary: str = ""
    group: Group = LINESIDE
    query: type[msgspec.Struct] | None = None
    bodies: Mapping[str, Any] = {}
    example: Any = None
    answers: Mapping[str, tuple[Any, ...]] = {}
    accepted: tuple[Any, ...] = ()
    errors: tuple[int, ...] = ()
    frame: bool = False
    described: bool = True
    probe: bool = False
    quiet: bool = False
    unlimited: bool = False
    unguarded: bool = False

    @property
    def path(self) -> str:
        """The path as OpenAPI writes it."""
        return VARIABLE.sub(r"{\1}", self.rule)

    @property
    def foreign(self) -> bool:
        """Return True if its errors have another protocol's shape."""
        return bool(self.group.foreign_paths)

    @property
    def known_names(self) -> tuple[str, ...] | None:
        """The names that its query string may have; None if others are ignored, as on the routes
        of other protocols. A misspelt `deadline` that was ignored would be kept by nobody."""
        if self.foreign or not self.rule.startswith("/v1/"):
            return None
        return self.query.__struct_fields__ if self.query else ()


def _types(kinds: Any) -> tuple[Any, ...]:
    if isinstance(kinds, UnionType):
        return get_args(kinds)
    return kinds if isinstance(kinds, tuple) else (kinds,)


def to_json(value: object, status: int = 200) -> Response:
    """Return `value` as a JSON response; NaN and infinity become null."""
    return Response(msgspec.json.encode(value), status, content_type=JSON)


def route(
    method: str,
    *rules: str,
    body: Any = None,
    answer: Any = None,
    accepted: Any = (),
    **fields: Any,
) -> Callable[[View], View]:
    """Declare the decorated method as the handler of `method` at each of `rules`. The first
    paragraph of its docstring becomes the summary in /openapi.json. What it returns is sent as
    JSON, and the type of that is the answer's, unless it returns a Response.

    body: a type of JSON, or a dict of types by media type. answer: the same, for a handler that
    returns a Response; several types, as a tuple, are alternatives. The other fields are those of
    `Route`.
    """
    bodies = body if isinstance(body, Mapping) else {JSON: body} if body else {}
    fields |= {"method": method, "bodies": bodies, "accepted": _types(accepted)}

    def declare(view: View) -> View:
        returned = view.__annotations__["return"]
        kinds = answer if returned is Response else returned
        answers = kinds if isinstance(kinds, Mapping) else {JSON: kinds} if kinds else {}
        fields["answers"] = {media: _types(kinds) for media, kinds in answers.items()}
        paragraph = (inspect.getdoc(view) or "").split("\n\n")[0]
        fields["summary"] = " ".join(paragraph.split()).removesuffix(".")
        setattr(view, DECLARED, tuple(Route(rule=rule, **fields) for rule in rules))
        return view

    return declare


def _responding(handler: Callable[..., Any]) -> Callable[..., Response]:
    """Return `handler` with everything that it returns as a response."""

    def respond(**variables: Any) -> Response:
        value = handler(**variables)
        return value if isinstance(value, Response) else to_json(value)

    return respond


def declared(kind: type) -> Iterator[tuple[Route, str]]:
    """The routes that the methods of `kind` declare, each with its method's name."""
    for name, member in vars(kind).items():
        for each in getattr(member, DECLARED, ()):
            yield each, name


class RouteTable:
    """The routes of one application, by Flask's endpoint.

    A route that is not in the table is closed to everyone while keys are asked for.
    """

    def __init__(self) -> None:
        self._by_endpoint: dict[str, Route] = {}
        self._foreign = re.compile("(?!)")

    def add(self, app: Flask, *handlers: object) -> None:
        """Register the routes that the classes of `handlers` declare."""
        for handler in handlers:
            for each, name in declared(type(handler)):
                endpoint = f"{each.method} {each.rule}"
                view = _responding(getattr(handler, name))
                app.add_url_rule(each.rule, endpoint, view, methods=[each.method])
                self._by_endpoint[endpoint] = each
        self._foreign = foreign_pattern(self)

    def __iter__(self) -> Iterator[Route]:
        return iter(self._by_endpoint.values())

    def get(self, endpoint: str | None) -> Route | None:
        """The route of Flask's `endpoint`; None if it declares nothing."""
        return self._by_endpoint.get(endpoint or "")

    def is_foreign(self, path: str) -> bool:
        """Return True if an error at `path`, a route's or not, has another protocol's shape."""
        return self._foreign.match(path) is not None


def foreign_pattern(routes: "RouteTable | list[Route]") -> re.Pattern[str]:
    """The paths whose errors have the shape of one of the protocols of `routes`."""
    patterns = dict.fromkeys(each.group.foreign_paths for each in routes if each.foreign)
    return re.compile("|".join(patterns) or "(?!)")


class ModelName(BaseConverter):
    """`<model:name>` in a rule: one path segment without a colon, after which TensorFlow Serving
    puts a verb."""

    regex = "[^/:]+"
    part_isolating = True


def install_routes(app: Flask) -> RouteTable:
    """Give `app` its table of routes, and check of each request what its route declares; the checks
    of who may ask are to be installed before."""
    table = app.extensions[EXTENSION] = RouteTable()
    app.url_map.converters["model"] = ModelName

    @app.before_request
    def check() -> None:
        each = current_route()
        if each is None or request.method == "OPTIONS":
            return
        if each.frame:
            current().is_frame = True
        if (unusable := current().unusable) is not None:
            raise unusable
        if each.frame:
            need_length(request)
        if each.known_names is not None:
            refuse_unknown(request.args, each.known_names)

    return table


def current_table() -> RouteTable:
    """The table of the application that answers this request."""
    table: RouteTable = current_app.extensions.get(EXTENSION) or RouteTable()
    return table


def current_route() -> Route | None:
    """Return what the route of this request declares; None if there is no route, or it declares
    nothing."""
    return current_table().get(request.endpoint)
