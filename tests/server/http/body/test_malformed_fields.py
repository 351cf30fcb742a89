"""What clients get wrong below the level of fields: told as theirs, with its name."""

import gzip
import json
import math

import pytest
import requests
from server_process import LiveServer

from server.api.recognize.deadlines import parse_instant
from server.errors import InvalidFieldError
from server.http.body.json_body import MOST_NESTED

PATH = "/v1/recognize"


def post(
    server: LiveServer, path: str, body: bytes, **headers: str
) -> tuple[requests.Response, str]:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = requests.post(server.url + path, body, headers=names, timeout=60)
    error = answer.json().get("error", "")
    return answer, error["message"] if isinstance(error, dict) else error


def form(*head: str) -> bytes:
    """A form whose only field, `camera`, has these header lines too."""
    lines = ("--X", 'Content-Disposition: form-data; name="camera"', *head, "", "a", "--X--", "")
    return "\r\n".join(lines).encode()


@pytest.mark.parametrize("charset", ["undefined", "idna", "a\0b", "nope", "zlib"])
def test_a_fields_charset_may_be_anything(colors_server: LiveServer, charset: str) -> None:
    body = form(f"Content-Type: text/plain; charset={charset}")
    answer, _ = post(colors_server, PATH, body, Content_Type="multipart/form-data; boundary=X")
    assert answer.status_code == 400


@pytest.mark.parametrize(
    "head", [[f"X-{i}: y" for i in range(20)], ["X-Long: " + "y" * 5000]], ids=["many", "long"]
)
def test_a_parts_header_is_no_large_body(colors_server: LiveServer, head: list[str]) -> None:
    body = form(*head)
    answer, told = post(colors_server, PATH, body, Content_Type="multipart/form-data; boundary=X")
    assert answer.status_code == 400
    assert "header" in told


def test_a_length_of_thousands_of_digits(colors_server: LiveServer) -> None:
    answer, told = post(
        colors_server,
        "/v2/models/colors/infer",
        b"{}",
        **{"Inference-Header-Content-Length": "1" * 5000},
    )
    assert answer.status_code == 400
    assert told.startswith("Inference-Header-Content-Length should be")


@pytest.mark.parametrize("path", [PATH, "/v1/models/colors:predict"])
def test_compressed_json(colors_server: LiveServer, path: str) -> None:
    data = gzip.compress(json.dumps({"top_k": 0, "instances": []}).encode())
    _, told = post(
        colors_server, path, data, Content_Type="application/json", Content_Encoding="gzip"
    )
    assert "not valid JSON" not in told
    answer, _ = post(
        colors_server, path, data, Content_Type="application/json", Content_Encoding="br"
    )
    assert answer.status_code == 415
    assert answer.headers["Accept-Encoding"] == "gzip, deflate"


@pytest.mark.parametrize(
    "text", ["1_0", "\u0661\u0662", "2026-W47-6T13:00:00Z", "2026-11-21", "20261121T130000Z", "nan"]
)
def test_other_ways_to_write_an_instant(text: str) -> None:
    with pytest.raises(InvalidFieldError, match="captured_at can't be"):
        parse_instant(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-01-01T00:00:00.250Z", 1767225600.25),
        ("2026-01-01t01:00:00.25+01:00", 1767225600.25),
        ("2026-01-01 00:00:00z", 1767225600),
        ("1767225600.25", 1767225600.25),
        ("1.5e3", 1500),
        ("-1.", -1),
    ],
)
def test_an_instant(text: str, seconds: float) -> None:
    assert math.isclose(parse_instant(text), seconds, rel_tol=1e-12)


@pytest.mark.parametrize(("charset", "text"), [("unicode_escape", rb"\ud800"), ("utf-7", b"+2AA-")])
@pytest.mark.parametrize("path", ["/v1/recognize", "/v1/recognize/batch", "/v1/jobs", "/predict"])
def test_half_a_letter_in_a_field(
    colors_server: LiveServer, path: str, charset: str, text: bytes
) -> None:
    body = form(f"Content-Type: text/plain; charset={charset}").replace(
        b"\na\r", b"\n" + text + b"\r"
    )
    assert text in body
    answer, _ = post(colors_server, path, body, Content_Type="multipart/form-data; boundary=X")
    assert answer.status_code == 400


def test_more_lists_than_any_tensor_has(colors_server: LiveServer) -> None:
    body = gzip.compress(b'{"input":[' + b"[]," * MOST_NESTED + b"[]]}")
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    answer = requests.post(colors_server.url + PATH, body, headers=headers, timeout=60)
    assert answer.status_code == 400
    assert "more than 1,000,000 lists" in answer.json()["error"]["message"]
