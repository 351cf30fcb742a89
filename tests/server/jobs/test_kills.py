"""What was acknowledged is answered, whoever is killed."""

import random
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import requests
from images import encode, picture
from job_workers import (
    LiveWorker,
    await_that,
    children,
    count_jobs,
    end,
    job_workers,
    redis_server,
    tell,
)
from server_process import ROOT, LiveServer

from server.config.settings import Settings
from server.jobs.messages import FrameTask
from server.jobs.queue import Broker
from server.store.bundles.layout import open_bundle
from server.store.jobs.records import JobOptions

JOBS = 80
WORKER_KILLS, SERVER_KILLS = 3, 2


class Plant:
    """A server, restarted by hand, whose jobs outlive it."""

    def __init__(self, data: Path, **settings: object) -> None:
        self.data = data
        base = {"models": ROOT / "models", "model": "parts", "data": data}
        self._settings = base | settings
        self.lock = threading.Lock()
        self.server = LiveServer(**self._settings)
        self.server.await_ready()

    def kill(self) -> None:
        """kill -9 of the web process and its parent; another server takes their place. Workers of
        theirs end by themselves."""
        with self.lock:
            processes = [self.server.process.pid, *children(self.server.process.pid)]
            for pid in processes:
                end(pid)
            self.server.stop(signal.SIGKILL)
            self.server = LiveServer(**self._settings)
            self.server.await_ready()


class Client(threading.Thread):
    """Sends every frame until it is acknowledged; `acknowledged` holds the frame by job."""

    def __init__(self, plant: Plant, frames: list[bytes]) -> None:
        super().__init__(daemon=True)
        self._plant, self._frames = plant, frames
        self.acknowledged: dict[str, int] = {}
        self.refusals: set[str] = set()

    def begin(self) -> None:
        """Starts; returns once there is a table of jobs."""
        self.start()
        await_that(lambda: self.acknowledged, "the first acknowledged job")

    def run(self) -> None:
        for number, frame in enumerate(self._frames):
            while (job := self._send(frame)) is None:
                pass
            self.acknowledged[job] = number

    def _send(self, frame: bytes) -> str | None:
        try:
            answer = requests.post(f"{self._plant.server.url}/v1/jobs", frame, timeout=60)
        except requests.RequestException:
            with self._plant.lock:  # until the next server is there
                return None
        if answer.status_code == 202:
            return str(answer.json()["job_id"])
        self.refusals.add(answer.json()["error"]["code"])
        threading.Event().wait(0.1)
        return None


def _done(plant: Plant, count: int) -> bool:
    return count_jobs(plant.data, "succeeded") >= count


def kill_at_random(plant: Plant, deeds: list[Callable[[], None]], seed: int) -> None:
    """Does the deeds in a random order, each when a random number of jobs has been done."""
    chance = random.Random(seed)
    chance.shuffle(deeds)
    moments = sorted(chance.sample(range(2, JOBS - 10), len(deeds)))
    for moment, deed in zip(moments, deeds, strict=True):
        await_that(partial(_done, plant, moment), f"{moment} jobs")
        deed()


def check(plant: Plant, client: Client, frames: list[bytes]) -> None:
    """Every acknowledged job has its result, equal to the synchronous answer."""
    client.join(60)
    assert len(client.acknowledged) == JOBS
    await_that(
        lambda: count_jobs(plant.data, "pending") + count_jobs(plant.data, "running") == 0,
        "the end of all jobs",
    )
    for job, number in client.acknowledged.items():
        found = tell(plant.server, job)
        assert found["status"] == "succeeded", found
        (frame,) = found["frames"]
        expected = plant.server.recognize(frames[number]).json()
        for name in ("model", "model_version", "predictions", "verdict", "recognized"):
            assert frame["result"][name] == expected[name]


@pytest.fixture(scope="module")
def frames() -> list[bytes]:
    return [encode(picture(320, 240, seed)) for seed in range(JOBS)]


