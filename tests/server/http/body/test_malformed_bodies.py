"""Malformed bodies on every route that takes one: told in our words, not in a library's."""

import base64
import gzip
import http.client
import io
import json
import re
import socket
import sys
import tarfile
import zlib

import pytest
import requests
from clients import frame
from routes import API
from server_process import ROOT, LiveServer

SCRIPTS = ROOT / "scripts"
sys.path.insert(0, str(SCRIPTS))
from fuzz.answer_checks import LIBRARY, documented, fault_of  # noqa: E402 - they lie beside each other

sys.path.remove(str(SCRIPTS))

JPEG = frame("red", "JPEG")
B64 = base64.b64encode(JPEG).decode()
FORM = "multipart/form-data; boundary=X"
D = b'Content-Disposition: form-data; name="file"; filename="a.jpg"\r\n'


def form(head: bytes, end: bytes = b"\r\n--X--\r\n") -> bytes:
    return b"--X\r\n" + head + b"\r\n" + JPEG + end


def tar(name: str, data: bytes, **fields: object) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        for field, value in fields.items():
            setattr(info, field, value)
        archive.addfile(info, io.BytesIO(data))
    return made.getvalue()


MULTIPART = {
    "nothing": b"x",
    "no end": form(D, b""),
    "half an end": form(D, b"\r\n--X"),
    "no disposition": form(b"Content-Type: image/jpeg\r\n"),
    "another disposition": form(b"Content-Disposition: attachment\r\n"),
    "no name": form(b"Content-Disposition: form-data\r\n"),
    "no colon": form(b"Content-Disposition\r\n"),
    "a strange header": form(b"(x): y\r\n" + D),
    "no UTF-8 in a header": form(b"X-\xff: \xfe\r\n" + D),
    "a bare line feed": form(D.replace(b"a.jpg", b"a\nb")),
    "a bare carriage return": form(D.replace(b"a.jpg", b"a\rb")),
    "line feeds alone": form(D).replace(b"\r\n", b"\n"),
    "a fold at the start": form(b" x\r\n" + D),
    "an empty fold": form(D + b"  \r\n"),
    "too long a header": form(b"X-Y: " + b"z" * 9000 + b"\r\n" + D),
    "too many headers": form(b"X-Y: z\r\n" * 40 + D),
    "a wrong length": form(D + b"Content-Length: 3\r\n"),
    "no number as length": form(D + b"Content-Length: x\r\n"),
    "two lengths": form(D + b"Content-Length: 3\r\nContent-Length: 4\r\n"),
    "a charset": form(
        b'Content-Disposition: form-data; name="a"\r\nContent-Type: text/plain;'
        b" charset=punycode\r\n"
    ),
    "many parts": b"--X\r\n"
    + D
    + b"\r\nx\r\n" * 1
    + (b"--X\r\n" + D + b"\r\nx\r\n") * 500
    + b"--X--",
    "bytes before it": b"abc" + form(D),
    "bytes after the boundary": form(D).replace(b"--X\r\n", b"--Xyz\r\n", 1),
}
JSON = {
    "cut off": b'{"image_base64": "',
    "no UTF-8": b'{"camera": "\xff"}',
    "half a letter": b'{"camera": "\\ud800"}',
    "a wrong escape": rb'{"camera": "\x41"}',
    "a comma more": b'{"top_k": 1,}',
    "no JSON": b"hello",
    "NaN": b'{"instances": [NaN], "threshold": NaN}',
    "half a letter and NaN": b'{"instances": [[NaN]], "inputs": {"\\ud83d": NaN}, "\\ud83d": NaN,'
    b' "examples": [{"\\ud83d": NaN}]}',
    "infinity and a fault": b'{"instances": [Infinity,}',
    "a number alone": b"1",
    "a long number": b'{"top_k": ' + b"1" * 5000 + b"}",
    "a huge number": b'{"threshold": 1e999}',
    "nested deeply": b"[" * 100_000,
    "a list": b"[]",
    "null": b"null",
    "another type": b'{"top_k": "many", "image_base64": 1, "instances": {}, "inputs": 1}',
    "two bodies": b"{}{}",
    "UTF-16": json.dumps({"camera": "a"}).encode("utf-16"),
    **{
        f"base64 {name}": json.dumps(
            {
                "image_base64": text,
                "instances": [{"b64": text}],
                "examples": [{"image": {"b64": text}}],
            }
        ).encode()
        for name, text in {
            "cut off": B64[:-3],
            "padding inside": "ab==cd",
            "other letters": "*" * 40,
            "not ASCII": "ü" * 40,
            "of a URL": "data:image/jpeg,abc",
            "in a URL": "data:image/jpeg;base64,=",
            "url-safe": "_-_-" * 9,
        }.items()
    },
    "a tensor": b'{"inputs": [{"name": "a", "shape": [1, 2], "datatype": "FP32",'
    b' "data": [[1], [2, 3]]}]}',
    "a wide shape": b'{"inputs": [{"name": "a", "shape": [9223372036854775807, 9],'
    b' "datatype": "BYTES", "data": ["*"]}]}',
    "ragged rows": b'{"input": [[1], [2, 3]], "instances": [[1], [2, 3]], "features": [[1]]}',
}
URLENCODED = {
    "percent": b"image_base64=%zz&camera=%",
    "no UTF-8": b"camera=%ff&image_base64=%ff",
    "an address": b"image_url=http://[",
    "parameters": b"image_base64=/9j/&parameters={",
    "many": b"a=b&" * 10_000,
}
ARCHIVES = {
    "nothing": b"x" * 512,
    "cut off": tar("bundle.json", b"{}")[:700],
    "a wrong manifest": tar("bundle.json", b"{"),
    "no UTF-8 in it": tar("bundle.json", b'{"name": "\xff"}'),
    "another type": tar("bundle.json", b'{"name": 1}'),
    "a path outside": tar("../bundle.json", b"{}"),
    "an absolute path": tar("/etc/bundle.json", b"{}"),
    "a link": tar("bundle.json", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "a pipe": tar("bundle.json", b"", type=tarfile.FIFOTYPE),
    "a wrong checksum": tar("bundle.json", b"{}").replace(b"ustar", b"uxtar", 1),
}
CORPUS: list[tuple[str, str, dict[str, str], bytes]] = [
    *((name, FORM, {}, body) for name, body in MULTIPART.items()),
    *((name, "application/json", {}, body) for name, body in JSON.items()),
    *((name, "application/x-www-form-urlencoded", {}, b) for name, b in URLENCODED.items()),
    *((name, "application/x-tar", {}, body) for name, body in ARCHIVES.items()),
    ("no boundary", "multipart/form-data", {}, form(D)),
    ("an empty boundary", 'multipart/form-data; boundary=""', {}, form(D)),
    ("a boundary of letters", "multipart/form-data; boundary=\xff", {}, form(D)),
    *(
        (f"damaged {coding}", kind, {"Content-Encoding": coding}, body)
        for kind in (FORM, "application/json", "image/jpeg")
        for coding, body in (
            ("gzip", b"x"),
            ("gzip", gzip.compress(b"{}")[:-3]),
            ("deflate", zlib.compress(b"{}")[:-1] + b"x"),
            ("br", b"x"),
            ("gzip", zlib.compress(b"{}")),
        )
    ),
    *(
        (f"image {end}", "image/jpeg", {}, JPEG[:end])
        for end in (1, 4, 20, len(JPEG) // 2, len(JPEG) - 1)
    ),
    (
        "binary data",
        "application/octet-stream",
        {"Inference-Header-Content-Length": "1"},
        b"{}\0\0",
    ),
    (
        "binary tensor",
        "application/octet-stream",
        {"Inference-Header-Content-Length": "104"},
        b'{"inputs": [{"name": "a", "shape": [1], "datatype": "FP32",'
        b' "parameters": {"binary_data_size": 3}}]}  ' + b"abc",
    ),
]
SENTENCE = re.compile(r'"(?:message|error)":"((?:[^"\\]|\\.)*)"')
PATHS = sorted({o.path for o in API if o.bodies})


@pytest.mark.parametrize("path", PATHS)
def test_malformed_body_is_told_in_our_words(clients: LiveServer, path: str) -> None:
    model = "iris" if "models" in path else "corners"
    pairs = documented()
    faults = []
    filled = path.format(name=model, version=1, label="stable", sample="x", job="x")
    with requests.Session() as session:
        for name, kind, more, body in CORPUS:
            headers: dict[str, str | bytes] = {"Content-Type": kind.encode("latin-1"), **more}
            answer = session.post(clients.url + filled, body, headers=headers, timeout=60)
            given = {key.lower(): value for key, value in answer.headers.items()}
            fault = fault_of(filled, answer.status_code, given, answer.content, pairs)
            # Frames of a batch have their errors within an answer that is well.
            sentences = " ".join(SENTENCE.findall(answer.text))
            fault = fault or (LIBRARY.search(sentences) or [""])[0]
            if fault:
                faults.append(f"{name}: {fault} in {answer.text}")
    assert not faults, "\n".join(faults)


CHUNKS = {
    "no number": b"x\r\nabc\r\n0\r\n\r\n",
    "a long number": b"f" * 40 + b"\r\nabc\r\n0\r\n\r\n",
    "too short": b"5\r\nabc\r\n0\r\n\r\n",
    "no end": b"3\r\nabc\r\n",
    "negative": b"-3\r\nabc\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize(
    "path", ["/v1/recognize", "/v1/jobs", "/classify", "/v2/models/iris/infer"]
)
def test_malformed_chunks_are_told_in_our_words(
    clients: LiveServer, path: str, chunks: bytes
) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", clients.port), timeout=60) as client:
        client.sendall(head + chunks)
        client.shutdown(socket.SHUT_WR)
        response = http.client.HTTPResponse(client)
        try:
            response.begin()
        except (http.client.BadStatusLine, ConnectionError):
            return  # the connection was closed: there is no other answer to what is no HTTP
        body = response.read()
    assert response.status in (400, 408, 415)
    assert not LIBRARY.search(body.decode())
    assert requests.get(clients.url + "/livez", timeout=60).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/start-task",
        "/v2/models/corners/infer",
        "/v1/models/corners:predict",
        "/v1/models/corners:classify",
        "/v1/models/corners/activate",
    ],
)
def test_form_where_json_is_taken_is_told_so(clients: LiveServer, path: str) -> None:
    answer = requests.post(clients.url + path, files={"file": JPEG}, timeout=60)
    assert answer.status_code == 400
    assert "takes JSON" in answer.text
    assert "application/json" in answer.text
