"""The queue of jobs, whose file is damaged or lost under the processes that share it."""

import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from damages import DAMAGES, spoil_page
from server_process import ROOT

from server.jobs.embedded_queue import FILE, QueueFile
from server.system.files import SET_ASIDE_MAX

FILES = (FILE, f"{FILE}-wal", f"{FILE}-shm")
PUT, TAKE = "INSERT OR REPLACE INTO results VALUES (?, ?, 0)", "SELECT value FROM results"
# A process that answers what it reads from the queue, as a worker does, until its input ends.
WORKER = """
import sys
from pathlib import Path
from server.jobs.embedded_queue import QueueFile
file = QueueFile(Path(sys.argv[1]))
print("ready", flush=True)
for line in sys.stdin:
    found = file.run("SELECT value FROM results WHERE key = ?", line.strip())
    if found:
        file.run("INSERT OR REPLACE INTO results VALUES (?, ?, 0)", "answer", found[0][0])
    print(len(found), flush=True)
"""


class Worker:
    """The other process."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(path)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._said() == "ready"

    def _said(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def answers(self, key: str) -> bool:
        """Whether it found `key`, and answered."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{key}\n")
        self._process.stdin.flush()
        return self._said() == "1"

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[QueueFile, Worker]]:
    """This process's connection to a queue, and another process with one."""
    path = tmp_path_factory.mktemp("queue") / FILE
    with closing(QueueFile(path)) as file, closing(Worker(path)) as worker:
        yield file, worker


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_both_processes_meet_again(
    shared: tuple[QueueFile, Worker], name: str, damage: str
) -> None:
    file, worker = shared
    path: Path = file._path
    for first in ("server", "worker"):
        file.run(PUT, "before", b"1")
        assert worker.answers("before")
        DAMAGES[damage](path.with_name(name))
        if first == "worker":
            worker.answers("before")
        # What was lost is sent again, as often as it is not found.
        for _ in range(3):
            file.run(PUT, "again", b"2")
            if worker.answers("again") and file.run(f"{TAKE} WHERE key = 'answer'") == [(b"2",)]:
                break
        else:
            pytest.fail("the two processes use different files")
    aside = [each for each in path.parent.iterdir() if each.name.startswith(f"{FILE}.damaged-")]
    names = {each.name.removesuffix("-wal").removesuffix("-shm") for each in aside}
    # Folders that hold something are nobody's to remove.
    assert len(names) <= SET_ASIDE_MAX + sum(each.is_dir() for each in aside)


def test_two_that_begin_a_new_file_at_once_share_it(tmp_path: Path) -> None:
    path = tmp_path / FILE
    one, other, threads = QueueFile(path), QueueFile(path), ThreadPoolExecutor(2)
    with closing(one), closing(other), threads:
        for turn in range(100):
            path.unlink()
            at_once = threading.Barrier(2)

            def use(file: QueueFile, at_once: threading.Barrier = at_once) -> None:
                at_once.wait()
                file.run(TAKE)

            list(threads.map(use, (one, other)))
            value = b"%d" % turn
            one.run(PUT, "key", value)
            assert other.run(TAKE) == [(value,)]


def test_queue_opens_while_others_lock_its_folder(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        with closing(QueueFile(tmp_path / FILE)) as file:
            file.run(PUT, "key", b"1")
            assert file.run(TAKE) == [(b"1",)]
    finally:
        os.close(folder)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_queue_opens_whatever_lies_there(tmp_path: Path, name: str, damage: str) -> None:
    path = tmp_path / FILE
    with closing(QueueFile(path)) as file:
        file.run(PUT, "key", b"1")
    DAMAGES[damage](path.with_name(name))
    with closing(QueueFile(path)) as file:
        file.run(PUT, "key", b"2")
        assert file.run(TAKE) == [(b"2",)]


def test_queue_outlives_any_one_bad_page(tmp_path: Path) -> None:
    path = tmp_path / FILE
    with closing(QueueFile(path)) as file:
        for number in range(50):
            file.run(PUT, str(number), bytes(300))
    whole = path.read_bytes()
    for number in range(len(whole) // 4096):
        path.write_bytes(whole)
        with closing(QueueFile(path)) as file:
            spoil_page(path, number, b"\xaa" * 4096)
            for key in range(50):
                file.run("DELETE FROM results WHERE key = ?", str(key))
            file.run(PUT, "key", b"2")
            assert file.run(f"{TAKE} WHERE key = 'key'") == [(b"2",)]
