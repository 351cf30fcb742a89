"""The journal as its writer keeps it: every row, within its bounds."""

import sqlite3
import threading
import time
from collections import deque
from contextlib import closing
from pathlib import Path

import pytest
from journal_rows import BOUNDS, Lost, observation, rows_of, write

from server.recognition.answers import FrameRefused
from server.store.journal.reader import Filter
from server.store.journal.schema import Row, Values, answered
from server.store.journal.writer import (
    WAITING_ROWS_MAX,
    Journal,
    JournalLimits,
    Loss,
    WriteBudget,
    Writer,
    thread_wrote,
)


def test_a_row_says_what_was_answered(tmp_path: Path) -> None:
    path, lost = tmp_path / "data" / "journal.db", Lost()
    journal = Journal(path, JournalLimits(days=0, bytes=64_000_000), lost)
    journal.answered(observation(1, at=1767225600.25, camera="st4", part="A-1"))
    journal.refused(
        FrameRefused(1767225601.0, "id-2", 503, "OVERLOADED", "parts", 3, "st4", "A-2", 0.5)
    )
    journal.refused(FrameRefused(1767225602.0, "id-3", 400, "INVALID_FIELD"))
    journal.close()
    one, two, three = rows_of(path)
    assert one == Row(
        id=1,
        time="2026-01-01T00:00:00.250Z",
        request_id="id-1",
        camera="st4",
        part="A-1",
        model="parts",
        version=3,
        label="good",
        probability=0.75,
        verdict="pass",
        cached=False,
        status=200,
        code=None,
        decode_ms=1.0,
        preprocess_ms=2.0,
        wait_ms=0.0,
        inference_ms=4.0,
        total_ms=8.0,
    )
    assert (two.status, two.code, two.label, two.total_ms) == (503, "OVERLOADED", None, 500.0)
    assert (three.camera, three.model, three.version) == (None, None, None)
    assert lost.rows == 0


# As a file of the first releases has it.
FIRST_SCHEMA = """
CREATE TABLE answers (id INTEGER PRIMARY KEY, time, request_id, camera, part, model, version, label,
  probability, verdict, cached, status, code, decode_ms, preprocess_ms, wait_ms, inference_ms,
  total_ms);
CREATE INDEX answers_time ON answers (time);
PRAGMA user_version = 1;
INSERT INTO answers (time, request_id, camera, cached, status, code)
  VALUES (1767225600.25, 'old-1', 'st4', 0, 400, 'INVALID_FIELD');
"""
UNBOUNDED = JournalLimits(days=0, bytes=64_000_000)
TOLD = FrameRefused(
    1767225601.0, "new", 400, "INVALID_FIELD", camera="st4", reason="top_k ...", address="10.0.0.7"
)


def first_journal(path: Path) -> Path:
    """A file at `path` as the first releases wrote it, with one row."""
    with closing(sqlite3.connect(path)) as base:
        base.executescript(FIRST_SCHEMA)
    return path


def test_an_older_file_is_read_as_it_is(tmp_path: Path) -> None:
    path = first_journal(tmp_path / "journal.db")
    before = path.read_bytes()
    (row,) = rows_of(path)
    assert (row.request_id, row.reason, row.address) == ("old-1", None, None)
    assert rows_of(path, Filter(camera="st4", code="INVALID_FIELD")) == [row]
    assert rows_of(path, Filter(address="10.0.0.7")) == []
    assert path.read_bytes() == before


def test_an_older_file_gets_the_new_columns(tmp_path: Path) -> None:
    path = first_journal(tmp_path / "journal.db")
    journal = Journal(path, UNBOUNDED, Lost())
    journal.refused(TOLD)
    journal.close()
    old, new = rows_of(path)
    assert (old.id, old.request_id, old.reason) == (1, "old-1", None)
    assert (new.id, new.reason, new.address) == (2, "top_k ...", "10.0.0.7")
    assert rows_of(path, Filter(address="10.0.0.7")) == [new]
    again = Journal(path, UNBOUNDED, Lost())
    again.refused(TOLD)
    again.close()
    assert len(rows_of(path)) == 3


