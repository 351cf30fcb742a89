"""Posts JSON to a URL, signed so that the receiver knows who sent it, and when."""

import hashlib
import hmac
import time
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException

from server.errors import InvalidFieldError
from server.system.outbound import OutboundConnections

# Seconds that one delivery may take.
DELIVERY_TIMEOUT_S = 10.0
TIMESTAMP_HEADER = "X-Lineside-Timestamp"
SIGNATURE_HEADER = "X-Lineside-Signature"


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """Return `sha256=` and the hexadecimal HMAC-SHA256 (RFC 2104) of TIMESTAMP.BODY under `secret`,
    which proves who sent it, and when."""
    digest = hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256)
    return f"sha256={digest.hexdigest()}"


class WebhookClient:
    """Posts to the hosts that `hosts` list, signed if there is a `secret`. field, setting: the
    names of the URL and of that list, for messages.

    Raises SettingsError for a host that can't be understood.
    """

    def __init__(
        self,
        hosts: tuple[str, ...],
        secret: str,
        field: str = "webhook",
        setting: str = "webhook_hosts",
    ) -> None:
        self._outbound = OutboundConnections(field, setting, hosts)
        self._secret = secret

    def check(self, url: str) -> None:
        """Raise InvalidFieldError if nothing may be sent to `url`."""
        self._outbound.check(url)

    def send(self, url: str, body: bytes, more_headers: Mapping[str, str] = {}) -> str:
        """Post a JSON body, with `more_headers`; return why it was not taken, or "". Redirects are
        not followed."""
        timestamp = str(int(time.time()))
        headers = {"Content-Type": "application/json", TIMESTAMP_HEADER: timestamp, **more_headers}
        if self._secret:
            headers[SIGNATURE_HEADER] = signature(self._secret, timestamp, body)
        try:
            deadline = time.monotonic() + DELIVERY_TIMEOUT_S
            with self._outbound.connected(url, deadline) as (sock, parts):
                connection = HTTPConnection(parts.hostname or "", parts.port)
                connection.sock = sock
                target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
                connection.request("POST", target, body, {"Host": parts.netloc, **headers})
                with connection.getresponse() as response:
                    good = 200 <= response.status < 300
                    return "" if good else f"it answers {response.status}"
        except InvalidFieldError as error:
            return error.message
        except (OSError, HTTPException) as error:
            return str(error) or repr(error)
