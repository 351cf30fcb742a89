"""Multipart bodies, taken apart without Werkzeug's parser."""

from pathlib import Path

import pytest
import requests
from sites import error, make_app
from werkzeug.exceptions import BadRequest, RequestEntityTooLarge

from server.http.body.multipart import boundary_of, parts


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("multipart/form-data; boundary=3d6b6a416f9b5", "3d6b6a416f9b5"),
        ("multipart/form-data;boundary=----WebKitFormBoundaryePkpFF7tj", "----WebKitFormBoundary"),
        ('multipart/form-data; boundary="a b"', "a b"),
        ("Multipart/Form-Data; charset=utf-8; BOUNDARY=x", "x"),
        ("multipart/form-data", ""),
        ("multipart/form-data; boundary=", ""),
        ("multipart/mixed; boundary=x", ""),
        ("image/jpeg", ""),
    ],
)
def test_the_boundary_is_found_however_it_is_written(content_type: str, boundary: str) -> None:
    found = boundary_of(content_type)
    assert found.startswith(boundary)
    assert bool(found) == bool(boundary)


def test_fields_have_text_and_files_have_none() -> None:
    prepared = requests.Request(
        "POST",
        "http://test",
        data={"camera": "Straße 4"},
        files={
            "file": ("frame.jpg", b"\xff\xd8\r\n--\r\n", "image/jpeg"),
            "empty": ("e", b"", "text/plain"),
        },
    ).prepare()
    assert isinstance(prepared.body, bytes)
    boundary = boundary_of(str(prepared.headers["Content-Type"]))
    found = {s.name: (data, text) for s, data, text in parts(prepared.body, boundary, 3)}
    assert found == {
        "camera": ("Straße 4".encode(), "Straße 4"),
        "file": (b"\xff\xd8\r\n--\r\n", None),
        "empty": (b"", None),
    }
    with pytest.raises(RequestEntityTooLarge):
        list(parts(prepared.body, boundary, 2))
    with pytest.raises(BadRequest, match="malformed"):
        list(parts(prepared.body[:-10], boundary, 3))


def test_too_many_parts_are_refused(colors: Path, tmp_path: Path) -> None:
    client = make_app(colors, tmp_path / "none", max_form_parts=3).test_client()
    data = {f"field{n}": "x" for n in range(5)}
    answer = client.post("/v1/recognize", data=data, content_type="multipart/form-data")
    assert (answer.status_code, error(answer)["code"]) == (413, "BODY_TOO_LARGE")
