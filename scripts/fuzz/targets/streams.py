"""Streams of bytes: forms, compressed bodies, tar archives, and cameras' answers."""

import io
import shutil
import socket
import tarfile
import tempfile
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path

from fuzz.http_seeds import BOUNDARY, archive, form
from fuzz.target import Target, promise
from server.http.body.form_text import codec_of, parse_urlencoded
from server.http.body.multipart import boundary_of, split_multipart
from server.http.body.reading import inflate
from server.line.cameras.sources import FRAME_BYTES_MAX, Snapshot, SourceError, parts
from server.store.bundles.archives import BLOCK_BYTES, MEMBERS_MAX, ArchiveReader
from server.store.bundles.upload import import_archive

MODELS = Path(__file__).resolve().parents[3] / "models"
PARTS_MAX, INFLATED_MAX, FILES_MAX = 100, 1 << 18, 1 << 20
CHECKSUM = slice(148, 156)
BACKLOG = 8


def _multipart(data: bytes) -> None:
    """The Content-Type in the first line, then the body."""
    kind, _, body = data.partition(b"\n")
    boundary = boundary_of(kind.decode("latin-1"))
    fields, files = split_multipart(body, boundary, PARTS_MAX)
    count = sum(len(each) for listed in (fields, files) for _, each in listed.lists())
    promise(count <= PARTS_MAX, "many parts")


def _form_seeds() -> tuple[bytes, ...]:
    head = f"multipart/form-data; boundary={BOUNDARY}\n".encode()
    plain = form([("file", "a.jpg", b"\xff\xd8\xff\r\n--x"), ("camera", None, b"st4")])
    charset = form([("_charset_", None, b"iso-8859-1"), ("part", None, b"\xfc")])
    named = plain.replace(b'filename="a.jpg"', b"filename*=utf-8''%c3%bc.jpg")
    typed = plain.replace(b"image/jpeg", b"text/plain; charset=utf-8").replace(
        b"\r\n\r\n", b"\r\nA: b\r\n c\r\n\r\n", 1
    )
    return tuple(head + body for body in (plain, charset, named, typed))


def _urlencoded(data: bytes) -> None:
    kind, _, body = data.partition(b"\n")
    fields = parse_urlencoded(body, codec_of(kind.decode("latin-1"), "the form"), PARTS_MAX)
    promise(len(fields) <= PARTS_MAX, "many fields")


def _inflate(data: bytes) -> None:
    """The coding in the first byte, then the body."""
    coding = ("gzip", "deflate")[data[0] & 1] if data else "gzip"
    whole = inflate(data[1:], coding, INFLATED_MAX, {})
    promise(len(whole) <= INFLATED_MAX, f"{len(whole)} bytes")


def _inflate_seeds() -> tuple[bytes, ...]:
    zipped = zlib.compress(b"some text " * 50)
    compressor = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
    bomb = compressor.compress(bytes(1 << 20)) + compressor.flush()
    short = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
    return (b"\1" + zipped, b"\0" + bomb, b"\0" + short.compress(b"abc") + short.flush())


def _tar(data: bytes) -> None:
    reader, files = ArchiveReader(io.BytesIO(data), FILES_MAX), 0
    for number, member in enumerate(reader, 1):
        promise(number <= MEMBERS_MAX, "many members")
        while piece := reader.content():
            files += len(piece)
        promise(files <= FILES_MAX, f"{files} bytes of {member.name!r}")


