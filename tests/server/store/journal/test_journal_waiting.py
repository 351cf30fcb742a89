"""Rows that wait to be written outlive kill -9, whatever happens to the files that keep them."""

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from server_process import ROOT, environ_without_coverage

from server.recognition.answers import FrameRefused
from server.store.journal.reader import Filter, JournalReader
from server.store.journal.schema import COLUMNS, Values, refused
from server.store.journal.waiting import NAMES, WaitingRows
from server.store.journal.writer import Journal, JournalLimits

BOUNDS = JournalLimits(days=0, bytes=64_000_000)
# Takes in rows, fewer than a turn of the journal's thread may write meanwhile, and is killed.
KILLED = """
import os, signal, sys
from pathlib import Path
from server.recognition.answers import FrameRefused
from server.store.journal.writer import Journal, JournalLimits
journal = Journal(Path(sys.argv[1]), JournalLimits(days=0, bytes=64_000_000), lambda rows: None)
for number in range(200):
    journal.refused(FrameRefused(1.5 + number, f"id-{number}", 503, "OVERLOADED"))
os.kill(os.getpid(), signal.SIGKILL)
"""


def frame(number: int) -> FrameRefused:
    return FrameRefused(1.5 + number, f"id-{number}", 503, "OVERLOADED", camera="st4")


ROWS = [refused(frame(number)) for number in range(5)]


def ids_of(path: Path) -> list[str]:
    """The request ids in the journal, oldest first."""
    with closing(JournalReader(path, Filter())) as reader:
        return [row.request_id for page in reader.pages("oldest") for row in page]


def leave(folder: Path) -> Path:
    """Five rows that wait, as a killed process leaves them; the file that has them."""
    waiting = WaitingRows(folder)
    for row in ROWS:
        assert waiting.put(row, lambda _: True)
    waiting.close()
    return folder / NAMES[0]


def open_journal(path: Path, lost: list[int] | None = None) -> Journal:
    return Journal(path, BOUNDS, (lost if lost is not None else []).append)


def written(path: Path) -> list[str]:
    """The request ids in the journal after another process of it."""
    open_journal(path).close()
    return ids_of(path)


def sizes(folder: Path) -> list[int]:
    return [(folder / name).stat().st_size for name in NAMES if (folder / name).exists()]


def test_kill_9_loses_no_row_that_was_taken_in(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)],
        cwd=ROOT,
        env={**environ_without_coverage(), "PYTHONPATH": str(ROOT)},
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert written(path) == [f"id-{number}" for number in range(200)]
    assert not any(sizes(tmp_path)), "what is written waits no more"


def test_rows_that_were_written_are_not_written_again(tmp_path: Path) -> None:
    """The process may be killed between the two."""
    data = leave(tmp_path).read_bytes()
    path = tmp_path / "journal.db"
    assert len(written(path)) == 5
    (tmp_path / NAMES[1]).write_bytes(data)
    assert len(written(path)) == 5


def test_new_rows_follow_those_that_were_left(tmp_path: Path) -> None:
    leave(tmp_path)
    path = tmp_path / "journal.db"
    journal = open_journal(path)
    journal.refused(frame(5))
    journal.close()
    assert ids_of(path) == [f"id-{number}" for number in range(6)]


@pytest.mark.parametrize("cut", [1, 8, 60])
def test_a_row_that_is_not_whole_is_left_out(tmp_path: Path, cut: int) -> None:
    file = leave(tmp_path)
    os.truncate(file, file.stat().st_size - cut)
    assert written(tmp_path / "journal.db") == [f"id-{number}" for number in range(4)]


def test_damage_ends_the_rows_and_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = leave(tmp_path)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)
    assert written(tmp_path / "journal.db") == ["id-0", "id-1"]
    assert caplog.messages[0] == "rows that waited for the journal are damaged"


@pytest.mark.parametrize("keep", [10, 150])
def test_rows_after_half_a_row_outlive_the_next_kill(tmp_path: Path, keep: int) -> None:
    """Also if the file has no whole row, or nothing of ours at all."""
    os.truncate(leave(tmp_path), keep)
    (tmp_path / NAMES[1]).write_bytes(b"x" * 1000)
    for number in range(5, 8):
        waiting = WaitingRows(tmp_path)
        assert waiting.put(refused(frame(number)), lambda _: True)
        waiting.settle(1, [])  # nothing is written; the other file is next
        assert waiting.put(refused(frame(number + 3)), lambda _: True)
        waiting.close()
    assert written(tmp_path / "journal.db")[-6:] == [f"id-{number}" for number in range(5, 11)]


