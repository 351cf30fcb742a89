"""All that a server keeps, written to one file while it runs, and put back on another machine."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import requests
from job_workers import await_that
from server_process import ROOT, LiveServer, environ_without_coverage, live_server

from server.errors import StartError
from server.store.backup import (
    ASIDE,
    INDEX,
    Places,
    check_restored,
    restore_backup,
    write_backup,
)
from server.store.journal.waiting import NAMES
from server.store.keys import add_key

AT = "2026-01-01T00:00:00Z"


def places(folder: Path) -> Places:
    return Places(folder / "data", folder / "models", folder / "keys.jsonl")


def fill(folder: Path) -> Places:
    """Places with a file of each kind, and files that no backup takes."""
    made = places(folder)
    for name, text in (
        ("data/product.json", "{}"),
        ("data/samples/1.jpg", "frame"),
        ("data/outbox.db", "verdicts"),
        ("data/server.lock", "1"),
        ("data/jobs.db.damaged-20260101T000000Z", "x"),
        ("models/parts/1/model.tflite", "model"),
        ("keys.jsonl", "key"),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return made


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def command(*words: object, **settings: object) -> subprocess.CompletedProcess[str]:
    env = environ_without_coverage()
    env |= {f"LINESIDE_{name.upper()}": str(value) for name, value in settings.items()}
    return subprocess.run(
        [sys.executable, "-m", "server", *map(str, words)],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def kept(server: LiveServer, job: str) -> tuple[str, list[str], list[str]]:
    """The job's status, the parts in the journal, and the labels of the samples."""
    status = requests.get(f"{server.url}/v1/jobs/{job}", timeout=60).json()["status"]
    rows = requests.get(f"{server.url}/v1/journal", timeout=60).json()["rows"]
    samples = requests.get(f"{server.url}/v1/samples", timeout=60).json()["samples"]
    return status, [row["part"] for row in rows], [sample["label"] for sample in samples]


