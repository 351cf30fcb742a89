"""Parts of forms as cameras and libraries write them: what is a file, and in which charset."""

import functools
import gzip
import io
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import multipart
import pytest
import requests
from images import encode, plain
from server_process import LiveServer
from werkzeug.exceptions import BadRequest

from server.errors import InvalidFieldError
from server.http.body.form_text import TEXT_BYTES_MAX, parse_urlencoded
from server.http.body.multipart import FAULTS, MOST_LINES, parts

GREEN = encode(plain((0, 255, 0)), "JPEG")
BATCH, JOBS = "/v1/recognize/batch", "/v1/jobs"
# Routes that take a form's file, with the field's name and the status of success.
ROUTES = [
    ("/v1/recognize", "file", 200),
    (BATCH, "file", 200),
    (JOBS, "file", 202),
    ("/classify", "image", 200),
    ("/predict", "file", 200),
    ("/predict", "image", 202),
    ("/api/recognize", "file", 200),
    ("/api/recognize_cached", "file", 200),
    ("/api/recognize_async", "file", 202),
]
NAME = "零件 表.jpg"
D = b'Content-Disposition: form-data; name="%s"'
# Header lines of a part that is a file.
FILES = {
    "plain": D + b'; filename="a.jpg"',
    "unquoted": b"Content-Disposition: form-data; name=%s; filename=a.jpg",
    "only the new kind of name": D + b"; filename*=utf-8''%%E9%%9B%%B6.jpg",
    "both kinds": D + b"; filename=x; filename*=UTF-8''%%e2%%82%%ac",
    "a name in pieces": D + b'; filename*0="a"; filename*1=".jpg"',
    "a name in another charset": D + b"; filename*=gbk''%%C1%%E3.jpg",
    "no name, an image's type": D + b"\r\nContent-Type: image/jpeg",
    "no name, bytes": D + b"\r\nContent-Type: application/octet-stream",
    "no name, a type of its own": D + b"\r\nContent-Type: binary",
    "an empty name": D + b'; filename=""',
    "a file called text": D + b'; filename="a.txt"\r\nContent-Type: text/plain; charset=punycode',
    "a bare line feed": D + b'; filename="a\nb.jpg"',
    "a bare carriage return": D + b'; filename="a\rb.jpg"',
    "control characters": D + b'; filename="a\x00\x1b[2Jb.jpg"',
    "a broken type": D + b'; filename="a"\r\nContent-Type: image/jpeg\nx: y',
    "a folded line": D + b';\r\n filename="a.jpg"',
    **{
        f"a name in {charset}": D + b'; filename="' + NAME.encode(charset) + b'"'
        for charset in ("utf-8", "gbk", "shift_jis", "utf-16-be", "big5")
    },
    "a name in latin-1": D + b'; filename="St\xfcck.jpg"',
    "a name that ends in a backslash": D + b'; filename="\x95\\"; x=1',
}


def form(head: bytes, content: bytes = GREEN) -> bytes:
    return b"--X\r\n" + head + b"\r\n\r\n" + content + b"\r\n--X--\r\n"


def post(
    server: LiveServer, path: str, body: bytes, kind: str = "multipart/form-data; boundary=X"
) -> requests.Response:
    return requests.post(server.url + path, body, headers={"Content-Type": kind}, timeout=60)


@pytest.mark.parametrize("how", FILES)
def test_file_part_is_taken_whatever_its_name(clients: LiveServer, how: str) -> None:
    for path, field, status in ROUTES:
        answer = post(clients, path, form(FILES[how] % field.encode()))
        assert answer.status_code == status, (path, answer.text)
        assert "error" not in answer.json() or answer.json()["error"] is None
        if path == BATCH:
            assert answer.json()["results"][0]["error"] is None


TEXT_TYPES = (b"text/plain; charset=utf-8", b"application/json", b"application/x+json")


def test_text_part_without_a_name_is_a_field() -> None:
    for line in (
        b"",
        b"\r\nContent-Type: text/plain; charset=utf-8",
        b"\r\nContent-Type: application/json",
    ):
        body = form(b'Content-Disposition: form-data; name="camera"' + line, "Straße".encode())
        ((part, _, text),) = parts(body, "X", 1)
        assert (part.name, text) == ("camera", "Straße")


def test_field_charset_latin_1_is_read() -> None:
    head = b'Content-Disposition: form-data; name="camera"'
    body = form(head + b"\r\nContent-Type: text/plain; charset=ISO-8859-1", b"Stra\xdfe")
    ((_, _, text),) = parts(body, "X", 1)
    assert text == "Straße"
    named = b'--X\r\nContent-Disposition: form-data; name="_charset_"\r\n\r\nlatin1\r\n'
    assert [text for *_, text in parts(named + form(head, b"Stra\xdfe"), "X", 2)][1] == "Straße"


OTHERS = [
    "punycode",
    "utf-7",
    "utf-16",
    "idna",
    "gbk",
    "unicode_escape",
    "rot13",
    "hex",
    "x" * 3000,
]


