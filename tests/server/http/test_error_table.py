"""The README's table of errors: each of its rows is given, and nothing else is."""

import json
import re
import socket
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import requests
from clients import frame
from images import encode, huge_png
from job_workers import await_that
from routes import API
from server_process import ROOT, LiveServer, live_server

from server import errors
from server.http.errors import HTTP_CODES

SCRIPTS = ROOT / "scripts"
sys.path.insert(0, str(SCRIPTS))
from fuzz.answer_checks import documented  # noqa: E402 - scripts lie beside each other

sys.path.remove(str(SCRIPTS))

TESTS = ROOT / "tests" / "server"
RECOGNIZE = "/v1/recognize"
# What is given where a fault has to be made first: by a test of this name, in that file.
ELSEWHERE = {
    "BROKER_UNAVAILABLE": "jobs/test_kills.py",
    "CAMERAS_FULL": "api/test_added_cameras.py",
    "CAMERA_EXISTS": "api/test_added_cameras.py",
    "CAMERA_IN_SETTINGS": "api/test_added_cameras.py",
    "CAMERA_NOT_FOUND": "line/test_pulled_cameras.py",
    "OUTPUT_NOT_FOUND": "line/test_webhook.py",
    "OUTPUT_UNAVAILABLE": "line/test_webhook.py",
    "OUTPUT_UNTESTABLE": "line/test_webhook.py",
    "PRODUCT_NOT_FOUND": "line/test_products.py",
    "CAMERA_UNAVAILABLE": "line/test_pulled_cameras.py",
    "DEADLINE_EXCEEDED": "api/recognize/test_recognize.py",
    "FORBIDDEN": "http/access/test_authentication.py",
    "IMAGE_URL_FAILED": "api/recognize/test_image_url.py",
    "INTERNAL": "http/test_request_log.py",
    "JOBS_FULL": "api/test_jobs.py",
    "JOBS_UNAVAILABLE": "api/test_jobs.py",
    "JOB_FINISHED": "api/test_jobs.py",
    "JOURNAL_UNREADABLE": "api/test_journal.py",
    "KEYS_OFF": "api/test_key_requests.py",
    "KEY_EXISTS": "api/test_key_requests.py",
    "KEY_NOT_FOUND": "api/test_key_requests.py",
    "LAST_ADMIN_KEY": "api/test_key_requests.py",
    "MODEL_OUTPUT_INVALID": "api/recognize/test_not_finite.py",
    "MODEL_NEEDED": "api/compat/test_triton_extensions.py",
    "NOT_READY": "api/test_health.py",
    "OVERLOADED": "api/recognize/test_recognize.py",
    "RATE_LIMITED": "http/access/test_rate_limits.py",
    "REQUEST_TIMEOUT": "http/body/test_slow_bodies.py",
    "UNAUTHORIZED": "http/access/test_authentication.py",
    "UNSAFE_IMAGE": "store/test_crashes.py",
    "VERSION_EXISTS": "cli/test_fleet.py",
}
Give = Callable[[LiveServer], requests.Response]


def post(path: str, body: bytes = b"", kind: str = "image/png") -> Give:
    return lambda server: requests.post(
        server.url + path, body, headers={"Content-Type": kind}, timeout=60
    )


def get(path: str, method: str = "GET") -> Give:
    return lambda server: requests.request(method, server.url + path, timeout=60)


def without_length(path: str, server: LiveServer) -> tuple[int, bytes]:
    """A POST that says no length, as HTTP/1.1 lets it."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
        client.sendall(
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nConnection: close\r\n"
            "Content-Type: image/jpeg\r\n\r\n".encode()
        )
        said = b""
        while piece := client.recv(65536):
            said += piece
    return int(said.split()[1]), said.partition(b"\r\n\r\n")[2]


def unsent(server: LiveServer) -> requests.Response:
    status, body = without_length(RECOGNIZE, server)
    answer = requests.Response()
    answer.status_code, answer._content = status, body
    return answer


def refused_version(server: LiveServer) -> requests.Response:
    made = BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("bundle.json"))
    return post("/v1/models/red/upload", made.getvalue(), "application/x-tar")(server)


def superseded(server: LiveServer) -> requests.Response:
    """A camera's frame that waits while another is worked on, as its newer one comes."""
    huge = encode(np.zeros((6000, 6000, 3), np.uint8), "PNG")
    found: list[requests.Response] = []

    def one() -> bool:
        busy = [threading.Thread(target=server.recognize, args=(huge,)) for _ in range(2)]
        camera = [
            threading.Thread(target=lambda: found.append(server.recognize(huge, camera="a")))
            for _ in range(3)
        ]
        for thread in (*busy, *camera):
            thread.start()
        for thread in (*busy, *camera):
            thread.join(60)
        found.sort(key=lambda answer: answer.status_code)
        return found[-1].status_code != 200

    await_that(one, "a frame whose place another takes")
    return found[-1]


