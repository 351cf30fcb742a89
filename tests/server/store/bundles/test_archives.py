"""Tar archives as real programs write them, and as nobody should."""

import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from server_process import SHARED

from server.errors import VersionRefusedError
from server.store.bundles.archives import BLOCK_BYTES, ArchiveReader

ROOM = 1_000_000
FILES = {"bundle.json": b"{}", "model.tflite": bytes(range(256)) * 5, "golden/a b.jpg": b""}
END = bytes(2 * BLOCK_BYTES)


class Counted(io.BytesIO):
    """Counts the bytes that were asked of it, and fails if it is asked again and again at its
    end, which no reader of an archive may do."""

    asked_at_end = 0

    def read(self, size: int | None = -1, /) -> bytes:
        piece = super().read(size)
        self.asked_at_end += not piece
        assert self.asked_at_end < 10
        return piece


def unpack(data: bytes, room: int = ROOM) -> dict[str, bytes]:
    """The files of an archive by name."""
    reader = ArchiveReader(Counted(data), room)
    files = {}
    for member in reader:
        content = b"".join(iter(reader.content, b""))
        assert len(content) == member.size
        if not member.is_folder:
            files[member.name.removeprefix("./")] = content
    return files


def made(form: int, files: dict[str, bytes] = FILES, **fields: object) -> bytes:
    """An archive of `files` as Python writes it in a format of `tarfile`."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for field, value in fields.items():
                setattr(member, field, value)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def header(name: bytes = b"a", size: int | bytes = 0, kind: bytes = b"0") -> bytes:
    """One header of a ustar archive, whatever is in it."""
    number = size if isinstance(size, bytes) else b"%011o\0" % size
    block = bytearray(BLOCK_BYTES)
    block[:100] = name.ljust(100, b"\0")
    block[100:124] = b"0000644\0" + b"0000000\0" * 2
    block[124:136] = number.ljust(12, b"\0")
    block[136:148] = b"00000000000\0"
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK_BYTES)


def pax(*records: bytes, kind: bytes = b"x") -> bytes:
    """A PAX header of whole records."""
    data = b"".join(records)
    return header(b"p", len(data), kind) + padded(data)


def record(key: bytes, value: bytes) -> bytes:
    """One record of a PAX header, with the length that it has."""
    body = b" " + key + b"=" + value + b"\n"
    length = len(body)
    while length != len(body) + len(str(length)):
        length = len(body) + len(str(length))
    return str(length).encode() + body


@pytest.mark.parametrize(
    "form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=str
)
def test_archive_of_each_format_is_read(form: int) -> None:
    assert unpack(made(form)) == FILES
    assert unpack(made(form, mtime=1795897603.25, uname="Zoë", uid=10**9 if form else 1)) == FILES


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=str)
def test_archive_with_long_names_is_read(form: int) -> None:
    files = {"golden/" + "x" * 120 + ".jpg": b"1", "golden/ü.jpg": b"2"}
    assert unpack(made(form, files)) == files


@pytest.mark.parametrize("flags", [(), ("--format=ustar",), ("--format=v7",), ("--format=pax",)])
def test_archive_by_the_tar_command_is_read(tmp_path: Path, flags: tuple[str, ...]) -> None:
    if shutil.which("tar") is None:
        pytest.skip("no tar command is installed")
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    command = ["tar", *flags, "-cf", "-", "-C", str(tmp_path), "."]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    assert unpack(done.stdout) == FILES


def test_archive_as_git_writes_it_is_read() -> None:
    comment = pax(record(b"comment", b"1f52b93" * 6), kind=b"g")
    assert unpack(comment + made(tarfile.USTAR_FORMAT)) == FILES


BAD: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "it ends in the middle"),
    "no archive": (b"no archive", "it ends in the middle"),
    "zeros": (bytes(10240), "it has no files"),
    "short gzip": (b"\x1f\x8b\x08", "compressed by gzip"),
    "gzip": (b"\x1f\x8b" + bytes(600), "compressed by gzip"),
    "bzip2": (b"BZh9" + bytes(600), "compressed by bzip2"),
    "xz": (b"\xfd7zXZ" + bytes(600), "compressed by xz"),
    "zip": (b"PK\x03\x04" + bytes(600), "compressed by zip"),
    "wrong checksum": (header()[:-1] + b"x" + END, "checksum"),
    "checksum of letters": (header()[:148] + b"zzzzzz\0 " + header()[156:] + END, "checksum"),
    "cut in a header": (header()[:300], "it ends in the middle"),
    "cut in a file": (header(size=1000) + bytes(999), "it ends in the middle"),
    "cut in the padding": (header(size=1000) + bytes(1020), "it ends in the middle"),
    "no end": (header(), "it ends in the middle"),
    "half an end": (header() + bytes(BLOCK_BYTES), "it ends in the middle"),
    "one block of zeros": (header() + bytes(BLOCK_BYTES) + header() + END, "one block of zeros"),
    "another behind its end": (header() + END + header() + END, "something stands behind"),
    "hard link": (header(kind=b"1") + END, "is a hard link, not a plain file"),
    "symbolic link": (header(kind=b"2") + END, "is a symbolic link, not a plain file"),
    "character device": (header(kind=b"3") + END, "is a device, not a plain file"),
    "block device": (header(kind=b"4") + END, "is a device, not a plain file"),
    "FIFO": (header(kind=b"6") + END, "is a FIFO, not a plain file"),
    "contiguous file": (header(kind=b"7") + END, "not a plain file"),
    "GNU's sparse file": (header(kind=b"S") + END, "is a sparse file"),
    "volume": (header(kind=b"V") + END, "not a plain file"),
    "continued file": (header(kind=b"M") + END, "not a plain file"),
    "long link": (header(size=3, kind=b"K") + padded(b"abc") + END, "not a plain file"),
    "folder with content": (header(b"g/", 3, b"5") + padded(b"abc") + END, "has a size"),
    "larger than the room": (header(size=ROOM + 1), "more than max_bundle_mb"),
    "two larger than the room": (
        header(size=ROOM) + padded(bytes(ROOM)) + header(b"b", 1),
        "more than max_bundle_mb",
    ),
    "size in base 256": (header(size=b"\x80" + b"\xff" * 11), "a size is not a number"),
    "negative size": (header(size=b"-0000000001\0"), "a size is not a number"),
    "size with a digit 8": (header(size=b"00000000008\0"), "a size is not a number"),
    "size with an underscore": (header(size=b"0000000_001\0"), "a size is not a number"),
    "name not in UTF-8": (header(b"\xff") + END, "not in UTF-8"),
    "long name too long": (header(size=1025, kind=b"L") + bytes(2048), "has 1025 bytes"),
    "long name of 8 GB": (header(size=b"77777777777\0", kind=b"L"), "more than 1024"),
    "long name alone": (header(size=2, kind=b"L") + padded(b"a\0") + END, "without a file"),
    "PAX of 8 GB": (header(size=b"77777777777\0", kind=b"x"), "more than 65536"),
    "PAX length of many digits": (
        pax(b"9" * 60_000 + b" path=a\n") + header() + END,
        "malformed",
    ),
    "PAX of digits alone": (pax(b"1" * 60_000) + header() + END, "malformed"),
    "PAX length 0": (pax(b"0 path=a\n") + header() + END, "malformed"),
    "PAX length too small": (pax(b"3 path=a\n") + header() + END, "malformed"),
    "PAX length too large": (pax(b"99 path=a\n") + header() + END, "malformed"),
    "PAX that ends without a length": (
        pax(record(b"mtime", b"1") + b"x" * 30) + header() + END,
        "malformed",
    ),
    "PAX without an equals sign": (pax(b"7 path\n") + header() + END, "malformed"),
    "PAX path too long": (pax(record(b"path", b"a" * 1025)) + header() + END, "1025 bytes"),
    "PAX path not in UTF-8": (pax(record(b"path", b"\xff")) + header() + END, "not in UTF-8"),
    "PAX size of many digits": (
        pax(record(b"size", b"9" * 60_000)) + header() + END,
        "not a number, or too long",
    ),
    "PAX size negative": (pax(record(b"size", b"-1")) + header() + END, "not a number"),
    "PAX size too large": (pax(record(b"size", b"9" * 15)) + header(), "more than max_bundle_mb"),
    "PAX sparse file": (pax(record(b"GNU.sparse.size", b"1")) + header() + END, "sparse"),
    "PAX sparse map": (pax(record(b"GNU.sparse.map", b"1,2")) + header() + END, "sparse"),
    "PAX path for all": (pax(record(b"path", b"a"), kind=b"g") + header() + END, "for all files"),
    "PAX alone": (pax(record(b"path", b"a")) + END, "without a file"),
    "too many files": (b"".join(header(b"%d" % i) for i in range(1001)), "more than 1000 files"),
    "too many headers": (pax(record(b"mtime", b"1")) * 3101, "more than 3100 headers"),
}


@pytest.mark.parametrize("name", BAD)
def test_archive_at_fault_is_refused(name: str) -> None:
    data, says = BAD[name]
    with pytest.raises(VersionRefusedError) as caught:
        unpack(data)
    assert says in str(caught.value)


def test_archive_of_the_case_that_never_ends() -> None:
    file = SHARED / "cases" / "tar_4_kb_never_ends.tar"
    if not file.is_file():
        pytest.skip("../shared/cases is not on this machine")
    with pytest.raises(VersionRefusedError):
        unpack(file.read_bytes())


GOOD = made(tarfile.PAX_FORMAT, mtime=1.5)


@st.composite
def spoiled(draw: st.DrawFn) -> bytes:
    """A good archive with a few bytes changed, headers made right again, and cut somewhere."""
    data = bytearray(GOOD)
    for _ in range(draw(st.integers(1, 6))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    if draw(st.booleans()):
        for at in range(0, len(data) - BLOCK_BYTES, BLOCK_BYTES):
            if data[at + 257 : at + 262] == b"ustar":
                data[at + 148 : at + 156] = b" " * 8
                data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + BLOCK_BYTES])
    return bytes(data[: draw(st.integers(0, len(data)))])


@given(st.one_of(st.binary(max_size=3000), spoiled()))
@example(GOOD)
def test_archive_of_any_bytes_ends(data: bytes) -> None:
    try:
        files = unpack(data)
    except VersionRefusedError:
        return
    assert sum(map(len, files.values())) <= len(data)


@given(st.dictionaries(st.from_regex(r"[a-z/ü]{1,150}", fullmatch=True), st.binary(max_size=2000)))
def test_archive_is_read_as_tarfile_wrote_it(files: dict[str, bytes]) -> None:
    names: dict[str, bytes] = {}
    for name, content in files.items():
        if not name.endswith("/"):
            names[name] = content
    if names:
        assert unpack(made(tarfile.PAX_FORMAT, names)) == names
        assert unpack(made(tarfile.GNU_FORMAT, names)) == names


def test_archive_reader_passes_on_what_reading_raises() -> None:
    class LostError(Exception):
        pass

    class Breaking(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell():
                raise LostError
            return super().read(700)

    with pytest.raises(LostError):
        list(ArchiveReader(Breaking(GOOD), ROOM))