def test_an_extended_file_serves_an_older_program(tmp_path: Path) -> None:
    """One that goes back to the release before loses no row, and nor do we afterwards."""
    path = tmp_path / "journal.db"
    journal = Journal(first_journal(path), UNBOUNDED, Lost())
    journal.refused(TOLD)
    journal.close()
    with closing(sqlite3.connect(path)) as base, base:
        assert base.execute("PRAGMA user_version").fetchone() == (1,)
        base.execute(
            "INSERT INTO answers (time, request_id, cached, status) VALUES (1, 'b', 0, 200)"
        )
    assert [row.request_id for row in rows_of(path)] == ["old-1", "new", "b"]


def test_a_file_that_can_not_be_extended_keeps_its_rows(tmp_path: Path) -> None:
    path, lost = first_journal(tmp_path / "journal.db"), Lost()
    writer = Writer(path, UNBOUNDED, Loss(lost))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("BEGIN IMMEDIATE")
        left = write(writer, [answered(observation(1))])
        assert len(left) == 1
        other.execute("ROLLBACK")
    writer.turn(left, time.time(), 2)
    writer.close()
    assert [row.request_id for row in rows_of(path)] == ["old-1", "id-1"]
    assert lost.rows == 0


def test_rows_that_come_after_the_end_are_counted(tmp_path: Path) -> None:
    path, lost = tmp_path / "journal.db", Lost()
    journal = Journal(path, BOUNDS, lost)
    journal.answered(observation(1))
    journal.close()
    journal.answered(observation(2))
    journal.refused(FrameRefused(time.time(), "id-3", 503, "OVERLOADED"))
    assert lost.rows == 2
    assert [row.request_id for row in rows_of(path)] == ["id-1"]


