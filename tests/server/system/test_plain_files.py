"""What lies under the name of a file and is none: read by nobody, waited for by nobody."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from server.config.load import load
from server.errors import BundleError, SettingsError
from server.http.access.caller import _read
from server.recognition.interpreter import InterpreterPool
from server.recognition.manifest import digest, read_bundle, read_labels
from server.recognition.sample import read_sample
from server.store.bundles.layout import task_of
from server.store.bundles.version_history import CHOICE_FILE, read_choice
from server.system.files import read_plain_file


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


OTHERS: dict[str, Callable[[Path], None]] = {
    "a FIFO": os.mkfifo,
    "a folder": Path.mkdir,
    "a socket": _socket,
    "a device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_read_plain_file_refuses_other_kinds(tmp_path: Path, kind: str) -> None:
    OTHERS[kind](tmp_path / "file")
    with pytest.raises(OSError, match=f"it is {kind}, not a plain file"):
        read_plain_file(tmp_path / "file")


def test_read_plain_file_is_bounded(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    assert read_plain_file(file, 5) == b"12345"
    with pytest.raises(OSError, match="it has 5 bytes, more than 4"):
        read_plain_file(file, 4)


def test_read_plain_file_follows_links(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"1")
    (tmp_path / "link").symlink_to("target")
    assert read_plain_file(tmp_path / "link") == b"1"
    (tmp_path / "target").unlink()
    with pytest.raises(FileNotFoundError):
        read_plain_file(tmp_path / "link")


@pytest.mark.parametrize("kind", OTHERS)
def test_readers_refuse_other_kinds(tmp_path: Path, kind: str) -> None:
    for name in ("bundle.json", "labels.txt", "model.tflite", CHOICE_FILE, "lineside.toml"):
        OTHERS[kind](tmp_path / name)
    says = f"it is {kind}, not a plain file"
    with pytest.raises(BundleError, match=says):
        read_bundle(tmp_path)
    with pytest.raises(BundleError, match=says):
        read_labels(tmp_path / "labels.txt")
    with pytest.raises(BundleError, match=says):
        InterpreterPool(tmp_path / "model.tflite", 1)
    with pytest.raises(OSError, match=says):
        digest(tmp_path / "model.tflite")
    with pytest.raises(OSError, match=says):
        read_sample(tmp_path / "labels.txt")
    with pytest.raises(SettingsError, match=says):
        load({"LINESIDE_CONFIG": str(tmp_path / "lineside.toml")})
    with pytest.raises(SettingsError, match=says):
        _read(str(tmp_path / "lineside.toml"))
    assert task_of(tmp_path) == "classify"
    assert read_choice(tmp_path) is None
