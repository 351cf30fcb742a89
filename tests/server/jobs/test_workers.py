"""Workers: which model they run, what becomes of frames that kill them, and how they end."""

import hashlib
import hmac
import json
import os
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests
from images import encode, plain
from job_workers import (
    LiveWorker,
    await_that,
    children,
    end,
    job_workers,
    patiently,
    serving,
    settled,
    submit,
    tell,
)
from line_outputs import tables
from server_process import ROOT, LiveServer, free_port, live_server
from tiny_models import MakeModel, write_bundle

GREEN = encode(plain((0, 255, 0)), "PNG")
SECRET = "a secret of thirty-two characters"


class Receiver(BaseHTTPRequestHandler):
    """Refuses the first delivery, and takes the second."""

    got: list[tuple[dict[str, str], bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.got.append((dict(self.headers), body))
        self.send_response(500 if len(self.got) == 1 else 204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def receiver() -> Iterator[tuple[str, list[tuple[dict[str, str], bytes]]]]:
    got: list[tuple[dict[str, str], bytes]] = []
    kind = type("Own", (Receiver,), {"got": got})
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), kind)) as host:
        yield host, got


class Whole(NamedTuple):
    """A server with its own worker and secrets, the models folder, and where its webhooks go."""

    server: LiveServer
    models: Path
    host: str
    got: list[tuple[dict[str, str], bytes]]


@pytest.fixture(scope="module")
def whole(
    colors: Path, tiny_model: MakeModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Whole]:
    models = tmp_path_factory.mktemp("whole") / "models"
    shutil.copytree(colors, models)
    write_bundle(models / "swapped" / "1", tiny_model("colors"))
    url = f"http://127.0.0.1:{free_port()}/line"
    output = tables({"name": "mes", "kind": "webhook", "url": url, "secret": SECRET})
    login = {"username": "viewer", "password": SECRET}
    camera = tables({"name": "st4", "kind": "http", "url": url, **login})
    secrets = {"output": output, "camera": camera, "webhook_secret": SECRET}
    with (
        receiver() as (host, got),
        live_server(
            models=models, model="colors", webhook_hosts=host, **secrets, traced=True
        ) as server,
    ):
        yield Whole(server, models, host, got)


