"""Who may ask what: every route with the rights that open it, in one table.

A route that is not here is closed to everyone while keys are asked for, and fails a test.
"""

from server.store.keys import Right

OPEN: tuple[Right, ...] = ()
FRAMES: tuple[Right, ...] = ("recognize",)
ADMIN: tuple[Right, ...] = ("admin",)
JOBS: tuple[Right, ...] = ("recognize", "admin")
METRICS: tuple[Right, ...] = ("metrics",)
# What the server holds, which everyone with a key may know.
KNOWN: tuple[Right, ...] = ("recognize", "admin", "metrics")

_MODEL = "/v1/models/<model:name>"
_ANY_VERSION = ("", "/versions/<int:version>", "/labels/<model:label>")
_V2_MODEL = "/v2/models/<model:name>"
_V2_VERSIONS = (_V2_MODEL, f"{_V2_MODEL}/versions/<int:version>")

# By Flask's rule. One of the rights is enough. OPEN are probes, and pages without data.
RIGHTS_OF: dict[str, tuple[Right, ...]] = {
    **dict.fromkeys(("/livez", "/readyz", "/v2/health/live", "/v2/health/ready"), OPEN),
    **dict.fromkeys(("/", "/docs", "/console/<file>", "/openapi.json"), OPEN),
    "/metrics": METRICS,
    "/v1/recognize": FRAMES,
    "/v1/recognize/batch": FRAMES,
    # A key sees the jobs that it made, an administrator all.
    **dict.fromkeys(("/v1/jobs", "/v1/jobs/<job>"), JOBS),
    "/v1/models": KNOWN,
    _MODEL: KNOWN,
    f"{_MODEL}/samples": KNOWN,
    f"{_MODEL}/samples/<file>": KNOWN,
    f"{_MODEL}/upload": ADMIN,
    f"{_MODEL}/load": ADMIN,
    f"{_MODEL}/activate": ADMIN,
    f"{_MODEL}/rollback": ADMIN,
    "/v1/journal": ADMIN,
    "/v1/audit": ADMIN,
    "/v1/samples": ADMIN,
    "/v1/samples/<sample>": ADMIN,
    "/v1/samples/<sample>/image": ADMIN,
    "/v1/samples/<sample>/label": ADMIN,
    # The tutorials' routes.
    **dict.fromkeys(("/classify", "/predict", "/api/recognize"), FRAMES),
    **dict.fromkeys(("/api/recognize_cached", "/recent"), FRAMES),
    **dict.fromkeys(("/api/recognize_async", "/start-task"), FRAMES),
    **dict.fromkeys(("/results/<job>", "/task-status/<job>"), JOBS),
    "/api/model/info": KNOWN,
    # The Open Inference Protocol.
    "/v2": KNOWN,
    **dict.fromkeys(_V2_VERSIONS, KNOWN),
    **{f"{path}/ready": KNOWN for path in _V2_VERSIONS},
    **{f"{path}/infer": FRAMES for path in _V2_VERSIONS},
    # TensorFlow Serving.
    **{
        f"{_MODEL}{version}:{verb}": FRAMES
        for version in _ANY_VERSION
        for verb in ("predict", "classify", "regress")
    },
    **{f"{_MODEL}{version}/metadata": KNOWN for version in _ANY_VERSION},
    **{f"{_MODEL}{version}": KNOWN for version in _ANY_VERSION},
}

# Routes that are asked every few seconds by machines that no limit should make blind.
PROBES = frozenset({"/livez", "/readyz"})


def rights_of(rule: str) -> tuple[Right, ...] | None:
    """The rights of which a caller of `rule` needs one; none needed where empty; None where the
    table does not know the route, so that nobody may."""
    return RIGHTS_OF.get(rule)
