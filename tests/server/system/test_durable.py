"""Files written whole or not at all, and on the disk once that is said."""

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from server.store.bundles.version_history import CHOICE_FILE, VersionChoice, write_choice
from server.store.keys import add_key
from server.system.files import beside, make_folder, write_whole

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What the kernel was asked to write to the disk, in order."""
    asked: list[Path] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        asked.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    return asked


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Has the kernel refuse to let this process write larger files (setrlimit(2))."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("file", lambda path: write_whole(path, b"new")),
        (CHOICE_FILE, lambda path: write_choice(path.parent, VersionChoice(1))),
        ("keys.jsonl", lambda path: add_key(path, "a", ["admin"], now=NOW)),
    ],
)
def test_the_file_and_then_its_name_are_on_the_disk(
    synced: list[Path], tmp_path: Path, name: str, write: Callable[[Path], object]
) -> None:
    write(tmp_path / name)
    assert synced == [beside(tmp_path / name), tmp_path]
    assert not beside(tmp_path / name).exists()


def test_nothing_is_synced_that_need_not_be(synced: list[Path], tmp_path: Path) -> None:
    write_whole(tmp_path / "file", b"new", synced=False)
    assert synced == []
    assert (tmp_path / "file").read_bytes() == b"new"


def test_what_can_not_be_written_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, b"old")
    with files_of_at_most(1000), pytest.raises(OSError, match="too large"):
        write_whole(path, bytes(2000))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_private_file_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    beside(path).touch(mode=0o644)  # left by a cut
    write_whole(path, b"old", private=True)
    assert path.stat().st_mode & 0o777 == 0o600
    if os.getuid():
        pytest.skip("only root may give a file away")
    os.chown(path, 1234, 1235)
    write_whole(path, b"new", private=True)
    status = path.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (1234, 1235, 0o600)


def test_new_folders_are_synced_into_their_parent(synced: list[Path], tmp_path: Path) -> None:
    """Each folder that is made is synced into the one above."""
    make_folder(tmp_path / "a" / "b")
    assert synced == [tmp_path, tmp_path / "a"]
    make_folder(tmp_path / "a" / "b")
    assert len(synced) == 2
