"""The server's side of jobs, and what its threads survive."""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, TypeVar

import pytest
from images import encode, plain
from job_workers import LiveWorker, await_that, serving, settled, submit
from server_process import live_server

from server.config.settings import Settings
from server.engine import make_store
from server.errors import JobsUnavailableError
from server.jobs.embedded_queue import FILE as QUEUE
from server.jobs.events import JobEvents
from server.jobs.service import LOCK, Jobs
from server.observe.metrics import Metrics
from server.recognition.admission import Admission
from server.store.jobs.records import FILE, FrameOutcome, JobError, JobOptions, NewFrame, NewJob
from server.store.jobs.table import JobTable

GREEN = encode(plain((0, 255, 0)), "PNG")
FRAMES = (NewFrame("a.png", "image", GREEN),)
T = TypeVar("T")


def events_of(settings: Settings) -> JobEvents:
    """Notifies nobody but webhooks."""
    return JobEvents(settings, Metrics(), lambda _: None, lambda _: None, False, lambda _: b"{}")


@pytest.fixture
def jobs(colors: Path, tmp_path: Path) -> Iterator[Jobs]:
    settings = Settings(models=str(colors), data=str(tmp_path), job_workers=0)
    store = make_store(settings, Metrics(), Admission(1, 1))
    with closing(Jobs(settings, store, events_of(settings), lambda _, model: model.reader)) as made:
        yield made


def run(data: Path, file: str, statement: str, *values: object) -> list[Any]:
    """The rows of a statement on a file that the server has open."""
    with closing(sqlite3.connect(data / file, timeout=60, isolation_level=None)) as db:
        return db.execute(statement, values).fetchall()


def unless_busy(ask: Callable[[], T]) -> T:
    """What `ask` returns, asked again where the disk keeps the table busy for too long."""

    def look() -> list[T]:
        try:
            return [ask()]
        except JobsUnavailableError as error:
            if "is busy" not in error.message:
                raise
            return []

    found: list[T] = await_that(look, "a table that is not busy")
    return found[0]


def test_no_job_is_taken_that_nobody_would_dispatch(jobs: Jobs) -> None:
    unless_busy(lambda: jobs.submit(NewJob("one", "request", JobOptions(top_k=1), FRAMES)))
    jobs.close()
    with pytest.raises(JobsUnavailableError):
        jobs.submit(NewJob("two", "request", JobOptions(top_k=1), FRAMES))


@pytest.mark.parametrize("kind", ["folder", "FIFO", "link"])
def test_jobs_are_taken_whatever_lies_as_the_lock(jobs: Jobs, tmp_path: Path, kind: str) -> None:
    lock = tmp_path / LOCK
    if kind == "folder":
        lock.mkdir()
    elif kind == "FIFO":
        os.mkfifo(lock)
    else:
        lock.symlink_to("nowhere/at/all")
    unless_busy(lambda: jobs.submit(NewJob("one", "request", JobOptions(top_k=1), FRAMES)))
    assert unless_busy(lambda: jobs.get("one")).state == "pending"
    assert lock.is_file()
    assert len(list(tmp_path.glob(f"{LOCK}.damaged-*"))) == 1


def test_a_report_of_another_version_holds_nothing_up(colors: Path, tmp_path: Path) -> None:
    with live_server(models=colors, data=tmp_path, job_workers=0) as server:
        job = submit(server, GREEN)
        await_that(lambda: (tmp_path / QUEUE).exists(), "the queue")
        known = "SELECT name FROM sqlite_master WHERE name = 'results'"
        await_that(lambda: run(tmp_path, QUEUE, known), "the queue's tables")
        report = b'{"state": "paused", "worker": "x:1"}'
        key = f"lineside-report-{job}-0-0"
        run(tmp_path, QUEUE, "INSERT INTO results VALUES (?, ?, 2e9)", key, report)
        line = server.await_event("a worker's report can't be read: is it of this version?")
        assert line["task"] == f"{job}-0-0"
        worker = LiveWorker(models=colors, data=tmp_path)
        try:
            assert settled(server, job)["status"] == "succeeded"
            assert settled(server, submit(server, GREEN))["status"] == "succeeded"
        finally:
            worker.stop()


def test_rounds_go_on_after_a_row_that_can_not_be_read(colors: Path, tmp_path: Path) -> None:
    with live_server(models=colors, data=tmp_path, job_workers=0) as server:
        job = submit(server, GREEN)
        run(tmp_path, FILE, "UPDATE jobs SET ask = x'ff' WHERE id = ?", job)
        other = submit(server, GREEN)
        assert server.await_event("the table of jobs was rebuilt")["jobs_failed"] == 1
        worker = LiveWorker(models=colors, data=tmp_path)
        try:
            assert settled(server, other)["status"] == "succeeded"
            found = settled(server, job)
        finally:
            worker.stop()
    assert (found["status"], found["error"]["code"]) == ("failed", "STORAGE_FAILED")


class Receiver(BaseHTTPRequestHandler):
    """Takes what comes."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def test_webhooks_go_on_after_a_row_that_can_not_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    failed = FrameOutcome(fault=JobError("UNDECODABLE_IMAGE", "the image is cut off"))
    server = HTTPServer(("127.0.0.1", 0), Receiver)
    with serving(server) as host, closing(JobTable(tmp_path)) as table:
        table.add(
            NewJob("j", "request", JobOptions(top_k=1), FRAMES, webhook=f"http://{host}/told")
        )
        _, ended = table.ended([("j", 0, failed)], 1.0)
        run(tmp_path, FILE, "UPDATE jobs SET ask = x'ff'")
        with closing(events_of(Settings(data=str(tmp_path), webhook_hosts=(host,)))) as events:
            events.start(table)
            await_that(lambda: "webhooks wait" in caplog.messages, "the row that can't be read")
            run(tmp_path, FILE, "UPDATE jobs SET ask = ?", b'{"top_k": 1}')
            events.finished(ended)
            due = table.next_webhook_due
            await_that(lambda: unless_busy(due) is None, "the delivery")
