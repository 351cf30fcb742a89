"""Versions that come over the network at the same time."""

import io
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tiny_models import MakeModel, write_bundle

from server.errors import VersionRefusedError
from server.fleet import pack
from server.recognition.manifest import read_bundle
from server.store.arrivals import receive

AT_ONCE = 4


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
            return receive(models, "colors", io.BytesIO(data), 10_000_000)
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