@pytest.mark.parametrize("charset", OTHERS)
@pytest.mark.parametrize("path", ["/v1/recognize", BATCH, JOBS, "/classify", "/predict"])
def test_any_other_charset_is_refused(clients: LiveServer, path: str, charset: str) -> None:
    head = b'Content-Disposition: form-data; name="camera"'
    text = b"a" * TEXT_BYTES_MAX
    bodies = [
        (form(head + f"\r\nContent-Type: text/plain; charset={charset}".encode(), text), ""),
        (form(b'Content-Disposition: form-data; name="_charset_"', charset.encode()), ""),
        (form(head, text), f"; charset={charset}"),
    ]
    for body, more in bodies:
        answer = post(clients, path, body, f"multipart/form-data; boundary=X{more}")
        assert answer.status_code == 400
        assert "UTF-8" in answer.text


@pytest.mark.parametrize("charset", OTHERS)
@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/v1/recognize", "application/json"),
        ("/v1/recognize", "application/x-www-form-urlencoded"),
        ("/v1/jobs", "application/json"),
        ("/predict", "application/json"),
        ("/start-task", "application/json"),
        ("/v1/models/iris/activate", "application/json"),
        ("/v1/models/iris:predict", "application/json"),
        ("/v2/models/iris/infer", "application/json"),
    ],
)
def test_any_other_charset_of_a_body(
    clients: LiveServer, path: str, kind: str, charset: str
) -> None:
    answer = post(clients, path, b"{}", f'{kind}; charset="{charset}"')
    assert answer.status_code == 400
    assert "UTF-8" in answer.text


def test_json_in_latin_1_and_with_a_byte_order_mark(clients: LiveServer) -> None:
    text = '{"input": [5.1, 3.5, 1.4, 0.2], "camera": "Straße", "model": "iris"}'
    for body, kind in (
        (text.encode("latin-1"), "application/json; charset=ISO-8859-1"),
        (text.encode("utf-8-sig"), "application/json"),
        (text.encode("utf-8-sig"), "application/json; charset=utf-8"),
    ):
        assert post(clients, "/v1/recognize", body, kind).status_code == 200
    infer = b'\xef\xbb\xbf{"instances": [[5.1, 3.5, 1.4, 0.2]]}'
    assert post(clients, "/v1/models/iris:predict", infer, "application/json").status_code == 200


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b'{"image_base64": "abc"}', "Content-Type: application/json"),
        (b'\xef\xbb\xbf {"image_url": "http://x/"}', "Content-Type: application/json"),
        (b"[1, 2]", "Content-Type: application/json"),
        (b"/9j/4AAQSkZJRgABAQEASABIAAD", "Content-Type: application/json"),
        (b"data:image/jpeg;base64,/9j/4AAQSkZJRgABAQEASABIAAD", "Content-Type: application/json"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/recognize", JOBS])
@pytest.mark.parametrize("kind", ["", "text/plain", "image/jpeg", "application/octet-stream"])
def test_image_in_another_wrapping_is_told_so(
    clients: LiveServer, path: str, kind: str, body: bytes, named: str
) -> None:
    headers = {"Content-Type": kind} if kind else {}
    answer = requests.post(clients.url + path, io.BytesIO(body), headers=headers, timeout=60)
    assert answer.status_code == 415
    assert named in answer.json()["error"]["message"]


@pytest.mark.parametrize("kind", ["text/plain", ""])
def test_features_without_a_type_are_told_which(clients: LiveServer, kind: str) -> None:
    headers = {"Content-Type": kind} if kind else {}
    body = io.BytesIO(b'{"features": [5.1, 3.5, 1.4, 0.2]}')
    answer = requests.post(clients.url + "/predict", body, headers=headers, timeout=60)
    assert answer.status_code == 415
    assert "Content-Type: application/json" in answer.json()["error"]


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "deflate", "identity"])
def test_compressed_image_is_taken(clients: LiveServer, coding: str) -> None:
    packers: dict[str, Callable[[bytes], bytes]] = {
        "gzip": gzip.compress,
        "x-gzip": gzip.compress,
        "deflate": zlib.compress,
        "identity": bytes,
    }
    pack = packers[coding]
    for path, field, status in ROUTES:
        body = pack(form(FILES["plain"] % field.encode()))
        headers = {"Content-Type": "multipart/form-data; boundary=X", "Content-Encoding": coding}
        answer = requests.post(clients.url + path, body, headers=headers, timeout=60)
        assert answer.status_code == status
    for path, status in (("/v1/recognize", 200), (JOBS, 202)):
        headers = {"Content-Type": "image/jpeg", "Content-Encoding": coding}
        answer = requests.post(clients.url + path, pack(GREEN), headers=headers, timeout=60)
        assert answer.status_code == status


@functools.cache
def bomb() -> bytes:
    return gzip.compress(bytes(500_000_000), 9)


# The bomb takes a second to make, which those who only collect tests need not wait for.
DAMAGED: list[tuple[str, bytes | Callable[[], bytes], int]] = [
    ("br", GREEN, 415),
    ("gzip, gzip", GREEN, 415),
    ("gzip", GREEN, 400),
    ("deflate", GREEN, 400),
    ("gzip", gzip.compress(GREEN)[:-9], 400),
    ("gzip", gzip.compress(GREEN) * 2, 400),
    ("gzip", gzip.compress(GREEN) + b"\0", 400),
    ("gzip", bomb, 413),
]


