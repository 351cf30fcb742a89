"""A server whose data files are damaged, deleted or replaced, at the start and in service: frames
are answered all the while, jobs too, and nobody has to start it again."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from damages import DAMAGES
from images import encode, plain
from job_workers import await_that, count_jobs, end, job_workers, patiently
from server_process import LiveServer, live_server

from server.jobs.embedded_queue import FILE as QUEUE
from server.jobs.service import LOCK
from server.store.jobs.records import FILE as JOBS
from server.store.journal.schema import FILE as JOURNAL

GREEN = encode(plain((0, 255, 0)), "PNG")
FOLDER = "samples"
FILES = (JOURNAL, JOBS, QUEUE, LOCK, FOLDER)
AT_START = ("deleted", "garbage", "a folder", "a FIFO", "a link to nowhere", "another database")
IN_SERVICE = ("deleted", "emptied", "garbage", "a FIFO", "another database")
# Damage that no open file of the server outlives.
IN_PLACE = ("emptied", "garbage")
ENDED = ("succeeded", "failed")


def check_frames(server: LiveServer) -> None:
    """A frame is answered, and a job from its 202 to its result."""
    answer = server.recognize(GREEN)
    assert answer.json()["predictions"][0]["label"] == "green"
    url = f"{server.url}/v1/jobs"
    taken = patiently(lambda: requests.post(url, GREEN, timeout=60))
    assert taken.status_code == 202, taken.text
    check_succeeded(outcome(server, taken.json()["job_id"]))


def check_succeeded(job: dict[str, Any]) -> None:
    assert job["status"] == "succeeded", json.dumps(job)


def is_lost(server: LiveServer, job: dict[str, Any]) -> bool:
    """Whether a job fell to damage of the table's file, and is reported as the guide promises."""
    if job["status"] == 404:
        return bool(said(server, "jobs are lost"))
    return bool(job["status"] == "failed" and job["error"]["code"] == "STORAGE_FAILED")


def outcome(server: LiveServer, job: str) -> dict[str, Any]:
    """The job once it has ended; with the status 404 if the server knows of none."""

    def look() -> dict[str, Any] | None:
        answer = patiently(lambda: requests.get(f"{server.url}/v1/jobs/{job}", timeout=60))
        if answer.status_code == 404:
            return {"status": 404}
        found: dict[str, Any] = answer.json()
        return found if found["status"] in ENDED else None

    found: dict[str, Any] = await_that(look, f"the end of job {job}")
    return found


def submit(server: LiveServer) -> str:
    url = f"{server.url}/v1/jobs"
    return str(patiently(lambda: requests.post(url, GREEN, timeout=60)).json()["job_id"])


def journal(server: LiveServer) -> int:
    """The status of the journal's route."""
    return requests.get(f"{server.url}/v1/journal", timeout=60).status_code


def damage(path: Path, how: str) -> None:
    """Damage a file, or put what is damaged in the place of a folder. A server in service may make
    the folder again at any moment: then once more."""

    def damaged() -> bool:
        if path.is_dir() and not path.is_symlink():
            removed = Path(tempfile.mkdtemp(prefix="removed-", dir=path.parent.parent))
            path.rename(removed / path.name)
            shutil.rmtree(removed, ignore_errors=True)
        try:
            DAMAGES[how](path)
        except (IsADirectoryError, FileExistsError):
            return False
        return True

    await_that(damaged, f"{path.name} to be {how}")


def said(server: LiveServer, event: str) -> list[dict[str, Any]]:
    return [line for line in list(server.lines) if line["event"].startswith(event)]


