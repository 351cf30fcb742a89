"""The names that a query string of Lineside's own routes may have.

Others are refused, with the nearest one that is known: a misspelt `deadline` that was ignored would
be a deadline that nobody keeps. The tutorials' and the other protocols' routes ignore them.
"""

import re
from functools import cache

from flask import Blueprint, request

from server.api.openapi.own_operations import own_operations
from server.http.body.image import refuse_unknown

VARIABLE = re.compile(r"<(?:\w+:)?(\w+)>")


@cache
def _by_route() -> dict[tuple[str, str], tuple[str, ...]]:
    """The names by path, as OpenAPI writes it, and method."""
    return {
        (each.path, each.method): each.asks.__struct_fields__ if each.query else ()
        for each in own_operations()
        if each.path.startswith("/v1/")
    }


def _refuse_unknown_names() -> None:
    if request.url_rule is None:
        return
    path = VARIABLE.sub(r"{\1}", request.url_rule.rule)
    method = "get" if request.method == "HEAD" else request.method.lower()
    known = _by_route().get((path, method))
    if known is not None:
        refuse_unknown(request.args, known)


def strict(routes: Blueprint) -> Blueprint:
    """`routes`, which refuse with 400 what their query strings may not have, where they are
    Lineside's own."""
    routes.before_request(_refuse_unknown_names)
    return routes