def test_rows_of_other_programs_are_written(tmp_path: Path) -> None:
    """One before this program had fewer columns, one after it may have more."""
    for row in (ROWS[0][:20], (*ROWS[1], "more")):
        waiting = WaitingRows(tmp_path)
        assert waiting.put(row, lambda _: True)
        waiting.close()
    assert written(tmp_path / "journal.db") == ["id-0", "id-1"]


def test_a_row_that_no_journal_can_hold_stops_no_other(tmp_path: Path) -> None:
    version = COLUMNS.index("version") - 1
    waiting = WaitingRows(tmp_path)
    for row in ((*ROWS[0][:version], 1 << 63, *ROWS[0][version + 1 :]), ROWS[1]):
        assert waiting.put(row, lambda _: True)
    waiting.close()
    lost: list[int] = []
    path = tmp_path / "journal.db"
    open_journal(path, lost).close()
    assert (ids_of(path), lost) == (["id-1"], [1])
    assert not any(sizes(tmp_path))


def test_rows_left_keep_the_journal_within_its_bytes(tmp_path: Path) -> None:
    path, limits = tmp_path / "journal.db", JournalLimits(days=0, bytes=1 << 20)
    waiting = WaitingRows(tmp_path)
    for number in range(5000):
        assert waiting.put((*refused(frame(number))[:-3], "x" * 200, None, None), lambda _: True)
    waiting.close()
    Journal(path, limits, lambda rows: None).close()
    assert path.stat().st_size <= limits.bytes
    assert ids_of(path)[-1] == "id-4999"


@pytest.mark.parametrize("kept", [True, False])
def test_a_stop_says_what_becomes_of_rows_it_can_not_write(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kept: bool
) -> None:
    path, lost = tmp_path / "journal.db", list[int]()
    assert written(path) == []
    for name in NAMES if not kept else ():
        (tmp_path / name).mkdir()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        journal = open_journal(path, lost)
        journal.refused(frame(0))
        journal.refused(frame(1))
        journal.close()
    if kept:
        assert (lost, caplog.messages[-1]) == ([], "rows of the journal wait for the next start")
        assert written(path) == ["id-0", "id-1"]
    else:
        assert (lost, caplog.messages[-1]) == ([2], "rows of the journal are lost by the stop")


@pytest.mark.parametrize("kind", ["fifo", "folder", "link"])
def test_another_thing_in_place_of_a_file_stops_no_row(tmp_path: Path, kind: str) -> None:
    for name in NAMES:
        if kind == "fifo":
            os.mkfifo(tmp_path / name)
        elif kind == "folder":
            (tmp_path / name).mkdir()
        else:
            (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    lost: list[int] = []
    path = tmp_path / "journal.db"
    journal = open_journal(path, lost)
    journal.refused(frame(1))
    journal.close()
    assert (ids_of(path), lost) == (["id-1"], [])


def test_files_stay_small_while_rows_come(tmp_path: Path) -> None:
    """Also if some always wait: one of the two is emptied while the other takes rows."""
    waiting = WaitingRows(tmp_path)
    queue: list[Values] = []

    def submit(row: Values) -> bool:
        queue.append(row)
        return True

    for number in range(1000):
        waiting.put(ROWS[number % 5], submit)
        if number % 10 == 9:
            del queue[:-3]
            waiting.settle(0, queue)
    one_row = leave(tmp_path / "other").stat().st_size / 5
    assert sum(sizes(tmp_path)) < 40 * one_row
    waiting.close()
    assert len(WaitingRows(tmp_path).left) >= 3


def test_a_deleted_file_is_made_anew(tmp_path: Path) -> None:
    waiting = WaitingRows(tmp_path)
    waiting.put(ROWS[0], lambda _: True)
    for name in NAMES:
        (tmp_path / name).unlink(missing_ok=True)
    for _ in range(2):
        waiting.settle(0, [])
        waiting.put(ROWS[1], lambda _: True)
    waiting.close()
    assert WaitingRows(tmp_path).left == [ROWS[1]]


def test_nothing_is_kept_if_the_bytes_are_limited(tmp_path: Path) -> None:
    limits = JournalLimits(days=1, bytes=1 << 20, per_minute=1 << 20)
    journal = Journal(tmp_path / "journal.db", limits, lambda rows: None)
    journal.refused(frame(1))
    journal.close()
    assert not sizes(tmp_path)
