"""Paths: one way to write each, below whatever prefix a proxy serves them, and how models are
named in them."""

import re
from collections.abc import Callable, Iterable
from typing import Any

from flask import Flask
from werkzeug.routing import BaseConverter

from server.errors import InvalidFieldError
from server.http.probe_reserve import REFUSED

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

# In a WSGI environment, the path as it was sent.
SENT = "lineside.sent_path"
SLASHES = re.compile("//+")
# What a proxy may name as its prefix: plain segments, so that it can't lead to another host.
PREFIX = re.compile("(/[A-Za-z0-9._~-]{1,64}){0,8}")
# Bytes of a query string, a path or a header; what is asked of a frame takes 1,000.
LONGEST = 16_384


def normal(path: str) -> str:
    """`path` with single slashes, and none at its end."""
    if "//" in path:
        path = SLASHES.sub("/", path)
    return path.rstrip("/") or "/" if path.endswith("/") else path


class Paths:
    """WSGI middleware around `app`, and before all that looks at a path.

    A doubled slash counts as one, and one at the end as none, on every route: cameras and their
    proxies join addresses carelessly, and do not follow a redirect of a POST. The path's prefix is
    `prefix` or, without, the one that the proxy names. What is longer than any query string, path
    or header needs to be is refused before anyone splits it.
    """

    def __init__(self, app: Wsgi, prefix: str) -> None:
        self._app, self._prefix = app, prefix

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if "//" in path or path.endswith("/"):
            environ[SENT], environ["PATH_INFO"] = path, normal(path)
        if self._prefix:
            environ["SCRIPT_NAME"] = self._prefix
        elif "HTTP_X_FORWARDED_PREFIX" in environ:
            given = environ["HTTP_X_FORWARDED_PREFIX"].strip().rstrip("/")
            if PREFIX.fullmatch(given):
                environ["SCRIPT_NAME"] = given
        # A part of a file is never asked for, and one that is not there would be a status more.
        environ.pop("HTTP_RANGE", None)
        for name, value in list(environ.items()):
            if value.__class__ is str and len(value) > LONGEST:
                environ[REFUSED] = _too_long(name, len(value))
                environ[name] = ""
        return self._app(environ, start_response)


def _too_long(name: str, size: int) -> InvalidFieldError:
    """The error of a value of a WSGI environment that is longer than any needs to be."""
    known = {"QUERY_STRING": "the query string", "PATH_INFO": "the path"}
    header = name.removeprefix("HTTP_").replace("_", "-").title()
    what = known.get(name) or f"the header {header}"
    return InvalidFieldError(f"{what} has {size:,} bytes, and at most {LONGEST:,} are taken")


class ModelName(BaseConverter):
    """`<model:name>`: one path segment without a colon, which TensorFlow Serving puts a verb
    after."""

    regex = "[^/:]+"
    part_isolating = True


def name_models(app: Flask) -> None:
    """Makes `<model:...>` usable in the routes of `app`."""
    app.url_map.converters["model"] = ModelName