@pytest.mark.parametrize("case", range(len(DAMAGED)))
@pytest.mark.parametrize(
    "kind", ["image/jpeg", "multipart/form-data; boundary=X", "application/json"]
)
def test_compressed_body_that_can_not_be_read(clients: LiveServer, case: int, kind: str) -> None:
    coding, given, status = DAMAGED[case]
    body = given() if callable(given) else given
    headers = {"Content-Type": kind, "Content-Encoding": coding}
    for path in ("/v1/recognize", JOBS, *(["/v2/models/iris/infer"] if "json" in kind else [])):
        answer = requests.post(clients.url + path, body, headers=headers, timeout=60)
        assert answer.status_code == status, answer.text
        assert "-3" not in answer.text


def test_bomb_takes_no_more_memory_than_a_body(clients: LiveServer) -> None:
    headers = {"Content-Type": "image/jpeg", "Content-Encoding": "gzip"}
    before = clients.memory()
    for _ in range(5):
        answer = requests.post(clients.url + "/v1/recognize", bomb(), headers=headers, timeout=60)
        assert answer.status_code == 413
    assert clients.memory() - before < 60_000_000


def test_multipart_faults_are_in_our_words() -> None:
    """Each sentence of the parser that is translated is one that it has."""
    source = Path(str(multipart.__file__)).read_text("utf-8")
    assert all(f'"{text}"' in source for text in FAULTS)


def test_header_lines_of_a_part_are_bounded() -> None:
    head = b'Content-Disposition: form-data; name="a"'
    for more in (b"\r\n x" * MOST_LINES, b"\r\nX-Y: z" * MOST_LINES, b"\r\nX-Y: " + b"z" * 5000):
        with pytest.raises(BadRequest, match="header"):
            list(parts(form(head + more), "X", 1))


@pytest.mark.parametrize(
    "head",
    [
        b'Content-Disposition: form-data; name="a"; x="' + rb"\"" * 2000,
        b'Content-Disposition: form-data; name="a"; filename*=' + b"'" * 4000,
        b'Content-Disposition: form-data; name="a"' + b"; filename" * 390,
        b'Content-Disposition: form-data; name="a"' + b"; " * 2000,
        b'Content-Disposition: form-data; name="a"; x=' + b" " * 4000,
        b'Content-Disposition: form-data; name="a"; ' + b"x" * 4000,
        b"Content-Type: a" + b'; a="' * 1000,
    ],
)
def test_header_that_is_hard_to_read(head: bytes) -> None:
    """Time grows with the header's length, not with its square: 500 parts of it are read while a
    square would take minutes."""
    one = b"--X\r\n" + head[:4090] + b"\r\n"
    if b"Disposition" not in head:
        one += b'Content-Disposition: form-data; name="a"\r\n'
    body = (one + b"\r\nx\r\n") * 500 + b"--X--\r\n"
    started = time.process_time()
    with suppress(BadRequest):
        assert len(list(parts(body, "X", 1000))) == 500
    assert time.process_time() - started < 30


def test_urlencoded_fields() -> None:
    body = b"a=1&b=Stra%C3%9Fe+4&&c&d=%zz&=x&a=2"
    assert parse_urlencoded(body, "utf-8", 10) == [
        ("a", "1"),
        ("b", "Straße 4"),
        ("c", ""),
        ("d", "%zz"),
        ("", "x"),
        ("a", "2"),
    ]
    assert parse_urlencoded(b"b=Stra%DFe", "latin-1", 10) == [("b", "Straße")]


def test_long_urlencoded_image_is_as_it_was_sent() -> None:
    letters = "".join(map(chr, range(1, 127))) * 1000
    body = requests.models.RequestEncodingMixin._encode_params({"image_base64": letters}).encode()
    assert parse_urlencoded(body, "utf-8", 1) == [("image_base64", letters)]
    with pytest.raises(InvalidFieldError, match="image_base64 has a %"):
        parse_urlencoded(b"image_base64=%4" + b"g" * TEXT_BYTES_MAX, "utf-8", 1)


@pytest.mark.parametrize("field", ["camera", "parameters", "unknown", "n" * 100_000])
def test_long_text_of_a_field_is_refused(clients: LiveServer, field: str) -> None:
    value = b"%41" * 3_000_000
    kind = "application/x-www-form-urlencoded"
    before = clients.memory()
    answer = post(clients, "/v1/recognize", field.encode() + b"=" + value, kind)
    assert answer.status_code == 400
    head = f'Content-Disposition: form-data; name="{field[:100]}"'.encode()
    assert post(clients, "/v1/recognize", form(head, value)).status_code == 400
    assert clients.memory() - before < 100_000_000


def test_many_urlencoded_fields_are_refused(clients: LiveServer) -> None:
    kind = "application/x-www-form-urlencoded"
    for path in ("/v1/recognize", JOBS, "/classify"):
        answer = post(clients, path, b"a=b&" * 3_000_000, kind)
        assert answer.status_code in (400, 413)