def unwritable(server: LiveServer) -> requests.Response:
    """A label whose file can't be written, since a folder has its name."""
    assert server.recognize(frame("red")).status_code == 200

    def kept() -> list[dict[str, str]]:
        page = requests.get(server.url + "/v1/samples", timeout=60).json()
        return list(page.get("samples", ()))

    (sample, *_) = await_that(kept, "a sample")
    for folder in server.data.rglob("samples"):
        (folder / f".{sample['id']}.json.new").mkdir()
    return requests.post(
        f"{server.url}/v1/samples/{sample['id']}/label", json={"label": "red"}, timeout=60
    )


GIVEN: dict[str, Give] = {
    "BAD_REQUEST": post(RECOGNIZE, b"x", "multipart/form-data; boundary=x"),
    "BODY_TOO_LARGE": post(RECOGNIZE, bytes(17_000_000)),
    "IMAGE_TOO_LARGE": post(RECOGNIZE, huge_png()),
    "INVALID_FIELD": post(RECOGNIZE + "?top_k=0", frame("red")),
    "JOB_NOT_FOUND": get("/v1/jobs/none"),
    "LENGTH_REQUIRED": unsent,
    "METHOD_NOT_ALLOWED": get(RECOGNIZE),
    "MISSING_FIELD": post(RECOGNIZE),
    "MODEL_NOT_FOUND": get("/v1/models/none"),
    "NOTHING_TO_ROLL_BACK": post("/v1/models/iris/rollback"),
    "NOT_FOUND": get("/none"),
    "STORAGE_FAILED": unwritable,
    "SUPERSEDED": superseded,
    "UNDECODABLE_IMAGE": post(RECOGNIZE, frame("red")[:60]),
    "UNSUPPORTED_IMAGE": post(RECOGNIZE, b"no image at all, but text"),
    "UNSUPPORTED_MEDIA_TYPE": post("/v1/models/iris/upload", b"x", "text/plain"),
    "VERSION_PINNED": post("/v1/models/corners/activate", b'{"version": 2}', "application/json"),
    "VERSION_REFUSED": refused_version,
}


@pytest.fixture(scope="module")
def giving(client_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    data = tmp_path_factory.mktemp("data")
    with live_server(
        models=client_models,
        model="corners",
        version=1,
        interpreters=1,
        wide_interpreter=False,
        latest_only=True,
        samples="on",
        samples_share=1,
        data=data,
    ) as server:
        yield server


def test_table_lists_every_error_that_is_raised() -> None:
    source = "".join(p.read_text("utf-8") for p in (ROOT / "server").rglob("*.py"))
    kinds = {errors.LinesideError}
    while more := {sub for kind in kinds for sub in kind.__subclasses__()} - kinds:
        kinds |= more
    ours = [kind for kind in kinds if kind.__module__ == errors.__name__]
    raised = {kind for kind in ours if re.search(rf"\b{kind.__name__}\((?!\w*Error\))", source)}
    pairs = {(kind.status, kind.code) for kind in raised} | set(HTTP_CODES.items())
    assert pairs | {(500, "INTERNAL")} == documented()


def test_every_row_is_given_by_some_test() -> None:
    codes = {code for _, code in documented()}
    assert codes == {*GIVEN, *ELSEWHERE}
    assert not GIVEN.keys() & ELSEWHERE.keys()
    for code, file in ELSEWHERE.items():
        assert f'"{code}"' in (TESTS / file).read_text("utf-8"), code


@pytest.mark.parametrize("code", GIVEN)
def test_row_is_given(giving: LiveServer, code: str) -> None:
    answer = GIVEN[code](giving)
    assert answer.json()["error"]["code"] == code
    assert (answer.status_code, code) in documented()
    assert giving.recognize(frame("red")).status_code == 200


# Requests to these are whole without a body.
BODILESS = ("/load", "/unload", "/activate", "/v2/repository/index")
UPLOADS = sorted({o.path for o in API if o.bodies and not o.path.endswith(BODILESS)})


@pytest.mark.parametrize("path", UPLOADS)
def test_body_without_length_is_411(clients: LiveServer, path: str) -> None:
    filled = path.format(name="corners", version=1, label="stable", sample="x", job="x")
    status, body = without_length(filled, clients)
    assert status == 411, body
    error = json.loads(body)["error"]
    assert "Content-Length" in (error if isinstance(error, str) else error["message"])


@pytest.mark.parametrize("path", UPLOADS)
def test_body_of_no_bytes_is_a_missing_field(clients: LiveServer, path: str) -> None:
    filled = path.format(name="corners", version=1, label="stable", sample="x", job="x")
    kinds = {kind for o in API if o.path == path for kind in o.bodies}
    for kind in kinds:
        more = "; boundary=x" if kind.startswith("multipart") else ""
        answer = post(filled, b"", kind + more)(clients)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert isinstance(error, str) or error["code"] == "MISSING_FIELD"


@pytest.mark.parametrize("action", ["load", "rollback"])
def test_change_that_needs_no_body_needs_no_length(clients: LiveServer, action: str) -> None:
    status, _ = without_length(f"/v1/models/iris/{action}", clients)
    assert status in (200, 409)
