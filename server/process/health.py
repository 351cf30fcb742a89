"""A server asked from its own machine: by the watchdog, and by `python -m server health`."""

import http.client
import json
from typing import Self

from server.config.settings import Settings

ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class Probe:
    """Asks the server of `settings` on a connection that it keeps, so that it is answered even
    where no new connection is let in. `timeout_s` bounds each step of an exchange."""

    def __init__(self, settings: Settings, timeout_s: float) -> None:
        host = ANYWHERE.get(settings.host, settings.host)
        self._connection = http.client.HTTPConnection(host, settings.port, timeout=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def ask(self, path: str) -> tuple[int, bytes]:
        """Status and body of GET `path`. Raises OSError or HTTPException where no answer came."""
        try:
            self._connection.request("GET", path)
            answer = self._connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            raise


def health(settings: Settings, timeout_s: float = 5.0) -> tuple[bool, str]:
    """Whether the server of `settings` is ready for frames, and a sentence that says so or why
    not. For the health checks of containers, which have no curl."""
    where = f"{settings.host}:{settings.port}"
    with Probe(settings, timeout_s) as probe:
        try:
            status, body = probe.ask("/readyz")
        except (OSError, http.client.HTTPException) as error:
            return False, f"no answer from {where}: {error}"
    if status == 200:
        return True, f"{where} is ready{_crashes(body)}"
    try:
        reason = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        reason = "it is no Lineside server"
    return False, f"{where} answers {status}: {reason}"


def _crashes(body: bytes) -> str:
    """What the answer of /readyz says of workers that crashed, as the end of a sentence."""
    try:
        told = json.loads(body)
        count, last = told["worker_crashes"], told["last_worker_crash"]
        return f"; its worker crashed {count} times, last at {last['at']} by {last['signal']}"
    except (ValueError, KeyError, TypeError):
        return ""
