"""The journal as its writer keeps it, whatever happens to its file, its process and the disk."""

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from journal_rows import BOUNDS, Lost, observation, rows_of, write
from server_process import ROOT, environ_without_coverage

from server.errors import JournalUnreadableError
from server.store.journal.schema import Values, answered
from server.store.journal.writer import (
    Journal,
    JournalLimits,
    Loss,
    Writer,
)


def test_a_row_that_can_not_be_kept_holds_no_other_up(tmp_path: Path) -> None:
    path, lost = tmp_path / "journal.db", Lost()
    written: list[int] = []
    writer = Writer(path, BOUNDS, Loss(lost), written.append)
    bad = answered(observation(2, camera="\ud800"))
    good = [answered(observation(n)) for n in (1, 3)]
    assert not write(writer, [good[0], bad, good[1]])
    writer.close()
    assert [row.request_id for row in rows_of(path)] == ["id-1", "id-3"]
    assert (lost.rows, sum(written)) == (1, 2)


@pytest.mark.parametrize("damage", ["no database", "torn pages"])
def test_a_damaged_file_is_set_aside_and_begun_anew(tmp_path: Path, damage: str) -> None:
    path, lost = tmp_path / "journal.db", Lost()
    writer = Writer(path, BOUNDS, Loss(lost))
    write(writer, [answered(observation(n)) for n in range(500)])
    writer.close()
    data = bytearray(path.read_bytes())
    if damage == "no database":
        data[:100] = b"x" * 100
    else:
        data[4096:] = os.urandom(len(data) - 4096)
    path.write_bytes(data)
    writer = Writer(path, BOUNDS, Loss(lost))
    left = write(writer, [answered(observation(1000))])
    assert len(left) == 1
    writer.turn(left, time.time(), 2)
    writer.close()
    assert [row.request_id for row in rows_of(path)] == ["id-1000"]
    (aside,) = tmp_path.glob("journal.db.damaged-*")
    assert aside.read_bytes()[4096:8192] == data[4096:8192]
    assert lost.rows == 0


def test_a_file_that_is_taken_away_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    writer = Writer(path, BOUNDS, Loss(Lost()))
    write(writer, [answered(observation(1))])
    path.unlink()
    write(writer, [answered(observation(2))])
    assert [row.request_id for row in rows_of(path)] == ["id-2"]
    writer.close()


def test_another_formats_file_is_set_aside_unchanged(tmp_path: Path, said: list[str]) -> None:
    path = tmp_path / "journal.db"
    with closing(sqlite3.connect(path)) as base:
        base.execute("PRAGMA user_version = 7")
    writer = Writer(path, BOUNDS, Loss(Lost()))
    left = write(writer, [answered(observation(1))])
    assert not write(writer, list(left))
    writer.close()
    assert said == ["the journal is damaged, and begun anew"]
    (aside,) = tmp_path.glob("journal.db.damaged-*")
    with closing(sqlite3.connect(aside)) as base:
        assert base.execute("PRAGMA user_version").fetchone() == (7,)
    assert [row.request_id for row in rows_of(path)] == ["id-1"]


def test_one_who_holds_the_file_delays_and_loses_nothing(tmp_path: Path) -> None:
    path, lost = tmp_path / "journal.db", Lost()
    writer = Writer(path, BOUNDS, Loss(lost))
    write(writer, [answered(observation(1))])
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        left = write(writer, [answered(observation(2))])
        assert len(left) == 1
        other.execute("ROLLBACK")
    writer.turn(left, time.time(), 2)
    assert [row.request_id for row in rows_of(path)] == ["id-1", "id-2"]
    writer.close()


def test_open_file_is_not_read_as_immutable(tmp_path: Path) -> None:
    """What is written ahead would be missing from the answer."""
    path = tmp_path / "journal.db"
    writer = Writer(path, BOUNDS, Loss(Lost()))
    write(writer, [answered(observation(1))])
    writer.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("DELETE FROM answers")
        with pytest.raises(JournalUnreadableError, match="locked") as caught:
            rows_of(path)
        assert caught.value.retry_after
    assert rows_of(path) == []