@pytest.fixture(scope="module")
def left(colors: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What a server leaves: its data, with a job that waits."""
    data = tmp_path_factory.mktemp("left")
    settings: dict[str, Any] = {"samples": "on", "samples_share": 1}
    with live_server(models=colors, data=data, **settings) as server:
        check_frames(server)
        await_that(lambda: (data / FOLDER).is_dir(), "a sample")
        await_that(lambda: (data / JOURNAL).is_file(), "the journal")
    with live_server(models=colors, data=data, job_workers=0) as server:
        job = submit(server)
    assert count_jobs(data, "pending") == 1
    return data, job


@pytest.mark.parametrize("how", AT_START)
def test_server_starts_on_any_damage(
    colors: Path, left: tuple[Path, str], tmp_path: Path, how: str
) -> None:
    before, job = left
    data = shutil.copytree(before, tmp_path / "data")
    for name in FILES:
        if name != LOCK or how != "deleted":  # by which a deleted table is known to be one
            damage(data / name, how)
    settings: dict[str, Any] = {"samples": "on", "samples_share": 1}
    with live_server(models=colors, data=data, **settings) as server:
        assert server.recognize(GREEN).status_code == 200
        assert outcome(server, job)["status"] == 404
        await_that(lambda: said(server, "jobs are lost"), "a line that says so")
        check_frames(server)
        await_that(lambda: journal(server) == 200, "the journal")
        if how != "deleted":
            for name in (JOURNAL, JOBS, QUEUE):
                aside = {
                    path.name.removesuffix("-wal").removesuffix("-shm")
                    for path in data.glob(f"{name}.damaged-*")
                }
                assert len(aside) == 1, name
        assert len(said(server, "the table of jobs was rebuilt")) == (how != "deleted")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, for the test to make read-only."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", folder):
        pytest.skip("no tmpfs can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def mount(*words: object) -> int:
    """The exit code of mount(8)."""
    return subprocess.run(["mount", *map(str, words)], capture_output=True, check=False).returncode


@pytest.mark.parametrize("how", ["read-only", "not there"])
def test_jobs_go_on_once_they_can_unasked(
    colors: Path, left: tuple[Path, str], disk: Path, tmp_path: Path, how: str
) -> None:
    before, _ = left
    shutil.copytree(before, disk / "data")
    data = tmp_path / "link"
    data.symlink_to(disk / "data" if how == "read-only" else tmp_path / "later" / "data")
    if how == "read-only":
        assert mount("-o", "remount,ro", disk) == 0
    with live_server(models=colors, data=data) as server:
        assert server.recognize(GREEN).status_code == 200
        if how == "read-only":
            server.await_event("jobs can't go on")
            assert mount("-o", "remount,rw", disk) == 0
        else:
            (tmp_path / "later").symlink_to(disk)
        await_that(lambda: count_jobs(data, "succeeded") == 2, "the end of the job that waited")
        assert len(said(server, "jobs can't go on")) == (how == "read-only")


@pytest.fixture(scope="module")
def serving(colors: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    data = tmp_path_factory.mktemp("data")
    with live_server(models=colors, data=data, samples="on", samples_share=1) as server:
        check_frames(server)
        await_that(lambda: (data / JOURNAL).is_file(), "the journal")
        server.damaged = data  # type: ignore[attr-defined]
        yield server


@pytest.mark.parametrize("how", IN_SERVICE)
@pytest.mark.parametrize("name", FILES)
def test_server_outlives_damage_in_service(serving: LiveServer, name: str, how: str) -> None:
    data: Path = serving.damaged  # type: ignore[attr-defined]
    worker = serving.worker_pid()
    jobs = [submit(serving) for _ in range(3)]
    damage(data / name, how)
    assert serving.recognize(GREEN).status_code == 200
    jobs.append(submit(serving))  # it may be taken before the damage is detected
    ended = [outcome(serving, job) for job in jobs]
    lost = [job for job in ended if is_lost(serving, job)]
    for job in ended:
        if job not in lost:
            check_succeeded(job)
    if name == JOBS and how in IN_PLACE:
        # If no job met the damage, pages in memory hide it, and the next test's jobs would.
        if not lost:
            (data / JOBS).unlink(missing_ok=True)
    else:
        assert not lost, "they were there to be read: " + json.dumps(lost)
    check_frames(serving)
    await_that(lambda: journal(serving) == 200, "the journal")
    assert serving.worker_pid() == worker, "the process that answers frames died"


def test_queue_deleted_and_its_worker_dead(serving: LiveServer) -> None:
    data: Path = serving.damaged  # type: ignore[attr-defined]
    check_frames(serving)
    for pid in job_workers(serving):
        for file in data.glob(f"{QUEUE}*"):
            if file.is_file():
                file.unlink()
        end(pid)
    check_frames(serving)
    assert not said(serving, "worker hangs")


@pytest.mark.parametrize("end_", ["-wal", "-shm"])
@pytest.mark.parametrize("how", ["deleted", "emptied", "garbage"])
def test_server_outlives_the_loss_of_logs(serving: LiveServer, how: str, end_: str) -> None:
    data: Path = serving.damaged  # type: ignore[attr-defined]
    worker = serving.worker_pid()
    check_frames(serving)
    for name in (JOURNAL, JOBS, QUEUE):
        DAMAGES[how](data / (name + end_))
    check_frames(serving)
    await_that(lambda: journal(serving) == 200, "the journal")
    assert serving.worker_pid() == worker, "the process that answers frames died"


def test_folder_of_data_deleted_in_service(serving: LiveServer) -> None:
    data: Path = serving.damaged  # type: ignore[attr-defined]
    jobs = [submit(serving) for _ in range(3)]
    data.rename(data.with_name("elsewhere"))
    check_frames(serving)
    assert [outcome(serving, job)["status"] for job in jobs] == ["succeeded"] * 3
    await_that(lambda: (data / JOURNAL).is_file(), "the journal")
    assert journal(serving) == 200
