"""Frames by camera: how they ended, and that no caller can make series without end."""

import base64
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from images import encode, plain
from job_workers import await_that
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from server_process import LiveServer, live_server

from server.observe.cameras import Cameras, result_of
from server.recognition.answers import Answer, FrameAnswered, FrameRefused, Options, Prediction

GREEN = encode(plain((0, 255, 0)), "PNG")
FRAMES = "lineside_camera_frames_total"


def seen(camera: str, at: float = 1000.0, verdict: Any = None) -> FrameAnswered:
    best = Prediction(1, "green", 0.9)
    return FrameAnswered(
        at, "r1", Answer("colors", 1, best, (best,), verdict, {}), Options(camera=camera)
    )


def counted(registry: CollectorRegistry) -> dict[tuple[str, str], float]:
    return {
        (sample.labels["camera"], sample.labels["result"]): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == FRAMES and sample.value
    }


def test_each_error_is_somebodys() -> None:
    statuses = (400, 404, 413, 415, 422, 429, 500, 503)
    assert [result_of(status) for status in statuses] == [
        *["bad"] * 5,
        "refused",
        "failed",
        "refused",
    ]


def test_cameras_beyond_the_most_share_one_label() -> None:
    registry = CollectorRegistry()
    cameras = Cameras(registry, 2)
    for camera in ("a", "b", "c", "d", "a", ""):
        cameras.answered(seen(camera))
    assert counted(registry) == {
        ("a", "answered"): 2,
        ("b", "answered"): 1,
        ("other", "answered"): 2,
    }


def test_verdicts_and_runs_of_fails_are_counted_by_camera() -> None:
    registry = CollectorRegistry()
    cameras = Cameras(registry, 1, fail_run=3)
    for verdict in ("fail", "fail", "unsure", "fail", "fail", "fail", "fail", "pass", "fail"):
        cameras.answered(seen("st4", verdict=verdict))
    for _ in range(9):
        cameras.answered(seen("beyond", verdict="fail"))
    text = generate_latest(registry).decode()
    verdicts = 'lineside_camera_verdicts_total{camera="st4",verdict="%s"} %d.0'
    for line in (verdicts % ("fail", 7), verdicts % ("unsure", 1), verdicts % ("pass", 1)):
        assert line in text
    assert 'lineside_camera_fail_runs_total{camera="st4"} 1.0' in text
    assert 'lineside_camera_fail_runs_total{camera="other"} 0.0' in text


def test_only_an_answered_frame_gives_a_camera_its_label() -> None:
    """Or else whoever sends rubbish with made-up names would take all labels."""
    registry = CollectorRegistry()
    cameras = Cameras(registry, 1)
    cameras.refused(FrameRefused(1.0, "r", 415, "UNSUPPORTED_IMAGE", camera="made up"))
    cameras.answered(seen("a"))
    cameras.refused(FrameRefused(1.0, "r", 503, "OVERLOADED", camera="a"))
    cameras.refused(FrameRefused(1.0, "r", 503, "OVERLOADED", camera=""))
    assert counted(registry) == {
        ("other", "bad"): 1,
        ("a", "answered"): 1,
        ("a", "refused"): 1,
    }


def refusal(camera: str, code: str = "INVALID_FIELD", at: float = 1.0, **more: Any) -> FrameRefused:
    """Of a sender who was let in, unless told otherwise."""
    status = 503 if code == "OVERLOADED" else 400
    return FrameRefused(at, "r", status, code, camera=camera, **({"let_in": True} | more))


def reasons(registry: CollectorRegistry) -> dict[tuple[str, str], float]:
    return {
        (sample.labels["camera"], sample.labels["reason"]): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "lineside_camera_refused_total"
    }


def test_a_camera_that_only_fails_is_told_from_others() -> None:
    registry = CollectorRegistry()
    cameras = Cameras(registry, 3)
    for camera in ("tz", "tz", "dark"):
        cameras.refused(refusal(camera, cause="CLOCK_AHEAD" if camera == "tz" else ""))
    cameras.refused(refusal("dark", "OVERLOADED"))
    assert counted(registry) == {("tz", "bad"): 2, ("dark", "bad"): 1, ("dark", "refused"): 1}
    assert reasons(registry) == {
        ("tz", "CLOCK_AHEAD"): 2,
        ("dark", "INVALID_FIELD"): 1,
        ("dark", "OVERLOADED"): 1,
    }


