"""Workers on other machines pass over the frames of a cancelled job, whatever the broker does."""

import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
import requests
from images import encode, plain
from job_workers import LiveWorker, RedisServer, await_that, cancel, patiently, redis_server
from redis import Redis
from server_process import live_server

from server.jobs.messages import QUEUE, FrameReport, cancel_key, frame_key, report_key

FRAMES = 12


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[RedisServer]:
    (tmp_path / "redis").mkdir()
    with redis_server(tmp_path / "redis") as server:
        yield server


def submit_many(url: str) -> str:
    """A job of FRAMES green frames; its id."""
    green = encode(plain((0, 255, 0)), "PNG")
    files = [("file", (f"{number}.png", green)) for number in range(FRAMES)]
    answer = patiently(lambda: requests.post(f"{url}/v1/jobs", files=files, timeout=60))
    assert answer.status_code == 202, answer.text
    return str(answer.json()["job_id"])


def check_passed_over(redis: Redis, job: str, worker: LiveWorker) -> None:
    """Every frame of the job comes to the worker, which answers none."""
    keys = [report_key(f"{job}-{number}-0") for number in range(FRAMES)]

    def states() -> list[str]:
        found = [msgspec.json.decode(data, type=FrameReport) for data in redis.mget(keys) if data]
        return [report.state for report in found if report.state != "running"]

    try:
        await_that(lambda: len(states()) == FRAMES, "the worker's reports")
    finally:
        worker.stop()
    assert states() == ["dropped"] * FRAMES


def test_the_only_job(colors: Path, broker: RedisServer, tmp_path: Path) -> None:
    shared = {"models": colors, "broker_url": broker.url}
    with (
        live_server(data=tmp_path / "data", job_workers=0, **shared, traced=True) as server,
        closing(Redis.from_url(broker.url)) as redis,
    ):
        job = submit_many(server.url)
        await_that(lambda: redis.llen(QUEUE) == FRAMES, "the queued frames")
        assert cancel(server, job)["status"] == "cancelled"
        await_that(lambda: redis.exists(cancel_key(job)), "the broker's knowledge of it")
        # The reports go with the frames, the worker's too if it came before.
        await_that(lambda: not redis.exists(frame_key(job, FRAMES - 1)), "the end of the frames")
        check_passed_over(redis, job, LiveWorker(data=tmp_path / "worker", **shared))


def test_while_the_broker_is_away(colors: Path, broker: RedisServer, tmp_path: Path) -> None:
    shared = {"models": colors, "broker_url": broker.url}
    with (
        live_server(data=tmp_path / "data", job_workers=0, **shared, traced=True) as server,
        closing(Redis.from_url(broker.url)) as redis,
    ):
        job = submit_many(server.url)
        await_that(lambda: redis.llen(QUEUE) == FRAMES, "the queued frames")
        broker.stop(signal.SIGKILL)
        server.await_event("jobs wait")
        assert cancel(server, job)["status"] == "cancelled"
        broker.start()
        await_that(lambda: redis.exists(cancel_key(job)), "the broker's knowledge of it")
        check_passed_over(redis, job, LiveWorker(data=tmp_path / "worker", **shared))
