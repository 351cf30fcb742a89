"""Fetches the image that a request only names, `image_url`, through `server.system.outbound`; every
redirect passes the same checks."""

import math
import socket
import ssl
import threading
import time
from http.client import HTTPConnection, HTTPException, HTTPResponse
from urllib.parse import SplitResult, urljoin

from server.config.thread_budget import FETCHING_REQUESTS_MAX
from server.errors import BodyTooLargeError, DeadlineExceededError, ImageUrlError, OverloadedError
from server.system.outbound import OutboundConnections, time_left

REDIRECTS_MAX = 3


class ImageFetcher:
    """Fetches images from the hosts that `entries` list; at most FETCHING_REQUESTS_MAX at once.

    max_bytes: of an image. seconds: for all of one fetch, redirects included. Raises SettingsError
    for an entry that can't be understood.
    """

    def __init__(self, entries: tuple[str, ...], max_bytes: int, seconds: float) -> None:
        self._outgoing = OutboundConnections("image_url", "image_url_hosts", entries)
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._free = threading.BoundedSemaphore(FETCHING_REQUESTS_MAX)

    def __call__(self, url: str, wanted_by: float = math.inf) -> bytes:
        """Return the bytes at `url`, fetched by `wanted_by` (seconds of time.monotonic()).

        Raises DeadlineExceededError if that is too soon, InvalidFieldError for a URL that may not
        be fetched, OverloadedError if too many are being fetched, BodyTooLargeError, and
        ImageUrlError if there is no image.
        """
        if not self._free.acquire(blocking=False):
            raise OverloadedError(f"{FETCHING_REQUESTS_MAX} image_urls are being fetched already")
        deadline = min(time.monotonic() + self._seconds, wanted_by)
        try:
            for _ in range(REDIRECTS_MAX + 1):
                image_or_url = self._fetch(url, deadline)
                # An answer without a length that was cut off in time looks complete.
                time_left(deadline)
                if isinstance(image_or_url, bytes):
                    return image_or_url
                url = image_or_url
        except (OSError, HTTPException) as error:
            late = time.monotonic() >= deadline or isinstance(error, TimeoutError)
            if late and deadline == wanted_by:
                raise DeadlineExceededError(
                    "the deadline passed while image_url was fetched"
                ) from None
            reason = f"no answer in {self._seconds:g} s" if late else _reason(error)
            raise ImageUrlError(f"image_url can't be fetched: {reason}") from None
        finally:
            self._free.release()
        raise ImageUrlError(f"image_url can't be fetched: more than {REDIRECTS_MAX} redirects")

    def _fetch(self, url: str, deadline: float) -> bytes | str:
        """Return the image, or the URL that it has moved to."""
        with self._outgoing.connected(url, deadline) as (sock, parts):
            return self._exchange(sock, parts, url)

    def _exchange(self, sock: socket.socket, parts: SplitResult, url: str) -> bytes | str:
        connection = HTTPConnection(parts.hostname or "", parts.port)
        connection.sock = sock
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = {"Host": parts.netloc, "Accept": "image/*", "Accept-Encoding": "identity"}
        connection.request("GET", target, headers=headers)
        with connection.getresponse() as response:
            if response.status in (301, 302, 303, 307, 308):
                return _moved(url, response.getheader("Location", ""))
            if response.status != 200:
                raise ImageUrlError(f"image_url can't be fetched: it answers {response.status}")
            return self._read(response)

    def _read(self, response: HTTPResponse) -> bytes:
        most = self._max_bytes
        if (response.length or 0) <= most:
            data = response.read(most + 1)
            if response.length:
                raise ImageUrlError("image_url can't be fetched: its answer was cut off")
            if len(data) <= most:
                return data
        raise BodyTooLargeError(f"the image at image_url has more than {most / 1e6:g} MB")


def _reason(error: OSError | HTTPException) -> str:
    """Return why there is no image, in words that name no library."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return "its host's certificate can't be verified"
    if isinstance(error, ssl.SSLError):
        return "its host speaks no TLS that is taken"
    if isinstance(error, socket.gaierror):
        return "its host has no address"
    if isinstance(error, OSError) and error.errno and error.strerror:
        return error.strerror.lower()
    return "its host does not answer as HTTP does"


def _moved(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        raise ImageUrlError("image_url can't be fetched: its redirect is no URL") from None
