"""The table of jobs: what is on the disk, and when a job goes."""

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from server.errors import JobNotFoundError
from server.store.job_records import Ask, Fault, NewFrame, NewJob, Outcome
from server.store.jobs import JobTable

DONE = Outcome(fault=Fault("UNDECODABLE_IMAGE", "the image is cut off"))
TTL = 3600.0


@pytest.fixture
def table(tmp_path: Path) -> Iterator[JobTable]:
    with closing(JobTable(tmp_path, result_ttl=TTL)) as made:
        yield made


def add(table: JobTable, job: str, webhook: str | None = None) -> None:
    frames = (NewFrame("a.png", "image", b"data"),)
    table.add(NewJob(job, "request", Ask(top_k=1), frames, webhook=webhook))


def finish(table: JobTable, job: str, ago: float) -> None:
    table.ended([(job, 0, DONE)], time.time() - ago)


def test_what_is_written_is_on_the_disk(table: JobTable) -> None:
    """FULL: a commit returns once the log is synced, which WAL with less does not do
    (https://sqlite.org/pragma.html#pragma_synchronous)."""
    with table._file.writing() as db:
        assert db.execute("PRAGMA synchronous").fetchone() == (2,)
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_results_go_at_their_time_and_not_with_the_next_sweep(table: JobTable) -> None:
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


def test_a_webhook_waits_for_no_clock_that_was_set_back(table: JobTable) -> None:
    now = time.time()
    for job, ahead in (("soon", 200.0), ("before it was set back", 5 * 3600.0)):
        add(table, job, "http://10.0.0.9/told")
        finish(table, job, 0)
        table.webhooks.told(job, "pending", now + ahead)
    assert [job.id for job in table.webhooks.due(now, 300)] == ["before it was set back"]


def test_a_webhook_that_was_given_up_keeps_no_job(table: JobTable) -> None:
    """Neither of one that had ended, nor of one that ends later; one delivered stays so."""
    for job in ("ended", "delivered", "open"):
        add(table, job, "http://10.0.0.9/told")
    for job in ("ended", "delivered"):
        finish(table, job, 1)
    table.webhooks.told("delivered", "delivered", None)
    assert table.webhooks.give_up() == 2
    finish(table, "open", 1)
    states = [job.webhook and job.webhook.state for job in table.page(None, None, None, 10)]
    assert states == ["failed", "delivered", "failed"]
    assert table.webhooks.next_due() is None
    assert table.expire(time.time()) == 3