def test_rows_of_many_threads_are_all_there(tmp_path: Path) -> None:
    path, lost = tmp_path / "journal.db", Lost()
    written: list[int] = []
    journal = Journal(path, BOUNDS, lost, written.append)

    def camera(name: int) -> None:
        for number in range(500):
            journal.answered(observation(number, camera=f"c{name}"))

    threads = [threading.Thread(target=camera, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.settle(60)
    assert len(rows_of(path)) == 4000
    journal.answered(observation(501))
    journal.close()
    assert not list(tmp_path.glob("*-wal")), "closed cleanly, all is in the one file"
    rows = rows_of(path)
    assert len(rows) == sum(written) == 4001
    for name in range(8):
        mine = [row.request_id for row in rows if row.camera == f"c{name}"]
        assert mine == [f"id-{number}" for number in range(500)], "in their order"


def test_what_waits_is_bounded_and_the_rest_counted(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("no folder")
    lost = Lost()
    journal = Journal(tmp_path / "data" / "journal.db", BOUNDS, lost)
    for number in range(WAITING_ROWS_MAX + 50):
        journal.answered(observation(number))
    assert lost.rows == 50
    journal.close()
    assert lost.rows == WAITING_ROWS_MAX + 50


def test_old_rows_go(tmp_path: Path) -> None:
    path, now = tmp_path / "journal.db", time.time()
    writer = Writer(path, JournalLimits(days=1, bytes=64_000_000), Loss(Lost()))
    ages = [90_000, 86_500, 86_300, 10, 0]
    write(writer, [answered(observation(age, at=now - age)) for age in ages], now, 0)
    assert [row.request_id for row in rows_of(path)] == ["id-86300", "id-10", "id-0"]
    write(writer, [], now + 30, 30)
    write(writer, [], now + 230, 230)
    assert len(rows_of(path)) == 2
    write(writer, [], now + 1e6, 1e6)
    assert len(rows_of(path)) == 1, "the newest stays, so that ids go on"
    writer.close()


def test_age_is_looked_at_once_a_minute(tmp_path: Path) -> None:
    path, now = tmp_path / "journal.db", time.time()
    writer = Writer(path, JournalLimits(days=1, bytes=64_000_000), Loss(Lost()))
    write(writer, [answered(observation(age, at=now - age)) for age in (86_380, 0)], now, 0)
    write(writer, [], now + 59, 59)
    assert len(rows_of(path)) == 2
    write(writer, [], now + 60, 60)
    assert len(rows_of(path)) == 1
    writer.close()


def test_a_jump_of_the_clock_makes_no_row_old(tmp_path: Path, said: list[str]) -> None:
    """Forty days ahead for a while, as by one wrong answer of a time server."""
    path, wall = tmp_path / "journal.db", time.time()
    writer = Writer(path, JournalLimits(days=30, bytes=64_000_000), Loss(Lost()))
    rows = [answered(observation(n, at=wall - n)) for n in range(500)]
    write(writer, [answered(observation(1000, at=wall - 31 * 86_400)), *rows], wall, 0)
    assert len(rows_of(path)) == 500
    for now in range(60, 1860, 60):
        write(writer, [], wall + 40 * 86_400 + now, now)
    for now in range(1860, 4000, 60):
        write(writer, [], wall + now, now)
    assert len(rows_of(path)) == 500
    assert said == ["the clock jumped, nothing goes by its age"] * 2, "there and back"
    write(writer, [answered(observation(1001, at=wall - 31 * 86_400))], wall + 5460, 5460)
    write(writer, [answered(observation(1002))], wall + 5520, 5520)
    assert "id-1001" not in [row.request_id for row in rows_of(path)], "it is believed again"
    writer.close()


@pytest.mark.parametrize("megabytes", [1, 4])
def test_the_size_holds_and_the_oldest_go(tmp_path: Path, megabytes: int) -> None:
    path, most = tmp_path / "journal.db", megabytes * 1_000_000
    writer = Writer(path, JournalLimits(days=0, bytes=most), Loss(Lost()))
    largest = 0
    for turn in range(30):
        rows = [answered(observation(turn * 1000 + n, camera="station-4")) for n in range(1000)]
        assert not write(writer, rows, now=turn)
        largest = max(largest, sum(file.stat().st_size for file in tmp_path.glob("journal.db*")))
    shm = 32_768
    assert largest <= most + shm
    writer.close()
    ids = [int(row.request_id.removeprefix("id-")) for row in rows_of(path)]
    assert ids == list(range(ids[0], 30_000)), "without gaps, to the newest"
    assert len(ids) * 100 > most / 3, "the room is used"


def test_no_more_is_written_a_minute_than_set(tmp_path: Path) -> None:
    """Counted by the kernel, over any 60 seconds, beside rows that come without end."""
    if thread_wrote() is None:
        pytest.skip("this kernel does not account for what a thread writes")
    per_minute, lost = 400_000, Lost()
    loss = Loss(lost)
    writer = Writer(tmp_path / "journal.db", JournalLimits(30, 64_000_000, per_minute), loss)
    rows: deque[Values] = deque()
    written: list[tuple[float, int]] = []
    for second in range(0, 300, 2):
        rows.extend(answered(observation(n, camera="station-4")) for n in range(100))
        before = thread_wrote()
        writer.turn(rows, time.time(), second)
        after = thread_wrote()
        assert before is not None
        assert after is not None
        written.append((second, after - before))
    for start, _ in written:
        assert sum(size for at, size in written if start <= at < start + 60) <= per_minute
    assert sum(size for _, size in written) > 5 * per_minute * 0.4, "what may be written is"
    assert len(rows) + len(rows_of(tmp_path / "journal.db")) == 15_000
    writer.turn(rows, time.time(), 300, last=True)
    assert not rows
    writer.close()
    assert len(rows_of(tmp_path / "journal.db")) == 15_000


def test_a_budget_where_the_kernel_does_not_say() -> None:
    budget = WriteBudget(1000, wrote=lambda: None)
    assert budget.room(0) == 250
    for at in (0, 1, 2):
        with budget.step(at, 250):
            pass
    assert budget.room(3) == 0
    assert budget.room(60) == 250
    assert WriteBudget(0).room(0) == float("inf")
