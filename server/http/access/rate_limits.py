"""Rate limits per key and per address: Flask-Limiter, with the header fields of the standard.

Windows move with each request, so that a limit holds over any stretch of time, not only between
the ticks of a clock. `RateLimit` and `RateLimit-Policy` are those of the IETF's
draft-ietf-httpapi-ratelimit-headers-10.
"""

import math
import time

from flask import Flask, Response, request
from flask_limiter import ApplicationLimit, Limiter, RequestLimit
from limits import parse_many

from server.config.settings import Settings
from server.errors import SettingsError
from server.http.routes import current_route
from server.http.wsgi import current


def check_rate(text: str, source: str) -> None:
    """Raise SettingsError if `text` is no rate such as 100/second."""
    try:
        parse_many(text)
    except ValueError:
        raise SettingsError(
            f"{source} can't be {text!r}: say such as 100/second or 2000/minute"
        ) from None


def _key_rate(settings: Settings) -> str:
    caller = current().caller
    return (caller.rate if caller else "") or settings.rate_per_key


def limit_rates(app: Flask, settings: Settings) -> None:
    """Make `app` answer 429 to callers that ask too often, before their rights are looked at, so
    that keys can't be tried at any speed. Raises SettingsError for what is no rate."""
    limits = []
    if settings.rate_per_address:
        check_rate(settings.rate_per_address, "rate_per_address")
        limits.append(
            ApplicationLimit(
                settings.rate_per_address,
                key_function=lambda: request.remote_addr or "local",
                scope="address",
                exempt_when=_is_unlimited,
            )
        )
    if settings.rate_per_key:
        check_rate(settings.rate_per_key, "rate_per_key")
    limits.append(
        ApplicationLimit(
            lambda: _key_rate(settings),
            key_function=lambda: current().caller_name or "nobody",
            scope="key",
            exempt_when=lambda: current().caller is None or _is_unlimited(),
        )
    )
    limiter = Limiter(
        lambda: request.remote_addr or "local",
        app=app,
        application_limits=list(limits),
        strategy="moving-window",
        storage_uri="memory://",
        headers_enabled=False,
        # Else paths that lead nowhere would not count, and could be tried without end.
        request_identifier=lambda: request.endpoint or "unmatched",
    )

    @app.after_request
    def tell(response: Response) -> Response:
        states = [_fields(limiter, limit) for limit in limiter.current_limits]
        if states:
            response.headers["RateLimit-Policy"] = ", ".join(policy for policy, _, _ in states)
            response.headers["RateLimit"] = ", ".join(state for _, state, _ in states)
        if response.status_code == 429:
            response.headers["Retry-After"] = str(max((wait for _, _, wait in states), default=1))
        return response


def _is_unlimited() -> bool:
    route = current_route()
    return route is not None and route.unlimited


def _fields(limiter: Limiter, limit: RequestLimit) -> tuple[str, str, int]:
    """Return the limit's policy, its state, and the whole seconds until it lets a request
    through."""
    window = limiter.limiter.get_window_stats(limit.limit, *limit.request_args)
    seconds = max(0, math.ceil(window.reset_time - time.time()))
    name, quota = limit.request_args[-1], limit.limit.amount
    wait = max(1, seconds) if limit.breached else 1
    return (
        f'"{name}";q={quota};w={limit.limit.get_expiry()}',
        f'"{name}";r={max(0, window.remaining)};t={seconds}',
        wait,
    )