def test_on_one_machine(frames: list[bytes], tmp_path: Path) -> None:
    plant = Plant(tmp_path)
    client = Client(plant, frames)

    def kill_worker() -> None:
        for pid in await_that(lambda: job_workers(plant.server), "a worker"):
            end(pid)

    try:
        client.begin()
        kill_at_random(plant, [kill_worker] * WORKER_KILLS + [plant.kill] * SERVER_KILLS, seed=7)
        check(plant, client, frames)
    finally:
        plant.server.stop()


def test_with_redis_that_is_killed_too(frames: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    with redis_server(tmp_path / "redis") as redis:
        shared = {"broker_url": redis.url, "models": ROOT / "models", "interpreters": 1}
        plant = Plant(tmp_path / "server", broker_url=redis.url, job_workers=0)
        workers = [LiveWorker(data=tmp_path / "worker", **shared)]
        client = Client(plant, frames)

        def kill_worker() -> None:
            workers.pop().stop(signal.SIGKILL)
            workers.append(LiveWorker(data=tmp_path / "worker", **shared))

        def kill_broker() -> None:
            redis.stop(signal.SIGKILL)
            answer = requests.post(f"{plant.server.url}/v1/jobs", frames[0], timeout=60)
            assert (answer.status_code, answer.json()["error"]["code"]) == (
                503,
                "BROKER_UNAVAILABLE",
            )
            assert plant.server.recognize(frames[0]).status_code == 200
            redis.start()

        deeds = [kill_worker] * WORKER_KILLS + [plant.kill] * SERVER_KILLS + [kill_broker]
        try:
            client.begin()
            kill_at_random(plant, deeds, seed=11)
            check(plant, client, frames)
        finally:
            plant.server.stop()
            workers[0].stop(signal.SIGKILL)


class Wire:
    """A worker's way to its Redis at `port`, which breaks at the first acknowledgement of a
    message, and is whole again after `mend`."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._whole, self._broken_once = threading.Event(), False
        self._whole.set()
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                if not self._whole.is_set():
                    client.close()
                    continue
                redis = socket.create_connection(("127.0.0.1", self._port))
                self._open += [client, redis]
                for ends in ((client, redis), (redis, client)):
                    threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if b"ZREM" in data and not self._broken_once:
                    self._broken_once = True
                    self._whole.clear()
                    self._cut()
                target.sendall(data)
        for side in (source, target):
            with suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)

    def _cut(self) -> None:
        for side in self._open:
            with suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._whole.set()

    def close(self) -> None:
        self._listener.close()
        self._cut()
        for side in self._open:
            side.close()


def test_worker_goes_on_after_a_lost_acknowledgement(frames: list[bytes], tmp_path: Path) -> None:
    """Celery only logs that it could not acknowledge a message, and no supervisor sees a worker
    that lives and takes no further frame."""
    (tmp_path / "redis").mkdir()
    bundle = open_bundle(ROOT / "models" / "parts" / "1", Settings().recipe)
    sha256 = bundle.manifest.model_sha256
    with redis_server(tmp_path / "redis") as redis:
        wire = Wire(redis.port)
        worker = LiveWorker(
            data=tmp_path / "worker", broker_url=wire.url, models=ROOT / "models", interpreters=1
        )
        broker = Broker(Settings(broker_url=redis.url))

        def answer(number: int) -> None:
            name = f"task-{number}"
            task = FrameTask(name, "job", number, "image", JobOptions(5), "parts", 1, sha256)
            broker.send(task, frames[number])

            def done() -> bool:
                report = broker.reports([name]).get(name)
                return report is not None and report.state == "done"

            await_that(done, f"the answer to frame {number}")

        try:
            answer(0)
            await_that(
                lambda: any("Couldn't ack" in line["event"] for line in worker.lines),
                "an acknowledgement that failed",
            )
            wire.mend()
            answer(1)
        finally:
            broker.close()
            worker.stop(signal.SIGKILL)
            wire.close()
