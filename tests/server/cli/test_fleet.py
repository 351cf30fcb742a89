"""A bundle sent to several devices, each a real server with a models folder of its own."""

import io
import itertools
import json
import shutil
import tarfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest
import requests
from fleets import fleet
from images import encode, plain
from server_process import LiveServer, live_server
from tiny_models import COLORS, MakeModel, change_manifest, write_bundle

from server.cli.fleet.push import pack
from server.recognition.manifest import Golden, read_bundle
from server.store.keys import add_key

UPPER = tuple(color.upper() for color in COLORS)
NUMBERS = itertools.count(2)


@pytest.fixture
def bundle(tiny_model: MakeModel, tmp_path: Path, number: int) -> Path:
    """A new version of colors, which answers in capitals."""
    return write_bundle(tmp_path / "new" / "colors" / f"{number}", tiny_model("fast"), UPPER)


@pytest.fixture
def number() -> int:
    """The number of a version that no device has had."""
    return next(NUMBERS)


@pytest.fixture(scope="module")
def running(
    tiny_model: MakeModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[LiveServer]]:
    """Three servers of colors/1; the last holds its version and takes no other."""
    with ExitStack() as stack:
        made = []
        for more in ({}, {}, {"version": 1}):
            models = tmp_path_factory.mktemp("device")
            write_bundle(models / "colors" / "1", tiny_model("fast"))
            made.append(stack.enter_context(live_server(models=models, **more)))
        yield made


@pytest.fixture
def devices(running: list[LiveServer]) -> list[LiveServer]:
    """The servers, which serve colors/1 again."""
    for server in running:
        if serving(server) != 1:
            url = f"{server.url}/v1/models/colors/activate"
            requests.post(url, json={"version": 1}, timeout=60).raise_for_status()
    return running


def serving(server: LiveServer) -> int:
    answer = requests.get(f"{server.url}/v1/models/colors", timeout=60).json()
    return int(answer["serving"])


def test_devices_get_the_bundle_and_serve_it(
    bundle: Path, number: int, devices: list[LiveServer]
) -> None:
    urls = [device.url for device in devices[:2]]
    code, lines = fleet("push", bundle, *urls)
    assert (code, lines) == (0, [f"{url}: serves colors/{number}, before 1" for url in urls])
    assert [serving(device) for device in devices] == [number, number, 1]
    code, lines = fleet("push", bundle, *urls)
    assert (code, lines) == (0, [f"{url}: served colors/{number} already" for url in urls])
    code, lines = fleet("status", *urls, "127.0.0.1:1")
    assert code == 1
    for url, line in zip(urls, lines[:2], strict=True):
        assert line.startswith(f"{url}: ready, colors/{number}; program 0.1.0 (")
    assert lines[2].startswith("127.0.0.1:1: failed, no answer")


@pytest.mark.parametrize("back", [True, False])
def test_the_first_failure_ends_it(
    bundle: Path, number: int, devices: list[LiveServer], back: bool
) -> None:
    good, last, bad = (device.url for device in devices)
    how = ["--rollback-on-failure"] if back else []
    code, lines = fleet("push", bundle, *how, good, bad, last)
    assert code == 1
    assert lines[0] == f"{good}: serves colors/{number}, before 1"
    assert lines[1].startswith(f"{bad}: failed, 409: ")
    told = "back to colors/1" if back else "changed, and left so"
    assert lines[2:] == [f"{good}: {told}", f"{last}: untouched"]
    assert [serving(device) for device in devices] == [1 if back else number, 1, 1]


def test_device_keeps_version_if_golden_frame_fails(
    tiny_model: MakeModel, number: int, devices: list[LiveServer], tmp_path: Path
) -> None:
    """A device on which a golden frame fails keeps its version."""
    golden = (("golden/red.png", encode(plain((255, 0, 0)), "PNG")),)
    wrong = (Golden(file="golden/red.png", label=COLORS[1], probability=0.9),)
    new = tmp_path / "faulty" / "colors" / f"{number}"
    write_bundle(new, tiny_model("fast"), golden=golden)
    change_manifest(new, golden=msgspec.to_builtins(wrong))
    code, lines = fleet("push", new, devices[0].url, devices[1].url)
    assert code == 1
    assert lines[0].startswith(
        f"{devices[0].url}: failed, 422: version {number} of colors is refused"
    )
    assert "should be green at 0.900 but this model says red" in lines[0]
    assert lines[1:] == [f"{devices[1].url}: untouched"]
    assert serving(devices[0]) == 1


def test_a_key_is_needed_and_read_from_a_file(
    bundle: Path, number: int, tiny_model: MakeModel, tmp_path: Path
) -> None:
    write_bundle(tmp_path / "models" / "colors" / "1", tiny_model("fast"))
    keys, file = tmp_path / "keys.jsonl", tmp_path / "key"
    file.write_text(add_key(keys, "owner", ("admin",), now=datetime.now(UTC)) + "\n")
    with live_server(models=tmp_path / "models", keys_file=keys) as server:
        code, lines = fleet("push", bundle, server.url)
        assert code == 1
        assert "401" in lines[0]
        code, lines = fleet("push", bundle, server.url, "--key-file", file)
        assert (code, lines) == (0, [f"{server.url}: serves colors/{number}, before 1"])
    assert fleet("push", bundle, "x", "--key-file", tmp_path / "absent")[0] == 1