KILLED = """
import sys
from pathlib import Path
from server.store.journal.writer import Journal
from journal_rows import BOUNDS, observation
journal = Journal(Path(sys.argv[1]), BOUNDS, lambda rows: None)
number = int(sys.argv[2])
while True:
    journal.answered(observation(number, part="x" * 100))
    number += 1
    if number % 500 == 0:
        journal.settle(60)
        print(number, flush=True)
"""


def test_kill_9_damages_and_loses_nothing_written(tmp_path: Path) -> None:
    """Kill -9 damages nothing and loses nothing that was written."""
    path, begin = tmp_path / "journal.db", 0
    for turn in range(5):
        process = subprocess.Popen(
            [
                *(sys.executable, "-c", KILLED),
                *(str(path), str(begin)),
            ],
            cwd=ROOT,
            env={
                **environ_without_coverage(),
                "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'support'}",
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        for _ in range(2 + turn):
            written = int(process.stdout.readline())
        process.kill()
        process.communicate()
        Journal(path, BOUNDS, Lost()).close()  # writes what waited
        rows = rows_of(path)
        numbers = [int(row.request_id.removeprefix("id-")) for row in rows]
        assert numbers == list(range(len(rows)))
        assert len(rows) >= written
        with closing(sqlite3.connect(path)) as base:
            assert base.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        begin = len(rows)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB; skips where none may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Takes all the room there is."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return filler


@pytest.mark.parametrize(
    ("per_minute", "last", "reason"),
    [
        (1 << 20, False, "more rows come than journal_write_mb_per_minute lets be written"),
        (0, False, "more rows come than the disk takes"),
        (0, True, "their frames ended after the journal began to close"),
    ],
)
def test_rows_that_are_lost_are_told_with_the_reason(
    tmp_path: Path,
    departed: None,
    caplog: pytest.LogCaptureFixture,
    per_minute: int,
    last: bool,
    reason: str,
) -> None:
    loss = Loss(Lost())
    writer = Writer(tmp_path / "journal.db", JournalLimits(0, 64_000_000, per_minute), loss)
    loss.add(3)
    writer.turn(deque(), time.time(), 0, last=last)
    writer.close()
    assert [record.__dict__["fields"] for record in caplog.records] == [{"reason": reason}]


def test_a_full_disk_heals(small_disk: Path, said: list[str]) -> None:
    path, lost = small_disk / "data" / "journal.db", Lost()
    writer = Writer(path, BOUNDS, Loss(lost))
    write(writer, [answered(observation(n)) for n in range(100)])
    filler = fill(small_disk)
    rows: deque[Values] = deque()
    for turn in range(20):
        rows.extend(answered(observation(100 + turn * 100 + n)) for n in range(100))
        writer.turn(rows, time.time(), turn)
    assert rows, "the disk was not full"
    assert len(rows_of(path)) + len(rows) == 2100
    assert said == ["the journal can't be written, frames go on"]
    filler.unlink()
    writer.turn(rows, time.time(), 21)
    assert not rows
    assert said[1:] == ["the journal is written again"]
    writer.close()
    numbers = [int(row.request_id.removeprefix("id-")) for row in rows_of(path)]
    assert numbers == list(range(2100))


def remount(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)


def test_a_disk_that_turns_read_only_is_still_read(small_disk: Path, said: list[str]) -> None:
    path = small_disk / "journal.db"
    writer = Writer(path, BOUNDS, Loss(Lost()))
    write(writer, [answered(observation(n)) for n in range(100)])
    writer.close()
    remount(small_disk, "ro")
    left = write(writer, [answered(observation(100))])
    assert len(left) == 1
    assert said == ["the journal can't be written, frames go on"]
    assert len(rows_of(path)) == 100
    remount(small_disk, "rw")
    writer.turn(left, time.time(), 2)
    writer.close()
    assert len(rows_of(path)) == 101
    assert said[1:] == ["the journal is written again"]


def test_journal_of_killed_server_read_on_read_only_disk(tmp_path: Path, small_disk: Path) -> None:
    """The journal that a killed server left on a read-only disk is read."""
    writer = Writer(tmp_path / "journal.db", BOUNDS, Loss(Lost()))
    write(writer, [answered(observation(n)) for n in range(100)])
    for file in tmp_path.glob("journal.db*"):
        shutil.copy(file, small_disk)
    writer.close()
    remount(small_disk, "ro")
    assert len(rows_of(small_disk / "journal.db")) == 100