def _tar_of(files: Sequence[tuple[str, bytes]], form_: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form_) as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    whole = out.getvalue().rstrip(b"\0")
    return whole.ljust(-(-len(whole) // BLOCK_BYTES) * BLOCK_BYTES + 2 * BLOCK_BYTES, b"\0")


def _tar_seeds() -> tuple[bytes, ...]:
    files = [("bundle.json", b"{}"), ("labels.txt", b"a\n"), ("golden/a.jpg", b"x" * 600)]
    long = [*files, ("golden/" + "ä" * 90 + ".jpg", b"y")]
    ustar = _tar_of(files, tarfile.USTAR_FORMAT)
    return (ustar, _tar_of(long, tarfile.GNU_FORMAT), _tar_of(long, tarfile.PAX_FORMAT))


def checked(data: bytes) -> bytes:
    """Three of four archives with the right checksum in each block that looks like a header."""
    if not data or data[-1] & 3 == 3 or len(data) < BLOCK_BYTES:
        return data
    changed = bytearray(data)
    for at in range(0, len(data) - BLOCK_BYTES + 1, BLOCK_BYTES):
        header = changed[at : at + BLOCK_BYTES]
        if header[CHECKSUM].strip(b"01234567 \0") or not header.strip(b"\0"):
            continue
        if header[257:262] == b"ustar" or header[CHECKSUM].strip(b" \0"):
            header[CHECKSUM] = b" " * 8
            changed[at + 148 : at + 156] = b"%06o\0 " % sum(header)
    return bytes(changed)


class _Upload:
    """Whole uploads, into a folder that is emptied after each that was taken."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp())

    def run(self, data: bytes) -> None:
        _, new = import_archive(self._folder, "iris", io.BytesIO(data), FILES_MAX)
        promise(new, "an archive was taken before")
        shutil.rmtree(self._folder / "iris")


def _mjpeg(data: bytes) -> None:
    for shot in parts(io.BytesIO(data)):
        promise(len(shot.data) <= FRAME_BYTES_MAX, "a large picture")


def _mjpeg_seeds() -> tuple[bytes, ...]:
    picture = b"\xff\xd8\xff\xe0 a picture \r\n of two lines \xff\xd9"
    sized = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(picture)
    bare = b"--frame\r\nContent-Type: image/jpeg\r\n\r\n"
    return ((sized + picture + b"\r\n") * 3, (bare + picture + b"\r\n") * 3 + b"--frame--\r\n")


class _Answers:
    """A camera that answers each connection with the input as it is, read as snapshots. It listens
    from the first input on, as long as its process lives."""

    def __init__(self) -> None:
        self._answer = b""
        self._listener: socket.socket | None = None

    def _listen(self) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
        threading.Thread(target=self._serve, args=(listener,), daemon=True).start()
        return listener

    def _serve(self, listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            with connection:
                try:
                    connection.recv(1 << 16)
                    connection.sendall(self._answer)
                    connection.shutdown(socket.SHUT_WR)
                except OSError:
                    continue

    def run(self, data: bytes) -> None:
        # It would be led to other servers.
        self._answer = b"" if b"location" in data.lower() else data
        if self._listener is None:
            self._listener = self._listen()
        host, port = self._listener.getsockname()
        url = f"http://{host}:{port}/a.jpg"
        Snapshot({"url": url, "username": "admin", "password": "secret"})


def _answer_seeds() -> tuple[bytes, ...]:
    body = b"\xff\xd8\xff a picture"
    ok = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n"
    digest = b'Digest realm="cam", nonce="abc", qop="auth", algorithm=MD5, opaque="x"'
    return (
        ok + b"Content-Length: %d\r\n\r\n" % len(body) + body,
        ok + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n",
        ok + b"\r\n" + body,
        b"HTTP/1.0 401 Unauthorized\r\nWWW-Authenticate: "
        + digest
        + b"\r\nContent-Length: 0\r\n\r\n",
        b'HTTP/1.1 401 No\r\nWWW-Authenticate: Basic realm="cam"\r\n\r\n',
        b"HTTP/1.1 404 Not Found\r\n\r\n",
    )


def targets() -> tuple[Target, ...]:
    fields = (b"\nname=a&b=%C3%BC+c&image_base64=%2F9j", b"latin-1\na=%fc")
    disposition = b'Content-Disposition: form-data; name="'
    headers = (b"Content-Length: ", b"--frame\r\n", b"\r\n\r\n", b"Content-Length: " + b"7" * 4400)
    upload = archive(MODELS / "iris")
    return (
        Target(
            "multipart",
            _multipart,
            _form_seeds(),
            (disposition, f"\r\n--{BOUNDARY}\r\n".encode(), b"filename*0=a; ", b"charset=utf-16"),
        ),
        Target("urlencoded", _urlencoded, fields, (b"&", b"=", b"%", b"&a=1" * 120)),
        Target("inflate", _inflate, _inflate_seeds()),
        Target(
            "tar", _tar, _tar_seeds(), (b"ustar\0", b"path=", b"size=9", b"x", b"L"), repair=checked
        ),
        Target(
            "upload",
            _Upload().run,
            (upload,),
            (b"golden/", b"sha256"),
            repair=checked,
            size_max=1 << 18,
        ),
        Target("mjpeg", _mjpeg, _mjpeg_seeds(), headers, (SourceError,)),
        Target(
            "snapshot",
            _Answers().run,
            _answer_seeds(),
            (*headers, b"Transfer-Encoding: chunked\r\n", b"WWW-Authenticate: ", b'stale="true", '),
            (SourceError,),
        ),
    )
