"""Who may ask what: every route with the rights that open it, in one table.

A route that is not here is closed to everyone while keys are asked for, and fails a test.
"""

from server.store.keys import Right

OPEN: tuple[Right, ...] = ()
FRAMES: tuple[Right, ...] = ("recognize",)
ADMIN: tuple[Right, ...] = ("admin",)
METRICS: tuple[Right, ...] = ("metrics",)
# What the server holds, which everyone with a key may know.
KNOWN: tuple[Right, ...] = ("recognize", "admin", "metrics")

# By Flask's rule. One of the rights is enough. OPEN are probes, and pages without data.
RIGHTS_OF: dict[str, tuple[Right, ...]] = {
    "/livez": OPEN,
    "/readyz": OPEN,
    "/metrics": METRICS,
    "/v1/recognize": FRAMES,
    "/v1/models": KNOWN,
    "/v1/models/<name>": KNOWN,
    "/v1/models/<name>/load": ADMIN,
    "/v1/models/<name>/activate": ADMIN,
    "/v1/models/<name>/rollback": ADMIN,
}

# Routes that are asked every few seconds by machines that no limit should make blind.
PROBES = frozenset({"/livez", "/readyz"})


def rights_of(rule: str) -> tuple[Right, ...] | None:
    """The rights of which a caller of `rule` needs one; none needed where empty; None where the
    table does not know the route, so that nobody may."""
    return RIGHTS_OF.get(rule)
