"""Versions that come over the network at the same time."""

import io
import json
import os
import shutil
import tarfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tiny_models import MakeModel, write_bundle

from server.cli.fleet.push import pack
from server.errors import VersionExistsError, VersionRefusedError
from server.recognition.manifest import read_bundle
from server.store.bundles.upload import PARTIAL_PREFIX, import_archive, remove_partial_uploads

AT_ONCE = 4
ROOM = 10_000_000


@pytest.fixture
def archive(tiny_model: MakeModel, tmp_path: Path) -> bytes:
    folder = tmp_path / "made" / "colors" / "1"
    write_bundle(folder, tiny_model("colors"))
    return pack(folder, read_bundle(folder).manifest)


def receive_at_once(models: Path, archives: Sequence[bytes]) -> list[tuple[int, bool] | str]:
    """What became of each, an error by the name of its type."""
    start = threading.Barrier(len(archives))

    def one(data: bytes) -> tuple[int, bool] | str:
        start.wait(60)
        try:
            return import_archive(models, "colors", io.BytesIO(data), 10_000_000)
        except Exception as error:  # noqa: BLE001 - which it is, is looked at
            return type(error).__name__

    with ThreadPoolExecutor(len(archives)) as threads:
        return list(threads.map(one, archives))


def test_the_same_version_twice_at_once(archive: bytes, tmp_path: Path) -> None:
    models = tmp_path / "models"
    for _ in range(20):
        found = receive_at_once(models, [archive] * AT_ONCE)
        assert sorted(found, key=str) == [(1, False)] * (AT_ONCE - 1) + [(1, True)]
        shutil.rmtree(models / "colors")


def test_refused_ones_take_no_folder_from_each_other(tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    for _ in range(50):
        found = receive_at_once(models, [b"no archive"] * AT_ONCE)
        assert found == [VersionRefusedError.__name__] * AT_ONCE
    assert list(models.iterdir()) == []


def with_file(archive: bytes, name: str, content: bytes) -> bytes:
    """`archive` with one file more."""
    out = io.BytesIO(archive)
    with tarfile.open(fileobj=out, mode="a") as made:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        made.addfile(member, io.BytesIO(content))
    return out.getvalue()


@pytest.mark.parametrize("name", ["extra.txt", "golden/extra.jpg", "samples/extra.jpg"])
def test_file_that_the_manifest_does_not_name(archive: bytes, tmp_path: Path, name: str) -> None:
    with pytest.raises(VersionRefusedError, match=f"does not name {name}"):
        import_archive(tmp_path, "colors", io.BytesIO(with_file(archive, name, b"x")), ROOM)
    assert not (tmp_path / "colors").exists()


def test_file_of_a_name_that_no_disk_takes(archive: bytes, tmp_path: Path) -> None:
    """It is the archive's fault and not the disk's."""
    name = "golden/" + "ä" * 128
    with pytest.raises(VersionRefusedError, match="a bundle has no file named"):
        import_archive(tmp_path, "colors", io.BytesIO(with_file(archive, name, b"x")), ROOM)


def test_manifest_that_names_what_no_file_can_be(tmp_path: Path) -> None:
    digests = {"model.tflite": "0", "labels.txt": "0", "golden/a\0.jpg": "0"}
    manifest = {"name": "a", "version": 1, "sha256": digests, "quantization": "int8"}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        member = tarfile.TarInfo("bundle.json")
        # The first name that is checked.
        manifest["sha256"] = dict(reversed(digests.items()))
        content = json.dumps(manifest).encode()
        member.size = len(content)
        made.addfile(member, io.BytesIO(content))
    with pytest.raises(VersionRefusedError, match="which no file can be called"):
        import_archive(tmp_path, "a", io.BytesIO(out.getvalue()), ROOM)


def test_folder_that_no_bundle_has(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        member = tarfile.TarInfo("etc")
        member.type = tarfile.DIRTYPE
        made.addfile(member)
    with pytest.raises(VersionRefusedError, match="no folder named 'etc/'"):
        import_archive(tmp_path, "colors", io.BytesIO(out.getvalue()), ROOM)


def test_leftover_goes_with_the_next_arrival(archive: bytes, tmp_path: Path) -> None:
    left = tmp_path / "other" / f"{PARTIAL_PREFIX}dead"
    left.mkdir(parents=True)
    (left / "model.tflite").write_bytes(b"half")
    assert import_archive(tmp_path, "colors", io.BytesIO(archive), ROOM) == (1, True)
    assert not left.exists()


class Stalled(io.BytesIO):
    """An archive whose sender stops in the middle, until the test lets it go on or hang up."""

    def __init__(self, data: bytes, goes_on: bool) -> None:
        super().__init__(data)
        self.goes_on = goes_on
        self.stalled, self.released = threading.Event(), threading.Event()

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() >= 1024 and not self.released.is_set():
            self.stalled.set()
            assert self.released.wait(60)
        if self.released.is_set() and not self.goes_on:
            return b""
        return super().read(min(512, size or 0))


@pytest.mark.parametrize("goes_on", [True, False])
def test_arrival_under_way_is_no_leftover(archive: bytes, tmp_path: Path, goes_on: bool) -> None:
    stream = Stalled(archive, goes_on)
    with ThreadPoolExecutor(1) as threads:
        found = threads.submit(import_archive, tmp_path, "colors", stream, ROOM)
        assert stream.stalled.wait(60)
        remove_partial_uploads(tmp_path)
        assert import_archive(tmp_path, "colors", io.BytesIO(archive), ROOM) == (1, True)
        assert len(list((tmp_path / "colors").iterdir())) == 2
        stream.released.set()
        if goes_on:
            assert found.result(60) == (1, False)
        else:
            with pytest.raises(VersionRefusedError, match="ends in the middle"):
                found.result(60)
    assert [path.name for path in (tmp_path / "colors").iterdir()] == ["1"]


def test_fifo_in_the_place_of_a_version(archive: bytes, tmp_path: Path) -> None:
    assert import_archive(tmp_path, "colors", io.BytesIO(archive), ROOM) == (1, True)
    (tmp_path / "colors" / "1" / "bundle.json").unlink()
    os.mkfifo(tmp_path / "colors" / "1" / "bundle.json")
    with pytest.raises(VersionExistsError):
        import_archive(tmp_path, "colors", io.BytesIO(archive), ROOM)