@pytest.fixture(scope="module")
def workerless(colors: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server whose jobs wait for a worker that the test starts."""
    data = tmp_path_factory.mktemp("workerless")
    with live_server(models=colors, data=data, job_workers=0, traced=True) as server:
        yield server


def test_a_server_without_jobs_pays_nothing(colors: Path, tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from server.app import create_app
from server.config.settings import Settings

made = Settings(models={str(colors)!r}, data={str(tmp_path / "data")!r}, journal=False)
client = create_app(made).test_client()
print(*(client.get(path).status_code for path in ("/v1/jobs", "/v1/jobs/x")))
print(*sorted({{"celery", "kombu", "redis"}} & set(sys.modules)))
print(*(path.read_text() for path in Path("/proc/self/task").glob("*/children")))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    statuses, modules, children = (line.strip() for line in done.stdout.splitlines())
    assert (statuses, modules, children) == ("200 404", "", "")
    assert not list((tmp_path / "data").glob("jobs*"))


def test_workers_run_if_priority_can_not_be_lowered(colors: Path) -> None:
    """Workers run if their priority can't be lowered."""
    with live_server(
        str(ROOT / "tests" / "support" / "sandboxed.py"), models=colors, traced=True
    ) as server:
        assert settled(server, submit(server, GREEN))["status"] == "succeeded"


def test_a_frame_that_kills_its_worker_three_times_fails(
    tiny_model: MakeModel, tmp_path: Path
) -> None:
    write_bundle(tmp_path / "colors" / "1", tiny_model("endless_if_bright"))
    with live_server(models=tmp_path, model="colors", job_workers=1, traced=True) as server:
        job = submit(server, GREEN)  # which a worker has in hand until its end

        def in_hand(losses: int) -> bool:
            (found,) = tell(server, job)["frames"]
            return bool(found["stage"] == "inference" and found["workers_lost"] == losses)

        for losses in range(3):
            await_that(partial(in_hand, losses), f"the frame at a worker, {losses} lost")
            for pid in job_workers(server):
                end(pid)
        found = settled(server, job)
        assert (found["status"], found["error"]["code"]) == ("failed", "WORKER_LOST")
        assert found["frames"][0]["workers_lost"] == 3
        black = encode(plain((0, 0, 0)), "PNG")
        assert settled(server, submit(server, black))["status"] == "succeeded"


def test_jobs_follow_a_live_swap(whole: Whole, tiny_model: MakeModel) -> None:
    server = whole.server
    before = settled(server, submit(server, GREEN, model="swapped"))
    write_bundle(whole.models / "swapped" / "2", tiny_model("colors"), ("rot", "gruen", "blau"))
    requests.post(f"{server.url}/v1/models/swapped/load", timeout=60).raise_for_status()
    after = settled(server, submit(server, GREEN, model="swapped"))
    results = [job["frames"][0]["result"] for job in (before, after)]
    assert [(r["model_version"], r["predictions"][0]["label"]) for r in results] == [
        (1, "green"),
        (2, "gruen"),
    ]


@pytest.mark.parametrize("kind", ["none", "another"])
def test_a_worker_without_the_version_says_so(
    workerless: LiveServer, tiny_model: MakeModel, tmp_path: Path, kind: str
) -> None:
    other = tmp_path / "models"
    number = "1" if kind == "another" else "7"
    write_bundle(other / "colors" / number, tiny_model("logits"), output="logits")
    worker = LiveWorker(models=other, data=workerless.data)
    try:
        job = settled(workerless, submit(workerless, GREEN))
    finally:
        worker.stop()
    assert (job["status"], job["error"]["code"]) == ("failed", "MODEL_NOT_FOUND")
    assert "colors" in job["error"]["message"]
    assert ("is not the version" in job["error"]["message"]) is (kind == "another")


def test_a_message_that_was_lost_is_sent_again(workerless: LiveServer, colors: Path) -> None:
    queue = workerless.data / "jobs-queue.db"
    job = submit(workerless, GREEN)

    def lose() -> int:
        with closing(sqlite3.connect(queue, timeout=60)) as db, db:
            known = "SELECT count(*) FROM sqlite_master WHERE name = 'messages'"
            made = db.execute(known).fetchone()[0]
            return db.execute("DELETE FROM messages").rowcount if made else 0

    await_that(queue.exists, "a queue")
    await_that(lose, "a message in the queue")
    worker = LiveWorker(models=colors, data=workerless.data)
    try:
        assert settled(workerless, job)["status"] == "succeeded"
    finally:
        worker.stop()


def test_a_damaged_queue_is_made_anew(colors: Path, tmp_path: Path) -> None:
    (tmp_path / "jobs-queue.db").write_bytes(b"no database at all" * 1000)
    with live_server(models=colors, data=tmp_path, traced=True) as server:
        assert settled(server, submit(server, GREEN))["status"] == "succeeded"


def test_no_worker_outlives_the_server(colors: Path, tmp_path: Path) -> None:
    for sig in (signal.SIGTERM, signal.SIGKILL):
        server = LiveServer(models=colors, data=tmp_path, traced=True)
        server.await_ready()
        settled(server, submit(server, GREEN))
        (pid,) = job_workers(server)
        worker = os.pidfd_open(pid)
        if sig == signal.SIGTERM:
            server.process.send_signal(sig)
            assert server.process.wait(60) == 0
            assert select.select([worker], [], [], 0)[0], "it was to end before the server"
        else:
            for process in (server.process.pid, *children(server.process.pid)):
                end(process)
            assert select.select([worker], [], [], 60)[0]
        os.close(worker)
        server.stop(signal.SIGKILL)


def test_jobs_go_on_at_the_next_start(colors: Path, tmp_path: Path) -> None:
    with live_server(models=colors, data=tmp_path, job_workers=0, traced=True) as server:
        job = submit(server, GREEN)
    with live_server(models=colors, data=tmp_path, traced=True) as server:
        assert settled(server, job)["status"] == "succeeded"


def test_a_stop_loses_no_row_of_the_journal(shipped: Path, tmp_path: Path) -> None:
    """Every outcome that the table has is in the journal too, and both files are closed."""
    frame = next((shipped / "samples").glob("good*.jpg")).read_bytes()
    files = [("file", (f"{number}.jpg", frame)) for number in range(32)]
    ended = "SELECT count(*) FROM frames WHERE state != 'pending'"
    for turn in range(2):
        data = tmp_path / str(turn)
        with live_server(models=ROOT / "models", model="parts", data=data, traced=True) as server:
            for _ in range(5):
                send(server.url, files).raise_for_status()
            await_that(lambda: count(data / "jobs.db", ended) > 30, "some outcomes")  # noqa: B023
            assert server.stop() == 0
        assert not list(data.glob("jobs.db-*")), "it was not closed"
        rows = count(data / "journal.db", "SELECT count(*) FROM answers")
        assert rows == count(data / "jobs.db", ended)


def send(url: str, files: list[tuple[str, tuple[str, bytes]]]) -> requests.Response:
    return patiently(lambda: requests.post(f"{url}/v1/jobs", files=files, timeout=60))


def count(file: Path, query: str) -> int:
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=60)) as db:
        return int(db.execute(query).fetchone()[0])


