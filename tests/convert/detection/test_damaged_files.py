"""Damaged labels, metadata and model files, some made to be: each is refused in a sentence."""

import io
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from images import encode, plain

from convert.detection.annotations import read_annotations
from convert.detection.model import read_metadata
from convert.errors import ConvertError
from convert.sources.model_files import kind_of_model
from server.values.labels import Label

LABELS = (Label("bolt"), Label("nut"))
BOX = "0.5 0.5 0.1 0.1"
UNNAMED: Any = SimpleNamespace(metadata=None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.jpg").write_bytes(encode(plain((9, 9, 9)), "JPEG"))
    return tmp_path


@pytest.mark.parametrize("number", ["-1", "1e999", "-1e999", "1e30"])
@pytest.mark.parametrize("names", ["", "names: [bolt, nut]\n"])
def test_class_that_is_no_line_is_refused(folder: Path, number: str, names: str) -> None:
    (folder / "a.txt").write_text(f"{number} {BOX}\n")
    if names:
        (folder / "data.yaml").write_text(names)
    with pytest.raises(ConvertError, match="has the class"):
        read_annotations(folder, LABELS)


@pytest.mark.parametrize("names", ["{[1]: 2}", f"[{'-' * 20_000}1]", "{1: a, 1: b"])
def test_names_that_are_no_list_are_refused(folder: Path, names: str) -> None:
    (folder / "a.txt").write_text(f"1 {BOX}\n")
    (folder / "data.yaml").write_text(f"names: {names}\n")
    with pytest.raises(ConvertError, match="names"):
        read_annotations(folder, LABELS)


def test_names_that_never_end_take_no_time(folder: Path) -> None:
    """The time grows with their length: by its square, these would take hours."""
    (folder / "a.txt").write_text(f"1 {BOX}\n")
    (folder / "data.yaml").write_text("names: [\n" * 300_000)
    with pytest.raises(ConvertError, match="names"):
        read_annotations(folder, LABELS)


@pytest.mark.parametrize("name", ["x" * 300, "a\\u0000.jpg", "\\ud800", ""])
def test_picture_of_a_name_that_no_file_has(folder: Path, name: str) -> None:
    image = f'[{{"id": 1, "file_name": "{name}"}}]'
    (folder / "a.json").write_text(
        f'{{"images": {image}, "annotations": [], "categories": [{{"id": 1, "name": "nut"}}]}}'
    )
    with pytest.raises(ConvertError, match="is not there"):
        read_annotations(folder, LABELS)


def embedded(name: str, content: bytes, how: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", how) as archive:
        archive.writestr(name, content)
    return out.getvalue()


@pytest.mark.parametrize("how", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_damaged_zip_behind_a_model_says_nothing(how: int) -> None:
    whole = embedded("labels.txt", b"bolt\nnut\nwasher\n", how)
    assert len(read_metadata(whole, UNNAMED).labels) == 3
    for at in range(30, len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 0xFF
        labels = read_metadata(bytes(damaged), UNNAMED).labels
        assert labels == () or len(labels) == 3


@pytest.mark.parametrize(
    "names",
    ['{"a": "bolt"}', '{"-1": "b"}', '{"\\u0663": "b"}', '["a\\nb"]', '["\\ud800"]', '[" "]'],
)
def test_names_that_are_no_labels_are_left_out(names: str) -> None:
    content = f'{{"names": {names}, "task": "detect"}}'.encode()
    found = read_metadata(embedded("meta.txt", content), UNNAMED)
    assert (found.labels, found.task) == ((), "detect")


def test_metadata_that_is_nested_too_deeply_says_nothing() -> None:
    content = b'{"a": ' + b"[" * 100_000
    assert read_metadata(embedded("metadata.json", content), UNNAMED).labels == ()


@pytest.mark.parametrize(
    "data",
    [
        b"\x80",
        b"\x08",
        b"\x80\x04\x8e" + b"\x7f" * 8,
        embedded("a", b"b").replace(b"PK\1\2\x14\3\x14", b"PK\1\2\x14\3\x5a"),
    ],
)
def test_file_of_a_few_bytes_is_no_model(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model").write_bytes(data)
    with pytest.raises(ConvertError):
        kind_of_model(tmp_path / "model")
