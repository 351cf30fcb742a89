"""The folder `data`: one server's alone."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from images import encode, plain
from job_workers import LiveWorker, await_that, children, end, settled, submit
from server_process import ROOT, LiveServer, live_server

from server.errors import StartError
from server.store.data_lock import lock_data

GREEN = encode(plain((0, 255, 0)), "PNG")


def refused(server: LiveServer) -> str:
    """What a server says that does not start."""
    assert server.process.wait(60) == 1
    server.stop()
    (line,) = [each["text"] for each in server.lines if "text" in each]
    return str(line)


def test_second_server_on_one_data_folder_is_refused(colors: Path, tmp_path: Path) -> None:
    with live_server(models=colors, data=tmp_path) as first:
        text = refused(LiveServer(models=colors, data=tmp_path))
        assert text.startswith("lineside: ")
        assert str(tmp_path) in text
        assert re.search(rf"process {first.process.pid}\b", text)
        assert first.recognize(GREEN).status_code == 200
    with live_server(models=colors, data=tmp_path) as next_one:
        assert next_one.recognize(GREEN).status_code == 200


def test_lock_outlives_a_worker(colors: Path, tmp_path: Path) -> None:
    with live_server(models=colors, data=tmp_path) as first:
        before = first.worker_pid()
        end(before)
        await_that(
            lambda: [pid for pid in children(first.process.pid) if pid != before], "a new worker"
        )
        assert f"process {first.process.pid}" in refused(LiveServer(models=colors, data=tmp_path))
        first.await_listening()
        assert first.recognize(GREEN).status_code == 200


def test_killed_server_leaves_no_lock(colors: Path, tmp_path: Path) -> None:
    first = LiveServer(models=colors, data=tmp_path)
    try:
        first.await_ready()
        # Only the server itself: its worker, which still holds the lock, ends a moment later.
        end(first.process.pid)
        with live_server(models=colors, data=tmp_path) as second:
            assert second.recognize(GREEN).status_code == 200
    finally:
        first.stop(signal.SIGKILL)


def test_workers_and_commands_need_no_lock(colors: Path, tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith("LINESIDE_")}
    env |= {"LINESIDE_DATA": str(tmp_path), "LINESIDE_MODELS": str(colors)}
    env |= {"LINESIDE_KEYS_FILE": str(tmp_path / "keys.jsonl")}
    with live_server(models=colors, data=tmp_path, job_workers=0) as server:
        job = submit(server, GREEN)
        worker = LiveWorker(models=colors, data=tmp_path)
        try:
            assert settled(server, job)["status"] == "succeeded"
        finally:
            worker.stop()
        await_that((tmp_path / "journal.db").is_file, "the journal")
        for words in (["check"], ["journal"], ["key", "add", "a"], ["key", "list"]):
            done = subprocess.run(
                [sys.executable, "-m", "server", *words],
                cwd=ROOT,
                env=env,
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert done.returncode == 0, done.stderr


def test_folder_that_can_not_be_made_needs_no_lock(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert lock_data(tmp_path / "file" / "data") == (None, "")


PATHS = [str(ROOT), str(ROOT / "tests" / "support")]
# A server in which flock(2) fails, as on file systems without locks.
NO_LOCKS = """
import platform, sys
from sandboxed import forbid
from server.__main__ import main

forbid({"x86_64": 73, "aarch64": 32}[platform.machine()])
sys.exit(main(["serve"]))
"""


def test_file_system_without_locks_is_warned_of(colors: Path, tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(f"import sys; sys.path[:0] = {PATHS}\n{NO_LOCKS}")
    with live_server(str(tmp_path / "server.py"), models=colors, data=tmp_path) as server:
        assert server.recognize(GREEN).status_code == 200
    warnings = [line for line in server.lines if line["event"] == "data folder can't be locked"]
    assert [line["data"] for line in warnings] == [str(tmp_path)]


def test_lock_is_refused_within_one_process_too(tmp_path: Path) -> None:
    held = lock_data(tmp_path / "data").descriptor
    assert held is not None
    with pytest.raises(StartError, match=f"process {os.getpid()}, uses the data folder"):
        lock_data(tmp_path / "data")
    os.close(held)
    again = lock_data(tmp_path / "data").descriptor
    assert again is not None
    os.close(again)
