"""Clocks that are ahead, behind, of another zone or not set: who is answered, and what is said."""

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import requests
from images import encode, plain
from job_workers import await_that
from server_process import LiveServer, live_server
from werkzeug.test import Client

from server import RELEASED
from server.api.recognize.deadlines import likely_cause, parse_instant
from server.app import create_app
from server.config.settings import Settings
from server.errors import InvalidFieldError
from server.observe.metrics import Metrics
from server.system.clock import clock_fault

RED = encode(plain((255, 0, 0)))
SKEW = "lineside_camera_clock_skew_seconds"


@pytest.fixture(scope="module")
def site(colors: Path) -> Iterator[LiveServer]:
    with live_server(models=colors) as server:
        yield server


def message(answer: requests.Response) -> str:
    return str(answer.json()["error"]["message"])


def test_frame_from_the_future_is_answered_and_reported(site: LiveServer) -> None:
    """A device whose clock is behind sees every frame so."""
    for _ in range(3):
        answer = site.recognize(RED, camera="ahead", captured_at=time.time() + 7200)
        assert answer.status_code == 200
        assert answer.json()["captured_age_ms"] == pytest.approx(-7_200_000, abs=60_000)
    line = site.await_event("captured_at is ahead of this server's clock")
    assert (line["camera"], line["level"]) == ("ahead", "warning")
    assert "2 hours ahead" in line["cause"]
    assert site.sample(SKEW, camera="ahead") == pytest.approx(7200, abs=60)
    assert site.recognize(RED, camera="ahead", captured_at=time.time() - 1).status_code == 200
    assert site.sample(SKEW, camera="ahead") == 0


def test_frame_from_the_future_is_refused_for_a_deadline(site: LiveServer) -> None:
    """Its deadline can't be judged; the skew is reported all the same."""
    answer = site.recognize(RED, camera="tz", captured_at=time.time() + 7200, deadline_ms=200)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "INVALID_FIELD")
    assert "2 hours ahead is likely the wrong time zone" in message(answer)
    assert site.sample(SKEW, camera="tz") == pytest.approx(7200, abs=60)
    answer = site.recognize(RED, captured_at=time.time() + 1, deadline_ms=600_000)
    assert answer.status_code == 200


def test_frame_of_five_hours_ago_is_told_of_the_zone(site: LiveServer) -> None:
    local = datetime.now(UTC) - timedelta(hours=5)
    answer = site.recognize(RED, captured_at=local.strftime("%Y-%m-%dT%H:%M:%SZ"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "DEADLINE_EXCEEDED")
    assert "5 hours behind is likely the wrong time zone" in message(answer)


def test_offset_whose_plus_is_not_escaped_is_told(site: LiveServer) -> None:
    here = datetime.now(timezone(timedelta(hours=2))).isoformat(timespec="milliseconds")
    url = f"{site.url}/v1/recognize?captured_at={here}"
    headers = {"Content-Type": "image/jpeg"}
    answer = requests.post(url, RED, headers=headers, timeout=60)
    assert answer.status_code == 400
    assert "%2B02:00" in message(answer)
    answer = requests.post(url.replace("+", "%2B"), RED, headers=headers, timeout=60)
    assert answer.status_code == 200


@pytest.mark.parametrize("hours", [-14, -9.5, -5, -1, 0.25, 1, 2, 5.75, 12.75, 14])
def test_age_near_an_offset_names_the_zone(hours: float) -> None:
    for near in (-20, 0, 20):
        assert "time zone" in likely_cause(hours * 3600 + near, "2026-01-01T00:00:00Z")


@pytest.mark.parametrize("seconds", [-3.0, 60.0, 450.0, 4000.0, 15 * 3600.0, 1e9])
def test_other_age_names_the_clock(seconds: float) -> None:
    assert likely_cause(seconds, "1") == "set the camera's clock, or this server's"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1795897603250", "milliseconds"),
        ("1795897603250.5", "milliseconds"),
        ("1795897603250000", "microseconds"),
        ("1795897603250000000", "nanoseconds"),
        ("2026-11-28T22:58:22", "no time zone"),
        ("2026-11-28 22:58:22.5", "no time zone"),
        ("2026-11-28T22:58:22 02:00", "%2B02:00"),
        ("yesterday", "send Unix seconds"),
        ("1e400", "send Unix seconds"),
    ],
)
def test_moment_that_can_not_be_read_is_explained(text: str, says: str) -> None:
    for name in ("captured_at", "since"):
        with pytest.raises(InvalidFieldError) as caught:
            parse_instant(text, name)
        assert caught.value.message.startswith(f"{name} can't be '{text}': ")
        assert says in caught.value.message


def test_skew_of_many_cameras_is_bounded() -> None:
    metrics = Metrics()
    skew = metrics.clock_skew
    for number in range(100):
        skew.note(f"camera {number}", 5.0, 2.0)
        skew.note("", 5.0, 2.0)
    text = metrics.render().decode()
    assert text.count(f"{SKEW}{{") == 64 + 1


def test_clock_before_the_program_is_not_set() -> None:
    assert clock_fault(0).startswith("this server's clock is not set: it shows 1970-01-01 00:00")
    assert clock_fault(RELEASED - 1)
    assert clock_fault(RELEASED) == clock_fault() == ""


def test_clock_that_is_not_set_is_told(
    colors: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By the log once, by /readyz, and to a camera whose deadline can't be judged."""
    monkeypatch.setattr("server.system.clock.RELEASED", time.time() + 1e6)
    caplog.set_level("INFO")
    keys, data = str(tmp_path / "keys.jsonl"), str(tmp_path / "data")
    client = Client(create_app(Settings(models=str(colors), keys_file=keys, data=data)))
    await_that(lambda: client.get("/readyz").status_code == 200, "a loaded model")
    ready = json.loads(client.get("/readyz").data)
    assert ready["status"] == "ok"
    assert "clock is not set" in ready["warning"]
    ahead = f"/v1/recognize?captured_at={time.time() + 7200}"
    headers = {"Content-Type": "image/jpeg"}
    assert client.post(ahead, data=RED, headers=headers).status_code == 200
    refused = client.post(f"{ahead}&deadline_ms=500", data=RED, headers=headers)
    assert refused.status_code == 400
    assert "this server's clock is not set" in refused.text
    said = [r for r in caplog.records if r.getMessage().startswith("this server's clock")]
    assert len(said) == 1
    monkeypatch.undo()
    assert client.get("/readyz").json == {"status": "ok"}