def test_strangers_get_no_series() -> None:
    registry = CollectorRegistry()
    cameras = Cameras(registry, 3)
    for number in range(100):
        cameras.refused(refusal(f"made-up-{number}", let_in=False))
    assert counted(registry) == {("other", "bad"): 100}
    assert reasons(registry) == {("other", "INVALID_FIELD"): 100}


def test_answered_camera_replaces_a_never_answered_one() -> None:
    """An answered camera takes the place of one that never was."""
    registry = CollectorRegistry()
    cameras = Cameras(registry, 2)
    cameras.refused(refusal("typo", at=1.0))
    cameras.refused(refusal("dark", at=2.0))
    cameras.refused(refusal("more", at=3.0))
    assert {camera for camera, _ in counted(registry)} == {"typo", "dark", "other"}
    cameras.answered(seen("top"))
    assert {camera for camera, _ in counted(registry)} == {"top", "dark", "other"}
    cameras.answered(seen("dark"))
    cameras.answered(seen("side"))
    cameras.refused(refusal("typo"))
    assert counted(registry) == {
        ("top", "answered"): 1,
        ("dark", "bad"): 1,
        ("dark", "answered"): 1,
        ("other", "bad"): 2,
        ("other", "answered"): 1,
    }
    assert {camera for camera, _ in reasons(registry)} == {"dark", "other"}
    text = generate_latest(registry).decode()
    assert "typo" not in text


@pytest.mark.parametrize("most", [0, 1, 5])
def test_series_are_bounded_whatever_comes(most: int) -> None:
    registry = CollectorRegistry()
    cameras = Cameras(registry, most)
    for number in range(200):
        name = f"c{number % 23}"
        cameras.refused(refusal(name, at=number))
        if number % 3 == 0:
            cameras.answered(seen(name, at=number))
        assert len({camera for camera, _ in counted(registry)} - {"other"}) <= most
        assert len({camera for camera, _ in reasons(registry)} - {"other"}) <= most


def test_wrong_camera_clock_is_seen_from_first_frame(colors: Path) -> None:
    """By their metrics, the journal and the log: each with the reason and the sender."""
    hours = {"ahead": 2, "behind": -5}
    with live_server(models=colors) as server:
        for camera, offset in hours.items():
            for _ in range(3):
                moment = time.time() + 3600 * offset
                answer = server.recognize(
                    GREEN, camera=camera, captured_at=moment, deadline_ms=60_000
                )
                assert answer.status_code in (400, 503)
                request_id = answer.headers["X-Request-Id"]
                sentence = answer.json()["error"]["message"]
                line = server.request_line(request_id)
                assert (line["camera"], line["address"]) == (camera, "127.0.0.1")
                assert line["error"] == sentence

        def count(camera: str, reason: str) -> float:
            return server.sample("lineside_camera_refused_total", camera=camera, reason=reason)

        assert (count("ahead", "CLOCK_AHEAD"), count("behind", "STALE_FRAME")) == (3, 3)
        assert server.sample(FRAMES, camera="ahead", result="bad") == 3
        assert server.sample(FRAMES, camera="behind", result="refused") == 3
        errors = [
            server.sample("lineside_request_errors_total", route="/v1/recognize", reason=reason)
            for reason in ("CLOCK_AHEAD", "STALE_FRAME")
        ]
        assert errors == [3, 3]
        url = server.url + "/v1/journal"
        rows = requests.get(url, params={"camera": "behind"}, timeout=60).json()["rows"]
        assert rows[0]["reason"] == sentence
        assert {row["address"] for row in rows} == {"127.0.0.1"}
        assert len(requests.get(url + "?address=127.0.0.1", timeout=60).json()["rows"]) == 6
        assert requests.get(url + "?address=10.0.0.1", timeout=60).json()["rows"] == []


def test_no_name_makes_the_metrics_unreadable() -> None:
    registry = CollectorRegistry()
    cameras = Cameras(registry, 9)
    names = ("\ud800", 'a"b\\', "a\nb", "Kamera 4 \u00f6")
    for name in names:
        cameras.answered(seen(name))
    text = generate_latest(registry).decode("utf-8")
    families = text_string_to_metric_families(text)
    told = {sample.labels["camera"] for family in families for sample in family.samples}
    assert told == {"?", *names[1:]}