def test_another_machine_goes_on_with_all_of_it(
    colors: Path, sample: bytes, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.jsonl"
    add_key(keys, "mes", ["recognize"], now=datetime(2026, 1, 1, tzinfo=UTC))
    here = {"models": colors, "data": tmp_path / "data", "keys_file": keys}
    there = {"models": tmp_path / "m", "data": tmp_path / "d", "keys_file": tmp_path / "k.jsonl"}
    how = {"auth": "off", "samples": "on", "samples_share": 1}
    file = tmp_path / "line.tar"
    with live_server(**here, **how) as server:
        assert server.recognize(sample, part="A-1").status_code == 200
        job = requests.post(f"{server.url}/v1/jobs", sample, timeout=60).json()["job_id"]
        await_that(lambda: kept(server, job)[0] == "succeeded", "the end of the job")
        await_that(lambda: kept(server, job)[2], "a sample")
        before = kept(server, job)
        done = command("backup", file, **here)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{file}: ")
        refused = command("restore", file, "--replace", **here)
        assert (refused.returncode, "another server" in refused.stderr) == (1, True)
    done = command("restore", file, **there)
    assert (done.returncode, done.stderr) == (0, "")
    assert file.stat().st_mode & 0o777 == 0o600
    with live_server(**there, **how) as server:
        assert kept(server, job) == before
    assert "mes" in (tmp_path / "k.jsonl").read_text()


def test_rows_that_wait_for_the_journal_there_are_set_aside(tmp_path: Path) -> None:
    """The server was killed before it was restored: its last rows are not of the backup."""
    here, file = fill(tmp_path / "here"), tmp_path / "b.tar"
    write_backup(here, file, AT)
    for name in NAMES:
        (here.data / name).write_text("rows")
    restore_backup(file, here, "now", replace=True)
    assert not [name for name in NAMES if (here.data / name).exists()]
    assert {(here.data / f"{ASIDE}now" / name).read_text() for name in NAMES} == {"rows"}


def test_places_hold_the_same_afterwards_and_nothing_else(tmp_path: Path) -> None:
    file, other = tmp_path / "b.tar", places(tmp_path / "there")
    index = write_backup(fill(tmp_path / "here"), file, AT)
    assert restore_backup(file, other, "now") == index
    assert contents(tmp_path / "there") == {
        "data/product.json": "{}",
        "data/samples/1.jpg": "frame",
        "keys.jsonl": "key",
        "models/parts/1/model.tflite": "model",
    }


def test_models_and_samples_may_be_left_out(tmp_path: Path) -> None:
    here = fill(tmp_path / "here")
    write_backup(Places(here.data, None, here.keys_file), tmp_path / "b.tar", AT, samples=False)
    restore_backup(tmp_path / "b.tar", places(tmp_path / "there"), "now")
    assert contents(tmp_path / "there") == {"data/product.json": "{}", "keys.jsonl": "key"}
    write_backup(here, tmp_path / "all.tar", AT)
    without = tmp_path / "without"
    restore_backup(
        tmp_path / "all.tar", Places(without / "data", None, without / "keys.jsonl"), "now"
    )
    assert not (without / "models").exists()


def test_what_is_there_is_kept_aside(tmp_path: Path) -> None:
    here = fill(tmp_path / "here")
    write_backup(here, tmp_path / "b.tar", AT)
    (here.data / "product.json").write_text("newer")
    with pytest.raises(StartError, match="is not empty: --replace moves"):
        restore_backup(tmp_path / "b.tar", here, "now")
    assert (here.data / "product.json").read_text() == "newer"
    restore_backup(tmp_path / "b.tar", here, "now", replace=True)
    assert (here.data / "product.json").read_text() == "{}"
    assert (here.data / f"{ASIDE}now" / "product.json").read_text() == "newer"
    assert (here.data / "server.lock").exists(), "a server that starts meanwhile must see it"
    assert here.keys_file.with_name(f"keys.jsonl{ASIDE}now").read_text() == "key"
    # What an earlier restore set aside is in no later backup.
    assert len(write_backup(here, tmp_path / "c.tar", AT).files) == 4


def test_keys_stay_if_the_backup_has_none(tmp_path: Path) -> None:
    here, there = fill(tmp_path / "here"), fill(tmp_path / "there")
    here.keys_file.unlink()
    write_backup(here, tmp_path / "b.tar", AT)
    restore_backup(tmp_path / "b.tar", there, "now", replace=True)
    assert there.keys_file.read_text() == "key"


def test_damaged_database_leaves_the_last_backup(tmp_path: Path) -> None:
    here, file = fill(tmp_path / "here"), tmp_path / "b.tar"
    file.write_text("the last one")
    (here.data / "journal.db").write_bytes(os.urandom(8192))
    with pytest.raises(StartError, match=r"journal\.db.*not a database"):
        write_backup(here, file, AT)
    assert file.read_text() == "the last one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.tar", "here"]


