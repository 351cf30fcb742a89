"""Errors as gRPC's status codes."""

from grpc import StatusCode

# By the error's code, where its HTTP status alone does not say it.
BY_CODE = {
    "DEADLINE_EXCEEDED": StatusCode.DEADLINE_EXCEEDED,
    "IMAGE_TOO_LARGE": StatusCode.INVALID_ARGUMENT,
    "SUPERSEDED": StatusCode.ABORTED,
    "VERSION_REFUSED": StatusCode.FAILED_PRECONDITION,
}
BY_STATUS = {
    400: StatusCode.INVALID_ARGUMENT,
    401: StatusCode.UNAUTHENTICATED,
    403: StatusCode.PERMISSION_DENIED,
    404: StatusCode.NOT_FOUND,
    405: StatusCode.NOT_FOUND,
    409: StatusCode.FAILED_PRECONDITION,
    413: StatusCode.RESOURCE_EXHAUSTED,
    415: StatusCode.INVALID_ARGUMENT,
    422: StatusCode.INVALID_ARGUMENT,
    429: StatusCode.RESOURCE_EXHAUSTED,
    503: StatusCode.UNAVAILABLE,
}


def status_code(code: str, http_status: int) -> StatusCode:
    """Return gRPC's code of an error with this code and HTTP status; INTERNAL for one of the
    server's own."""
    return BY_CODE.get(code) or BY_STATUS.get(http_status, StatusCode.INTERNAL)
