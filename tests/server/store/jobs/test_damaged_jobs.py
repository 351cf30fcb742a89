"""The table of jobs, whose file is damaged, deleted, cut or replaced."""

import logging
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from damages import DAMAGES, PAGE, spoil_page

from server.errors import JobNotFoundError, JobsUnavailableError, StorageError
from server.observe.logs import LOGGER
from server.store.jobs.database import FrameReader
from server.store.jobs.records import (
    FILE,
    FrameOutcome,
    JobError,
    JobOptions,
    JobRecord,
    NewFrame,
    NewJob,
)
from server.store.jobs.table import JobTable
from server.system.files import SET_ASIDE_MAX

FILES = (FILE, f"{FILE}-wal", f"{FILE}-shm")
JOBS = 12
ENDED = FrameOutcome(fault=JobError("UNDECODABLE_IMAGE", "the image is cut off"))


def content(number: int) -> bytes:
    """Of a job's frame: larger than a page where the number is odd."""
    return random.Random(number).randbytes(9000 if number % 2 else 500)


def fill(table: JobTable) -> None:
    """Jobs of one frame, every third of which has ended."""
    for number in range(JOBS):
        frames = (NewFrame("a.png", "image", content(number)),)
        table.add(NewJob(f"job-{number}", "request", JobOptions(top_k=1), frames))
        if number % 3 == 0:
            table.ended([(f"job-{number}", 0, ENDED)], time.time())


def again(ask: Callable[[], Any]) -> Any:
    """What `ask` returns, asked twice where the first use finds the damage."""
    try:
        return ask()
    except JobsUnavailableError:
        return ask()


def found(table: JobTable, job: str) -> JobRecord | None:
    try:
        record: JobRecord = again(lambda: table.get(job))
    except JobNotFoundError:
        return None
    return record


def work(table: JobTable) -> set[str]:
    """Ends all open jobs as a dispatcher and its worker would; returns those that were answered.
    No frame is answered but as it was sent."""
    answered = set()
    while frames := again(lambda: table.open_frames(100)):
        for frame in frames:
            try:
                data = again(partial(table.data, *frame.key))
                if data is not None:
                    assert data == content(int(frame.job.removeprefix("job-")))
                    answered.add(frame.job)
            except StorageError:
                pass
            again(partial(table.ended, [(*frame.key, ENDED)], time.time()))
    assert again(table.unfinished) == 0, "a job would stay pending for good"
    return answered


def check_outlived(table: JobTable, said: list[dict[str, Any]]) -> None:
    """Every job is answered, failed with a code, or gone with a line that says so; and more are
    taken."""
    answered = work(table)
    gone = 0
    for number in range(JOBS):
        record = found(table, f"job-{number}")
        if record is None:
            gone += 1
            continue
        assert record.state == "failed", "as `work` and `fill` end them all"
        assert record.fault is not None
        if number % 3 and record.id not in answered:
            fault = record.frames[0].outcome.fault if record.frames else record.fault  # type: ignore[union-attr]
            assert fault is not None
            assert fault.code in ("STORAGE_FAILED", "UNDECODABLE_IMAGE")
    if gone:
        assert any(line["event"].startswith("jobs are lost") for line in said)
    frames = (NewFrame("a.png", "image", content(99)),)
    again(lambda: table.add(NewJob("job-99", "request", JobOptions(top_k=1), frames)))
    assert work(table) == {"job-99"}


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[list[dict[str, Any]]]:
    """The lines of the log, as they come."""
    lines: list[dict[str, Any]] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append({"event": record.getMessage(), **getattr(record, "fields", {})})

    handler = Keep()
    logging.getLogger(LOGGER).addHandler(handler)
    yield lines
    logging.getLogger(LOGGER).removeHandler(handler)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_jobs_outlive_damage_at_the_start(
    tmp_path: Path, said: list[dict[str, Any]], name: str, damage: str
) -> None:
    with closing(JobTable(tmp_path)) as table:
        fill(table)
    DAMAGES[damage](tmp_path / name)
    with closing(JobTable(tmp_path)) as table:
        # A file that is gone is told by the service, which knows whether there was one.
        gone = name == FILE and damage in ("deleted", "emptied")
        check_outlived(table, [*said, {"event": "jobs are lost"}] if gone else said)
    begun = [line for line in said if line["event"] == "the table of jobs was rebuilt"]
    assert len(begun) <= 1
    for line in begun:
        assert Path(line["moved_to"]).name.startswith(f"{FILE}.damaged-")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_jobs_outlive_damage_in_service(
    tmp_path: Path, said: list[dict[str, Any]], name: str, damage: str
) -> None:
    with closing(JobTable(tmp_path)) as table:
        fill(table)
        DAMAGES[damage](tmp_path / name)
        check_outlived(table, said)
        if damage in ("deleted", "replaced", "a folder", "a FIFO", "another database"):
            assert found(table, "job-1") is not None, "it could be read through the open file"
    begun = [line for line in said if line["event"] == "the table of jobs was rebuilt"]
    assert len(begun) <= 1
    # What is there now is what the next start finds.
    with closing(JobTable(tmp_path)) as table:
        assert found(table, "job-99") is not None


