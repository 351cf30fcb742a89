"""Which refusals a standard client sends again: never a frame that only gets older."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from images import encode, plain
from requests.adapters import HTTPAdapter
from server_process import live_server
from urllib3.util import Retry

from server import errors
from server.errors import LinesideError, OverloadedError, StaleFrameError, SupersededError
from server.http.errors import retry_header
from server.recognition.answers import Options

RED = encode(plain((255, 0, 0)), "PNG")
STALE = ("X-Should-Retry", "false")


def kinds(kind: type[LinesideError] = LinesideError) -> Iterator[type[LinesideError]]:
    yield kind
    for each in kind.__subclasses__():
        yield from kinds(each)


@pytest.mark.parametrize("kind", [k for k in kinds() if k.status == 503], ids=lambda k: k.__name__)
def test_refusal_says_retry_after_or_not_to_retry(kind: type[LinesideError]) -> None:
    """By the error's class."""
    header = retry_header(kind("no", retry_after=2.5))
    if kind in (StaleFrameError, SupersededError):
        assert header == STALE
    else:
        assert header == ("Retry-After", "3")


@pytest.mark.parametrize("kind", [OverloadedError, errors.DeadlineExceededError])
def test_refusal_of_a_dated_frame_looks_at_its_deadline(kind: type[LinesideError]) -> None:
    """Trying again after its deadline has passed can't help, unless that counts from arrival."""
    soon, later = time.monotonic() + 0.2, time.monotonic() + 600
    assert retry_header(kind("no"), Options(deadline=soon, from_capture=True)) == STALE
    assert retry_header(kind("no"), Options(deadline=later, from_capture=True))[1] == "1"
    assert retry_header(kind("no"), Options(deadline=soon))[1] == "1"


def test_standard_client_sends_no_stale_frame_again(colors: Path) -> None:
    retry = Retry(2, allowed_methods=None, raise_on_status=False)
    headers = {"Content-Type": "image/png"}
    with live_server(models=colors) as server, requests.Session() as session:
        session.mount("http://", HTTPAdapter(max_retries=retry))
        for number, query in enumerate(("captured_at=1", "captured_at=1&deadline_ms=200"), 1):
            url = f"{server.url}/v1/recognize?{query}"
            answer = session.post(url, RED, headers=headers, timeout=60)
            assert (answer.status_code, answer.headers["X-Should-Retry"]) == (503, "false")
            assert "Retry-After" not in answer.headers
            posted = server.sample(
                "lineside_requests_total", route="/v1/recognize", status=str(answer.status_code)
            )
            assert posted == number
