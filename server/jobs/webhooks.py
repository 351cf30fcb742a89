"""Telling the end of a job to a URL: signed, and again with back-off until it is taken."""

import hashlib
import hmac
import logging
import time
from http.client import HTTPConnection, HTTPException

from server.errors import InvalidFieldError
from server.system.outbound import OutboundConnections

logger = logging.getLogger(__name__)

# Seconds that one delivery may take.
SECONDS = 10.0
# Seconds after the first failed delivery; doubled with each further one, up to LONGEST.
FIRST, LONGEST = 1.0, 300.0
TIMESTAMP, SIGNATURE = "X-Lineside-Timestamp", "X-Lineside-Signature"


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """`sha256=` and the hexadecimal HMAC-SHA256 (RFC 2104) of TIMESTAMP.BODY under `secret`, which
    shows who sent it, and when."""
    digest = hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256)
    return f"sha256={digest.hexdigest()}"


def pause_after(attempts: int) -> float:
    """Seconds to wait after that many failed deliveries: 1, 2, 4 ... 300."""
    return min(LONGEST, FIRST * 2.0 ** min(attempts - 1, 20))


class WebhookClient:
    """Posts to the hosts that `hosts` list, signed where there is a `secret`.

    Raises SettingsError for a host that can't be understood.
    """

    def __init__(self, hosts: tuple[str, ...], secret: str) -> None:
        self._outgoing = OutboundConnections("webhook", "webhook_hosts", hosts)
        self._secret = secret

    def check(self, url: str) -> None:
        """Raises InvalidFieldError where nothing may be sent to `url`."""
        self._outgoing.check(url)

    def send(self, url: str, body: bytes) -> str:
        """Posts a JSON body; returns why it was not taken, or nothing. Redirects are not
        followed."""
        stamp = str(int(time.time()))
        headers = {"Content-Type": "application/json", TIMESTAMP: stamp}
        if self._secret:
            headers[SIGNATURE] = signature(self._secret, stamp, body)
        try:
            with self._outgoing.connected(url, time.monotonic() + SECONDS) as (sock, parts):
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