def test_a_worker_that_is_told_to_stop_ends_at_once(colors: Path, tmp_path: Path) -> None:
    for sig in (signal.SIGTERM, signal.SIGINT):
        worker = LiveWorker(models=colors, data=tmp_path)
        worker.await_ready()
        # As many as come when it is told by several, or when the threads of its server end.
        for _ in range(6):
            os.kill(worker.process.pid, sig)
        assert worker.stop(sig) == 0


def test_a_webhook_that_may_go_nowhere_any_more_is_given_up(colors: Path, tmp_path: Path) -> None:
    host = f"127.0.0.1:{free_port()}"
    with live_server(models=colors, data=tmp_path, webhook_hosts=host, traced=True) as server:
        job = settled(server, submit(server, GREEN, webhook=f"http://{host}/told"))
        assert job["webhook"]["state"] == "pending"
    with live_server(models=colors, data=tmp_path, traced=True) as server:
        await_that(
            lambda: tell(server, job["job_id"])["webhook"]["state"] == "failed",
            "the end of the webhook",
        )


def test_a_webhook_is_signed_and_tried_again(whole: Whole) -> None:
    server, got = whole.server, whole.got
    url = f"http://{whole.host}/told?line=4"
    job = submit(server, GREEN, webhook=url)
    await_that(lambda: len(got) >= 2, "the second delivery")
    # Where this process stood still for too long, one that it took was sent again.
    await_that(
        lambda: (
            tell(server, job)["webhook"] == {"url": url, "state": "delivered", "attempts": len(got)}
        ),
        "a delivered webhook",
    )
    headers, body = got[1]
    told = json.loads(body)
    assert (told["job_id"], told["status"]) == (job, "succeeded")
    assert told["frames"][0]["result"]["predictions"][0]["label"] == "green"
    signed = headers["X-Lineside-Timestamp"].encode() + b"." + body
    digest = hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
    assert headers["X-Lineside-Signature"] == f"sha256={digest}"
    other = requests.post(
        f"{server.url}/v1/jobs", GREEN, params={"webhook": "http://127.0.0.1:1/"}, timeout=60
    )
    assert (other.status_code, other.json()["error"]["code"]) == (400, "INVALID_FIELD")
    assert "webhook_hosts" in other.json()["error"]["message"]


def test_workers_get_no_secret_of_the_server(whole: Whole) -> None:
    settled(whole.server, submit(whole.server, GREEN))
    environments = [Path(f"/proc/{pid}/environ").read_bytes() for pid in job_workers(whole.server)]
    assert environments
    assert all(SECRET.encode() not in each for each in environments)