class OtherServer(BaseHTTPRequestHandler):
    """Answers whatever it is asked with a page, as a router's sign-in does."""

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>\n<p>Sign in")

    do_GET = do_POST = answer  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def other() -> Iterator[str]:
    """The address of a server that is no Lineside server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), OtherServer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_what_is_no_lineside_server_is_a_failure_too(
    bundle: Path, number: int, devices: list[LiveServer], other: str
) -> None:
    good, failed = devices[0].url, f"{other}: failed, no Lineside server answers: <html> <p>Sign in"
    code, lines = fleet("push", bundle, "--rollback-on-failure", good, other)
    assert code == 1
    assert lines == [
        f"{good}: serves colors/{number}, before 1",
        failed,
        f"{good}: back to colors/1",
    ]
    assert serving(devices[0]) == 1
    assert fleet("status", other) == (1, [failed])


def archive(*files: tuple[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            made.addfile(member, io.BytesIO(content))
    return out.getvalue()


def long_names(count: int) -> bytes:
    """Headers that each say how the next one's file is called."""
    head = tarfile.TarInfo("x")
    head.type, head.size = tarfile.GNUTYPE_LONGNAME, 3
    return (head.tobuf(tarfile.GNU_FORMAT) + b"abc".ljust(tarfile.BLOCKSIZE, b"\0")) * count


def link(kind: bytes, name: str = "model.tflite") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd"
        made.addfile(member)
    return out.getvalue()


def test_what_is_no_bundle_leaves_nothing(
    bundle: Path, number: int, tiny_model: MakeModel, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    write_bundle(models / "colors" / "1", tiny_model("fast"))
    whole = pack(bundle, read_bundle(bundle).manifest)
    other = shutil.copytree(bundle, tmp_path / "other" / "colors" / f"{number}")
    (other / "labels.txt").write_text("changed\n")
    with live_server(models=models, max_bundle_mb=1) as server:

        def send(data: bytes, name: str = "colors") -> tuple[int, str]:
            url = f"{server.url}/v1/models/{name}/upload"
            answer = requests.post(url, data, timeout=60)
            error = answer.json().get("error")
            return answer.status_code, error["code"] if error else json.dumps(answer.json()["new"])

        refused = (422, "VERSION_REFUSED")
        assert send(b"no archive") == refused
        assert send(whole[:1500]) == refused
        assert send(archive(("../bundle.json", b"{}"))) == refused
        assert send(archive(("/tmp/bundle.json", b"{}"))) == refused
        assert send(archive(("deep/er/file", b"x"))) == refused
        assert send(archive(("a", b"x"), ("a", b"x"))) == refused
        assert send(archive(("golden", b"x"), ("golden/a", b"x"))) == refused
        assert send(archive(("golden/a", b"x"), ("golden", b"x"))) == refused
        assert send(link(tarfile.SYMTYPE)) == send(link(tarfile.LNKTYPE)) == refused
        assert send(link(tarfile.FIFOTYPE)) == refused
        assert send(link(tarfile.SYMTYPE, "\udcff")) == refused
        assert send(long_names(950)) == refused
        assert send(archive(("model.tflite", bytes(1_100_000)))) == refused
        assert send(archive(("model.tflite", bytes(4_000_000)))) == (413, "BODY_TOO_LARGE")
        assert send(pack(other, read_bundle(bundle).manifest)) == refused
        assert send(whole, "another") == refused
        assert send(b"") == (400, "MISSING_FIELD")
        assert sorted(path.name for path in models.rglob("*") if path.is_dir()) == ["1", "colors"]
        assert send(whole) == (200, "true")
        assert send(whole) == (200, "false")
        assert serving(server) == 1
        (models / "colors" / f"{number}" / "bundle.json").write_text("{}")
        assert send(whole) == (409, "VERSION_EXISTS")


def test_a_folder_of_versions_is_no_bundle(bundle: Path) -> None:
    code, lines = fleet("push", bundle.parent, "127.0.0.1:1")
    assert code == 1
    assert lines == [
        f"lineside: {bundle.parent} holds versions: name one of them, such as {bundle}"
    ]


def test_what_a_cut_left_behind_is_removed_at_the_start(
    tiny_model: MakeModel, tmp_path: Path
) -> None:
    write_bundle(tmp_path / "colors" / "1", tiny_model("fast"))
    left = tmp_path / "colors" / ".arriving-x"
    left.mkdir()
    (left / "model.tflite").write_bytes(b"half")
    with live_server(models=tmp_path):
        assert not left.exists()
