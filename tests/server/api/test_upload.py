"""POST /v1/models/NAME/upload by clients that leave, stall, or send what should never end."""

import os
import shutil
import socket
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from images import encode, plain
from job_workers import await_that
from server_process import SHARED, LiveServer, live_server
from tiny_models import MakeModel, write_bundle

from server.cli.fleet.push import pack
from server.recognition.manifest import read_bundle
from server.store.bundles.upload import PARTIAL_PREFIX
from server.store.bundles.version_history import CHOICE_FILE

RED = encode(plain((255, 0, 0)), "PNG")


@pytest.fixture(scope="module")
def models(tiny_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """colors/1, and what nobody should find there: FIFOs under the names of files."""
    folder = tmp_path_factory.mktemp("upload_models")
    good = write_bundle(folder / "colors" / "1", tiny_model("colors"))
    for number, name in enumerate(("bundle.json", "labels.txt", "model.tflite"), 2):
        spoiled = good.with_name(str(number))
        shutil.copytree(good, spoiled)
        (spoiled / name).unlink()
        os.mkfifo(spoiled / name)
    os.mkfifo(folder / "colors" / CHOICE_FILE)
    return folder


@pytest.fixture(scope="module")
def uploads(models: Path) -> Iterator[LiveServer]:
    with live_server(models=models, model="colors", body_timeout=1) as server:
        yield server


@pytest.fixture(scope="module")
def archive(tiny_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("made") / "bolts" / "1"
    write_bundle(folder, tiny_model("colors"))
    return pack(folder, read_bundle(folder).manifest)


def send(server: LiveServer, data: bytes) -> tuple[int, str]:
    """Status and code of the answer to an upload."""
    url = f"{server.url}/v1/models/bolts/upload"
    answer = requests.post(url, data, headers={"Content-Type": "application/x-tar"}, timeout=60)
    return answer.status_code, answer.json().get("error", {}).get("code", "")


def begin(server: LiveServer, data: bytes) -> socket.socket:
    """A connection on which the first half of an upload has been sent."""
    client = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    client.sendall(
        b"POST /v1/models/bolts/upload HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        b"Content-Type: application/x-tar\r\nContent-Length: %d\r\n\r\n" % len(data)
    )
    client.sendall(data[: len(data) // 2])
    return client


def left_behind(models: Path) -> list[Path]:
    return list(models.glob(f"*/{PARTIAL_PREFIX}*"))


def test_server_starts_beside_fifos(uploads: LiveServer) -> None:
    assert uploads.recognize(RED).json()["predictions"][0]["label"] == "red"
    answer = requests.get(f"{uploads.url}/v1/models/colors", timeout=60).json()
    reasons = {each["version"]: each["reason"] for each in answer["failures"]}
    assert sorted(reasons) == [2, 3, 4]
    assert all("it is a FIFO, not a plain file" in reason for reason in reasons.values())


def test_upload_of_what_never_ends_is_refused(uploads: LiveServer, models: Path) -> None:
    file = SHARED / "cases" / "tar_4_kb_never_ends.tar"
    if not file.is_file():
        pytest.skip("../shared/cases is not on this machine")
    for _ in range(4):
        assert send(uploads, file.read_bytes()) == (422, "VERSION_REFUSED")
    assert left_behind(models) == []
    assert not (models / "bolts").exists()


def test_upload_of_a_number_of_60000_digits(uploads: LiveServer, models: Path) -> None:
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 60_008
    data = header.tobuf(tarfile.USTAR_FORMAT) + b"9" * 60_000 + b" path=a\n"
    assert send(uploads, data.ljust(102_400, b"\0")) == (422, "VERSION_REFUSED")
    assert left_behind(models) == []


def test_upload_whose_client_stalls_leaves_nothing(
    uploads: LiveServer, models: Path, archive: bytes
) -> None:
    with begin(uploads, archive) as client:
        assert client.recv(100).startswith(b"HTTP/1.1 408 ")
        await_that(lambda: not (models / "bolts").exists(), "the end of the upload")


def test_upload_whose_client_leaves_leaves_nothing(
    uploads: LiveServer, models: Path, archive: bytes
) -> None:
    client = begin(uploads, archive)
    await_that(lambda: left_behind(models), "the arrival")
    client.close()
    await_that(lambda: not left_behind(models), "the end of the arrival")
    assert send(uploads, archive) == (200, "")
