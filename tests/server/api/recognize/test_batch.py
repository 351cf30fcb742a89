"""/v1/recognize/batch: several files, each with its own result or error."""

import struct
from typing import Any

import requests
from clients import frame
from server_process import LiveServer


def post(clients: LiveServer, files: list[Any], **params: Any) -> requests.Response:
    return requests.post(
        clients.url + "/v1/recognize/batch", files=files, params=params, timeout=60
    )


def refused(clients: LiveServer, code: str) -> float:
    name = f'lineside_frames_refused_total{{reason="{code}"}}'
    lines = requests.get(clients.url + "/metrics", timeout=60).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def test_each_file_has_its_own_result_or_error(clients: LiveServer) -> None:
    before = refused(clients, "UNSUPPORTED_IMAGE")
    files = [
        ("file", ("one.png", frame("red"))),
        ("file", ("text.txt", b"no image")),
        ("file", ("two.jpg", frame("blue", "JPEG"))),
        ("other", ("cut.jpg", frame("blue", "JPEG")[:-100])),
    ]
    answer = post(clients, files, top_k=1, camera="st1").json()
    assert [item["file"] for item in answer["results"]] == [f[1][0] for f in files]
    one, text, two, cut = answer["results"]
    assert one["result"]["predictions"][0]["label"] == "red"
    assert two["result"]["predictions"][0]["label"] == "blue"
    assert len(two["result"]["predictions"]) == 1
    assert two["result"]["camera"] == "st1"
    assert (one["error"], text["result"]) == (None, None)
    assert text["error"]["code"] == "UNSUPPORTED_IMAGE"
    assert cut["error"]["code"] == "UNDECODABLE_IMAGE"
    assert text["error"]["request_id"] == answer["request_id"]
    assert refused(clients, "UNSUPPORTED_IMAGE") == before + 1


def test_file_with_opencv_quirk_spoils_no_other(clients: LiveServer) -> None:
    """A file that OpenCV reads in its own way spoils no other file."""
    floats = b"Pf\n40 30\n-1.0\n" + struct.pack("<f", 0.5) * 1200
    files = [("file", ("one.png", frame("red"))), ("file", ("grey.pfm", floats))]
    answered = post(clients, files)
    assert answered.status_code == 200
    one, grey = answered.json()["results"]
    assert one["result"]["predictions"][0]["label"] == "red"
    assert grey["error"]["code"] == "UNSUPPORTED_IMAGE"


def test_what_is_wrong_with_all_of_it(clients: LiveServer) -> None:
    none = requests.post(clients.url + "/v1/recognize/batch", timeout=60)
    assert (none.status_code, none.json()["error"]["code"]) == (400, "MISSING_FIELD")
    image = ("file", ("a.png", frame("red")))
    many = post(clients, [image] * 33)
    assert many.status_code == 400
    assert "33 files" in many.json()["error"]["message"]
    assert post(clients, [image], model="nuts").status_code == 404
    assert post(clients, [image], model="iris").status_code == 400
