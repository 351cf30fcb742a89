"""What the routes of the API declare, for tests that visit all of them."""

from server.api.openapi import declared_routes
from server.http.routes import Route

ROUTES = tuple(declared_routes())
# Those of /openapi.json.
API = tuple(route for route in ROUTES if route.described)
PROBE_PATHS = frozenset(route.rule for route in ROUTES if route.probe)


def route_of(method: str, rule: str) -> Route:
    """The route of `method` at Flask's `rule`."""
    return next(route for route in ROUTES if (route.method, route.rule) == (method, rule))