def test_threads_that_meet_a_camera_at_once_lose_no_frame() -> None:
    registry = CollectorRegistry()
    cameras, start = Cameras(registry, 8), threading.Barrier(8)

    def work() -> None:
        start.wait()
        for number in range(200):
            cameras.answered(seen(f"c{number % 16}"))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    values = counted(registry)
    assert sum(values.values()) == 8 * 200
    assert len({camera for camera, _ in values}) == 9


def test_every_way_a_frame_ends_is_counted_for_its_camera(colors: Path) -> None:
    began = time.time()
    with live_server(models=colors, max_cameras=1) as server:

        def count(result: str, camera: str = "a") -> float:
            return server.sample(FRAMES, camera=camera, result=result)

        assert server.recognize(GREEN, camera="a").status_code == 200
        form = {"camera": "a"}
        url = server.url + "/v1/recognize"
        assert requests.post(url, form, files={"file": b"x"}, timeout=60).status_code == 415
        assert server.recognize(GREEN, camera="a", top_k="no").status_code == 400
        assert server.recognize(GREEN, camera="a", deadline_ms=0.001).status_code == 503
        assert server.recognize(GREEN, camera="b").status_code == 200
        assert server.recognize(GREEN).status_code == 200
        files = [("file", GREEN), ("file", b"x")]
        answer = requests.post(url + "/batch", form, files=files, timeout=60)
        assert answer.status_code == 200
        assert (count("answered"), count("bad"), count("refused")) == (2, 3, 1)
        assert count("failed") == 0
        assert count("answered", "other") == 1
        last = server.sample("lineside_camera_last_frame_timestamp_seconds", camera="a")
        assert began <= last <= time.time()


def test_build_and_readiness_are_told(colors_server: LiveServer) -> None:
    assert colors_server.sample("lineside_ready") == 1
    text = requests.get(colors_server.url + "/metrics", timeout=60).text
    assert 'lineside_build_info{program="' in text


@pytest.fixture(scope="module")
def site(colors: Path) -> Iterator[LiveServer]:
    """A server for tests with cameras of their own."""
    with live_server(models=colors) as running:
        yield running


def test_failure_right_after_first_frame_is_counted(site: LiveServer) -> None:
    """A frame that fails right after its camera's first frame is counted for the camera."""
    frames = 20
    with requests.Session() as session:

        def send(data: bytes, camera: str) -> int:
            url = f"{site.url}/v1/recognize?camera={camera}"
            return session.post(url, data, headers={"Content-Type": "image/png"}).status_code

        for number in range(frames):
            assert send(GREEN, f"c{number}") == 200
            assert send(b"x", f"c{number}") == 415
        bad = {
            f"c{number}": site.sample(FRAMES, camera=f"c{number}", result="bad")
            for number in range(frames)
        }
    assert bad == dict.fromkeys(bad, 1.0)


def journal(server: LiveServer, camera: str, count: int) -> list[dict[str, Any]] | None:
    """The rows of a camera, once there are `count`."""
    answer = requests.get(f"{server.url}/v1/journal?camera={camera}", timeout=60)
    rows: list[dict[str, Any]] = answer.json()["rows"]
    return rows if len(rows) >= count else None


@pytest.mark.parametrize("way", ["multipart", "json", "form", "batch"])
def test_early_failures_are_counted_for_their_camera(site: LiveServer, way: str) -> None:
    """Frames that fail before they are worked on are counted for their camera."""
    text = base64.b64encode(GREEN).decode()

    def send(**fields: str) -> int:
        url, given = site.url + "/v1/recognize", {"camera": way, **fields}
        if way == "json":
            answer = requests.post(url, json=dict(given, image_base64=text), timeout=60)
        elif way == "form":
            answer = requests.post(url, {"image_base64": text, **given}, timeout=60)
        else:
            url += "/batch" if way == "batch" else ""
            answer = requests.post(url, given, files={"file": GREEN}, timeout=60)
        return answer.status_code

    assert send() == 200
    assert send(model="nobody") == 404
    assert send() == 200
    rows = await_that(lambda: journal(site, way, 3), "the row of each frame")
    counts = [site.sample(FRAMES, camera=way, result=each) for each in ("answered", "bad")]
    assert counts == [2, 1]
    assert sorted(row["status"] for row in rows) == [200, 200, 404]
