"""The table of jobs: what is on the disk, and when a job goes."""

import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from job_workers import await_that

from server.errors import JobNotFoundError, JobsUnavailableError
from server.store.jobs.records import FILE, FrameOutcome, JobError, JobOptions, NewFrame, NewJob
from server.store.jobs.table import REMOVE_AT_ONCE_MAX, JobTable

DONE = FrameOutcome(fault=JobError("UNDECODABLE_IMAGE", "the image is cut off"))
TTL = 3600.0


@pytest.fixture
def table(tmp_path: Path) -> Iterator[JobTable]:
    with closing(JobTable(tmp_path, result_ttl=TTL)) as made:
        yield made


def add(table: JobTable, job: str, webhook: str | None = None) -> None:
    frames = (NewFrame("a.png", "image", b"data"),)
    table.add(NewJob(job, "request", JobOptions(top_k=1), frames, webhook=webhook))


def finish(table: JobTable, job: str, ago: float) -> None:
    table.ended([(job, 0, DONE)], time.time() - ago)


def test_what_is_written_is_on_the_disk(table: JobTable) -> None:
    """FULL: a commit returns once the log is synced, which WAL with less does not do
    (https://sqlite.org/pragma.html#pragma_synchronous)."""
    with table._file.writing() as db:
        assert db.execute("PRAGMA synchronous").fetchone() == (2,)
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_results_expire_at_their_time_not_at_a_sweep(table: JobTable) -> None:
    """Results go at their time and not with the next sweep."""
    for job, ago in (("young", TTL - 60), ("old", TTL + 1)):
        add(table, job)
        finish(table, job, ago)
    add(table, "open")
    assert [job.id for job in table.page(None, None, None, 10)] == ["open", "young"]
    assert [job.id for job in table.page(None, "failed", None, 10)] == ["young"]
    assert table.get("young").state == "failed"
    with pytest.raises(JobNotFoundError):
        table.get("old")
    assert table.expire(time.time() - TTL) == 1


def test_a_jump_of_the_clock_hides_no_results(
    table: JobTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(table, "j")
    finish(table, "j", 0)
    before = table.get("j")
    now = time.time()
    monkeypatch.setattr("server.store.jobs.table.time.time", lambda: now + 2 * 86_400)
    assert table.get("j") == before
    assert [job.id for job in table.page(None, None, None, 10)] == ["j"]


def test_who_finds_the_file_busy_is_told_so_soon(table: JobTable, tmp_path: Path) -> None:
    add(table, "j")
    with (
        closing(sqlite3.connect(tmp_path / FILE, isolation_level=None)) as other,
        ThreadPoolExecutor() as threads,
    ):
        other.execute("BEGIN IMMEDIATE")
        writer = threads.submit(add, table, "k")
        await_that(table._file._lock.locked, "the writer to hold the file")
        with pytest.raises(JobsUnavailableError, match="is busy"):
            table.get("j")
        assert not writer.done()
        other.execute("ROLLBACK")
        writer.result(60)
    assert table.get("k").state == "pending"


def test_a_job_is_ended_once(table: JobTable) -> None:
    add(table, "j")
    fault = JobError("CANCELLED", "the job was cancelled")
    (first, now), (again, later) = (table.stop("j", "cancelled", fault, 1000.0) for _ in range(2))
    assert (now, later) == (True, False)
    assert first == again
    assert first.state == "cancelled"


def test_many_that_expired_go_some_at_a_time(table: JobTable) -> None:
    """Requests get at the file in between."""
    names = [str(number) for number in range(REMOVE_AT_ONCE_MAX + 20)]
    for job in names:
        add(table, job)
    table.ended([(job, 0, DONE) for job in names], time.time() - TTL)
    assert [table.expire(time.time() - TTL) for _ in range(3)] == [REMOVE_AT_ONCE_MAX, 20, 0]


def test_results_take_no_more_than_their_room(tmp_path: Path) -> None:
    """The oldest go first, but last of all those whose end is still to be told."""
    large = FrameOutcome(fault=JobError("INTERNAL", "x" * 10_000))
    with closing(JobTable(tmp_path, most_bytes=100_000, most_results=1_000_000)) as table:
        assert table.make_room() == 0
        for number in range(300):
            add(table, str(number), "http://10.0.0.9/told" if number in (3, 299) else None)
            table.ended([(str(number), 0, large)], time.time() + number)
        add(table, "open")
        removed = table.make_room()
        assert table.make_room() == 0
        left = [job.id for job in table.page(None, None, None, 1000)][::-1]
        assert len(left) + removed == 301
        assert left == ["3", *map(str, range(removed + 1, 300)), "open"]
        assert 40 < len(left) < 110, "the room is used"


def test_untold_ends_go_too_where_there_are_no_others(tmp_path: Path) -> None:
    large = FrameOutcome(fault=JobError("INTERNAL", "x" * 100_000))
    with closing(JobTable(tmp_path, most_bytes=100_000, most_results=1_000_000)) as table:
        for number in range(20):
            add(table, str(number), "http://10.0.0.9/told")
            table.ended([(str(number), 0, large)], time.time() + number)
        assert table.make_room() > 5
        assert table.page(None, None, None, 1)[0].id == "19"


def test_a_webhook_waits_for_no_clock_that_was_set_back(table: JobTable) -> None:
    now = time.time()
    for job, ahead in (("soon", 200.0), ("before it was set back", 5 * 3600.0)):
        add(table, job, "http://10.0.0.9/told")
        finish(table, job, 0)
        table.webhook_tried(job, "pending", now + ahead)
    assert [job.id for job in table.webhooks_due(now, 300)] == ["before it was set back"]


def test_a_webhook_that_was_given_up_keeps_no_job(table: JobTable) -> None:
    """Neither of one that had ended, nor of one that ends later; one delivered stays so."""
    for job in ("ended", "delivered", "open"):
        add(table, job, "http://10.0.0.9/told")
    for job in ("ended", "delivered"):
        finish(table, job, 1)
    table.webhook_tried("delivered", "delivered", None)
    assert table.fail_webhooks() == 2
    finish(table, "open", 1)
    states = [job.webhook and job.webhook.state for job in table.page(None, None, None, 10)]
    assert states == ["failed", "delivered", "failed"]
    assert table.next_webhook_due() is None
    assert table.expire(time.time()) == 3