# For each number and folder, a process restores, and kills itself before it renames a file for the
# nth time; tells how it ended.
KILLED = """
import os, signal, sys
from pathlib import Path
from server.store.backup import Places, restore_backup

def restore(left, folder):
    def count(event, _):
        nonlocal left
        left -= event == "os.rename"
        if event == "os.rename" and left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    places = Places(folder / "data", folder / "models", folder / "keys.jsonl")
    restore_backup(folder.with_name("b.tar"), places, "first", replace=True)

for line in sys.stdin:
    number, _, folder = line.rstrip().partition(" ")
    child = os.fork()
    if not child:
        code = 1
        try:
            restore(int(number), Path(folder))
            code = 0
        finally:
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture
def restore_killed() -> Iterator[Callable[[int, Path], int]]:
    """Restores in the place of a folder, killed at the nth rename; the exit code."""
    pipe = subprocess.PIPE
    run = [sys.executable, "-c", KILLED]
    env = environ_without_coverage()
    with subprocess.Popen(run, cwd=ROOT, env=env, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin
        assert process.stdout

        def restore(number: int, folder: Path) -> int:
            assert process.stdin
            assert process.stdout
            print(number, folder, file=process.stdin, flush=True)
            return int(process.stdout.readline())

        yield restore
        process.stdin.close()


def test_killed_restore_is_noticed_and_can_be_repeated(
    tmp_path: Path, restore_killed: Callable[[int, Path], int]
) -> None:
    """Before each of the files that it renames."""
    write_backup(fill(tmp_path / "here"), tmp_path / "b.tar", AT)
    restore_backup(tmp_path / "b.tar", places(tmp_path / "clean"), "now")
    wanted, noticed = contents(tmp_path / "clean"), 0
    for number in range(1, 100):
        there = fill(tmp_path / f"there{number}")
        folder = there.data.parent
        (there.data / "product.json").write_text("older")
        there.keys_file.write_text("older")
        before = contents(folder)
        code = restore_killed(number, folder)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        try:
            check_restored(there.data, folder / "models")
        except StartError:
            noticed += 1
            if noticed == 1:
                done = command("serve", data=there.data, models=there.models)
                assert (done.returncode, "is partly restored" in done.stderr) == (1, True)
        else:
            left = contents(folder)
            assert {name: left.get(name) for name in before} == before
        restore_backup(tmp_path / "b.tar", there, "second", replace=True)
        check_restored(there.data, folder / "models")
        after = contents(folder)
        assert {name: after.get(name) for name in wanted} == wanted
        aside = {name.split("/")[-1]: text for name, text in after.items() if ASIDE in name}
        assert "older" in aside.values()
    assert noticed >= 5


def tar(*members: tuple[str, bytes], kind: bytes = tarfile.REGTYPE, index: object = None) -> bytes:
    """An archive of `members`; its index is right unless it is given."""
    stream = io.BytesIO()
    files = {name: hashlib.sha256(data).hexdigest() for name, data in members}
    right = {"format": 1, "program": "0", "at": AT, "files": files}
    last = (INDEX, json.dumps(right if index is None else index).encode())
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in (*members, last):
            entry = tarfile.TarInfo(name)
            entry.type = tarfile.REGTYPE if name == INDEX else kind
            entry.size, entry.linkname = len(data) if entry.isfile() else 0, "/etc/passwd"
            archive.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


GOOD = tar(("data/product.json", b"{}"), ("keys.jsonl", b"key"))
OTHER = {"format": 2, "program": "9", "at": AT, "files": {}}
LACKS = {"format": 1, "program": "0", "at": AT, "files": {"data/x": "0" * 64}}
DAMAGED: dict[str, Callable[[], bytes]] = {
    "cut off": lambda: GOOD[:1500],
    "changed": lambda: GOOD.replace(b"{}", b"[]", 1),
    "empty": lambda: b"",
    "no tar": lambda: b"x" * 4000,
    "another format": lambda: tar(index=OTHER),
    "another index": lambda: tar(index=[]),
    "missing": lambda: tar(index=LACKS),
    "not in the index": lambda: tar(("data/x", b"1"), index=LACKS | {"files": {}}),
    "twice": lambda: tar(("data/x", b"1"), ("data/x", b"1")),
    "link": lambda: tar(("data/x", b""), kind=tarfile.SYMTYPE),
    "device": lambda: tar(("data/x", b""), kind=tarfile.CHRTYPE),
    "above": lambda: tar(("data/../../x", b"1")),
    "absolute": lambda: tar(("/data/x", b"1")),
    "elsewhere": lambda: tar(("etc/x", b"1")),
    "no name": lambda: tar(("data", b"1")),
    "hidden": lambda: tar(("data/.ssh/x", b"1")),
    "NUL": lambda: tar(("data/a\\b", b"1")),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_nothing_is_restored_of_a_damaged_backup(tmp_path: Path, damage: str) -> None:
    here, file = fill(tmp_path / "here"), tmp_path / "b.tar"
    before = contents(tmp_path)
    file.write_bytes(DAMAGED[damage]())
    with pytest.raises(StartError, match=r"b\.tar is no backup, or damaged: "):
        restore_backup(file, here, "now", replace=True)
    file.unlink()
    assert contents(tmp_path) == before


def test_places_that_can_not_be_used_are_said(tmp_path: Path) -> None:
    here = fill(tmp_path / "here")
    with pytest.raises(StartError, match=r"the backup can't be made: .*no/\.b"):
        write_backup(here, tmp_path / "no" / "b.tar", AT)
    write_backup(here, tmp_path / "b.tar", AT)
    there = places(tmp_path / "there")
    there.data.parent.mkdir()
    there.data.write_text("a file")
    with pytest.raises(StartError, match=r"the backup can't be restored: .*data"):
        restore_backup(tmp_path / "b.tar", there, "now")
    done = command("backup", tmp_path / "c.tar", data=tmp_path / "nowhere")
    assert (done.returncode, "there is no folder" in done.stderr) == (1, True)
    done = command("restore", tmp_path / "none.tar", data=tmp_path / "nowhere")
    assert (done.returncode, "there is no file" in done.stderr) == (1, True)