@pytest.mark.parametrize("open_", [False, True], ids=["at the start", "in service"])
@pytest.mark.parametrize("fill_with", ["zeros", "garbage"])
def test_jobs_outlive_any_one_bad_page(
    tmp_path: Path, said: list[dict[str, Any]], fill_with: str, open_: bool
) -> None:
    with closing(JobTable(tmp_path / "whole")) as table:
        fill(table)
    whole = (tmp_path / "whole" / FILE).read_bytes()
    page = bytes(PAGE) if fill_with == "zeros" else random.Random(0).randbytes(PAGE)
    for number in range(len(whole) // PAGE):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / FILE).write_bytes(whole)
        if open_:
            with closing(JobTable(folder)) as table:
                spoil_page(folder / FILE, number, page)
                check_outlived(table, said)
        else:
            spoil_page(folder / FILE, number, page)
            with closing(JobTable(folder)) as table:
                check_outlived(table, said)
        said.clear()


def test_results_outlive_damage_to_contents(tmp_path: Path) -> None:
    with closing(JobTable(tmp_path)) as table:
        fill(table)
    with closing(sqlite3.connect(tmp_path / FILE)) as other:
        roots = other.execute("SELECT rootpage FROM sqlite_schema WHERE tbl_name = 'contents'")
        pages = [number - 1 for (number,) in roots]
    for page in pages:
        spoil_page(tmp_path / FILE, page, bytes(PAGE))
    with closing(JobTable(tmp_path)) as table:
        with suppress(JobsUnavailableError):
            table.check()
        faults = {n: found(table, f"job-{n}").fault.code for n in range(JOBS)}  # type: ignore[union-attr]
    ended = {number for number, code in faults.items() if code == "UNDECODABLE_IMAGE"}
    assert ended == set(range(0, JOBS, 3)), faults


def test_jobs_outlive_the_loss_of_the_folder(tmp_path: Path, said: list[dict[str, Any]]) -> None:
    with closing(JobTable(tmp_path / "data")) as table:
        fill(table)
        (tmp_path / "data").rename(tmp_path / "elsewhere")
        check_outlived(table, said)
        assert found(table, "job-1") is not None


def test_job_is_not_acknowledged_into_a_deleted_file(tmp_path: Path) -> None:
    with closing(JobTable(tmp_path)) as table:
        fill(table)

        def begin_all() -> None:
            with table._file.writing() as db:
                db.execute("UPDATE jobs SET state = 'running'")
                (tmp_path / FILE).unlink()

        with pytest.raises(JobsUnavailableError):
            begin_all()
        assert found(table, "job-1").state == "pending"  # type: ignore[union-attr]


def test_jobs_locked_by_another_are_kept(tmp_path: Path, said: list[dict[str, Any]]) -> None:
    with closing(JobTable(tmp_path)) as table:
        fill(table)
        table._file._connection.execute("PRAGMA busy_timeout = 10")  # type: ignore[union-attr]
        with closing(sqlite3.connect(tmp_path / FILE, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(JobsUnavailableError):
                table.stop("job-1", "cancelled", JobError("CANCELLED", "it was cancelled"), 0.0)
            other.execute("ROLLBACK")
        check_outlived(table, said)
    assert said == []


def test_rebuild_cut_off_is_ended_by_the_next_start(tmp_path: Path) -> None:
    """A kill after the new file was whole and before it had its name."""
    with closing(JobTable(tmp_path / "whole")) as table:
        fill(table)
    data = tmp_path / "data"
    data.mkdir()
    (data / FILE).write_bytes(b"damaged" * 1000)
    (tmp_path / "whole" / FILE).rename(data / f".{FILE}.ready")
    with closing(JobTable(data)) as table:
        assert found(table, "job-1") is not None
    assert len(list(data.glob(f"{FILE}.damaged-*"))) == 1


def test_files_set_aside_are_bounded(tmp_path: Path) -> None:
    for _ in range(SET_ASIDE_MAX + 3):
        (tmp_path / FILE).write_bytes(b"damaged" * 1000)
        JobTable(tmp_path).close()
    assert len(list(tmp_path.glob(f"{FILE}.damaged-*"))) == SET_ASIDE_MAX


@pytest.mark.parametrize("damage", DAMAGES)
def test_frame_reader_outlives_damage(tmp_path: Path, damage: str) -> None:
    """A worker's view while the server has the table anew."""
    with closing(JobTable(tmp_path)) as table:
        fill(table)
        reader = FrameReader(tmp_path / FILE)
        assert reader.data("job-1", 0) == content(1)
        DAMAGES[damage](tmp_path / FILE)
        with suppress(JobsUnavailableError, StorageError):
            assert reader.data("job-1", 0) in (None, content(1))
        frames = (NewFrame("a.png", "image", content(99)),)
        again(lambda: table.add(NewJob("job-99", "request", JobOptions(top_k=1), frames)))
        assert reader.data("job-99", 0) == content(99)


def test_frame_changed_on_the_disk_is_not_read(tmp_path: Path) -> None:
    with closing(JobTable(tmp_path)) as table:
        fill(table)
    with closing(sqlite3.connect(tmp_path / FILE)) as other:
        other.execute("UPDATE contents SET data = ? WHERE job = 2", (content(7),))
        other.commit()
    with closing(JobTable(tmp_path)) as table, pytest.raises(StorageError):
        table.data("job-1", 0)
    with pytest.raises(StorageError):
        FrameReader(tmp_path / FILE).data("job-1", 0)


def test_row_that_is_no_json_fails_no_other(tmp_path: Path, said: list[dict[str, Any]]) -> None:
    with closing(JobTable(tmp_path)) as table:
        fill(table)
    with closing(sqlite3.connect(tmp_path / FILE)) as other:
        other.execute("UPDATE jobs SET ask = ? WHERE id = 'job-1'", (b'{"top_k": "x"}',))
        other.execute("UPDATE jobs SET state = 'lost' WHERE id = 'job-2'")
        other.commit()
    with closing(JobTable(tmp_path)) as table:
        check_outlived(table, said)
        for job in ("job-1", "job-2"):
            record = found(table, job)
            assert record is not None
            assert record.fault is not None
            assert record.fault.code == "STORAGE_FAILED"
    (line,) = [line for line in said if line["event"] == "the table of jobs was rebuilt"]
    assert (line["jobs_kept"], line["jobs_failed"]) == (JOBS - 2, 2)
