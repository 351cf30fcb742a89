"""labels.txt as editors, spreadsheets and other programs save it."""

from pathlib import Path

import pytest

from convert.data.labels import read_labels as convert_reads
from server.errors import BundleError
from server.recognition.manifest import read_labels
from server.values.labels import Label, parse_labels

NAMES = ("Prüfling gut", "crack", "n0 scratch")
# How the same three lines may lie in a file.
WAYS = {
    "as convert writes it": "{0}\n{1}\n{2}\n",
    "no end of the last line": "{0}\n{1}\n{2}",
    "one empty last line": "{0}\n{1}\n{2}\n\n",
    "several empty last lines": "{0}\n{1}\n{2}\n\n \n\t\n",
    "CRLF": "{0}\r\n{1}\r\n{2}\r\n",
    "CRLF and an empty last line": "{0}\r\n{1}\r\n{2}\r\n\r\n",
    "CR": "{0}\r{1}\r{2}\r",
    "mixed ends": "{0}\r\n{1}\n{2}\r",
    "space around": "  {0} \n{1}\t\n\u3000{2} \xa0\n",
}
MARKS = {
    "UTF-8": "utf-8",
    "UTF-8 with mark": "utf-8-sig",
    "UTF-16 with mark": "utf-16",
    "UTF-32 with mark": "utf-32",
}


@pytest.mark.parametrize("encoding", MARKS.values(), ids=MARKS)
@pytest.mark.parametrize("text", WAYS.values(), ids=WAYS)
def test_labels_read_alike_however_saved(tmp_path: Path, text: str, encoding: str) -> None:
    file = tmp_path / "labels.txt"
    file.write_bytes(text.format(*NAMES).encode(encoding))
    labels = tuple(Label(name) for name in NAMES)
    assert read_labels(file) == convert_reads(file) == labels


def test_labels_big_endian_with_mark() -> None:
    data = "\ufeffgood\r\nbad\r\n"
    for encoding in ("utf-16-be", "utf-32-be", "utf-16-le", "utf-32-le"):
        assert parse_labels(data.encode(encoding)) == (Label("good"), Label("bad"))


def test_labels_end_only_at_ends_of_lines() -> None:
    assert parse_labels("a\u2028b\nc\n".encode()) == (Label("a\u2028b"), Label("c"))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"one\n\nthree\n", "line 2 is empty"),
        (b"\none\n", "line 1 is empty"),
        (b"one\r\n \t \r\nthree\r\n\r\n", "line 2 is empty"),
        ("gut\ngrün\n".encode("latin-1"), "line 2 is not a text in UTF-8: save"),
        ("良品\n".encode("gbk"), "line 1 is not a text in UTF-8: save"),
        ("\ufeffgut\nschlecht\n".encode("utf-16-le")[:-1], "line 2 is not a text in UTF-16-LE"),
        ("gut\n".encode("utf-16-le"), "line 1 has a control character: save it as UTF-8"),
        (b"one\ntwo\x1b[2J\n", "line 2 has a control character"),
        (b"good\nbad\ngood\n", "has the label good twice, in lines 1 and 3: rename one"),
        (b"good\r\nbad \r\n bad\r\n", "has the label bad twice, in lines 2 and 3"),
        (b"n1\tcrane\nn2\tcrane\nn1\tcrane\n", "has the label crane twice, in lines 1 and 3"),
        (b"n1\tcrane\ncrane\n", "has the label crane twice, in lines 1 and 2"),
        (b"crane\nn1\tcrane\n", "has the label crane twice, in lines 1 and 2"),
    ],
)
def test_labels_at_fault_name_the_line(tmp_path: Path, data: bytes, says: str) -> None:
    file = tmp_path / "labels.txt"
    file.write_bytes(data)
    with pytest.raises(BundleError) as caught:
        read_labels(file)
    assert f"{file} {says}" in str(caught.value)
    assert "codec" not in str(caught.value)


def test_labels_with_ids_may_have_one_name() -> None:
    both = (Label("crane", "n02012849"), Label("maillot", "n03710637"), Label("crane", "n03126707"))
    text = "".join(f"{label.id}\t{label.name}\n" for label in both)
    assert parse_labels(text.encode()) == both
