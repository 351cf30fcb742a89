"""The clients of docs/clients.md, run as the page says against one server with a key."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from server_process import ROOT, LiveServer, live_server
from sites import NOW

from server.store.keys import add_key

EXAMPLES = ROOT / "examples"
PAGE = (ROOT / "docs" / "clients.md").read_text("utf-8")
# The commands that post the photo.
COMMANDS = [
    line[2:].partition("  #")[0].strip()
    for line in PAGE.splitlines()
    if line.startswith("$ ") and "photo.jpg" in line
]
SKETCH, FLOW = "esp32_cam.ino", "node_red_flow.json"
WRONG_KEY = "ls_" + "x" * 43


class Site:
    """A server of the shipped bundle with the key `key` of `st4`."""

    def __init__(self, server: LiveServer, key: str) -> None:
        self.server, self.key = server, key

    def url(self, text: str) -> str:
        assert "http://DEVICE:8080" in text
        return text.replace("http://DEVICE:8080", self.server.url)

    def run(self, command: str, photo: Path, key: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the page with `key`."""
        command = self.url(command).replace("photo.jpg", str(photo))
        command = command.replace("python ", f"{sys.executable} ", 1)
        # Compiles in half the time.
        env = os.environ | {"LINESIDE_KEY": key, "JDK_JAVA_OPTIONS": "-XX:TieredStopAtLevel=1"}
        return subprocess.run(
            command, shell=True, cwd=EXAMPLES, env=env, capture_output=True, text=True, timeout=120
        )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    file = tmp_path_factory.mktemp("keys") / "keys.jsonl"
    key = add_key(file, "st4", ["recognize"], now=NOW, digest_login=True)
    with live_server(models=ROOT / "models", model="parts", keys_file=file) as server:
        yield Site(server, key)


@pytest.fixture(scope="module")
def photo(shipped: Path) -> Path:
    """A shipped sample of a scratched part."""
    return shipped / "samples" / "scratched.jpg"


def test_examples_are_short_and_all_run() -> None:
    files = {path.name for path in EXAMPLES.iterdir()}
    assert {name for name in files if any(name in each for each in COMMANDS)} == files - {
        SKETCH,
        FLOW,
    }
    assert SKETCH in PAGE
    assert FLOW in PAGE
    lengths = {name: len((EXAMPLES / name).read_text("utf-8").splitlines()) for name in files}
    assert max(lengths.values()) < 40, lengths


@pytest.mark.parametrize("command", COMMANDS)
def test_client_prints_verdict_or_its_refusal(site: Site, photo: Path, command: str) -> None:
    program = command.split()[0]
    if shutil.which(program) is None and program != "python":
        pytest.skip(f"{program} is not installed")
    done = site.run(command, photo, site.key)
    assert done.returncode == 0, done
    assert "scratched" in done.stdout
    assert re.search(r'"verdict": ?"fail"|verdict: fail', done.stdout)
    refused = site.run(command, photo, WRONG_KEY)
    assert refused.returncode != 0
    assert re.search("(key|login).* not valid", refused.stdout + refused.stderr), refused
    assert "verdict" not in refused.stdout


def printed(sketch: str, values: dict[str, bytes]) -> list[bytes]:
    """Return what each `client.print` and `client.write` of a sketch sends, with `values` in place
    of its names."""
    token = re.compile(r'"(?:[^"\\]|\\.)*"|String\(frame->len\)|frame->buf, frame->len|\w+')
    return [
        b"".join(
            json.loads(each).encode() if each.startswith('"') else values[each]
            for each in token.findall(call)
        )
        for call in re.findall(r"client\.(?:print|write)\((.*)\);", sketch)
    ]


def spoken(site: Site, key: str, frame: bytes) -> tuple[str, bytes]:
    """Return status line and body of the answer to what the sketch sends."""
    values = {"HOST": b"127.0.0.1", "KEY": key.encode(), "frame->buf, frame->len": frame}
    values["String(frame->len)"] = str(len(frame)).encode()
    pieces = printed((EXAMPLES / SKETCH).read_text("utf-8"), values)
    assert len(pieces) == 4
    with socket.create_connection(("127.0.0.1", site.server.port), 60) as client:
        for piece in pieces:
            client.sendall(piece)
        with client.makefile("rb") as stream:
            head, found, body = stream.read().partition(b"\r\n\r\n")
    assert found
    # The sketch reads no chunks.
    assert b"transfer-encoding" not in head.lower()
    return head.splitlines()[0].decode(), body


def test_sketch_speaks_http_and_reads_the_verdict(site: Site, photo: Path) -> None:
    status, body = spoken(site, site.key, photo.read_bytes())
    assert status.startswith("HTTP/1.1 200")
    assert json.loads(body)["verdict"] == "fail"
    assert json.loads(body)["camera"] == "esp32-1"
    status, body = spoken(site, WRONG_KEY, photo.read_bytes())
    assert status.startswith("HTTP/1.1 401")
    assert "verdict" not in json.loads(body)


def test_flow_posts_and_passes_only_a_pass(site: Site, photo: Path) -> None:
    nodes = {node["id"]: node for node in json.loads((EXAMPLES / FLOW).read_text("utf-8"))}
    by_type = {node["type"]: node for node in nodes.values() if node["type"] != "debug"}
    assert all(node["z"] in nodes for node in nodes.values() if node["type"] != "tab")
    way, node = [], by_type["inject"]
    while node["type"] != "switch":
        way.append(node["type"])
        node = nodes[node["wires"][0][0]]
    assert way == ["inject", "file in", "change", "http request"]
    assert (node["property"], node["rules"]) == (
        "payload.verdict",
        [{"t": "eq", "v": "pass", "vt": "str"}, {"t": "else"}],
    )
    assert [nodes[wires[0]]["name"] for wires in node["wires"]] == ["pass", "reject"]
    assert nodes[by_type["catch"]["wires"][0][0]]["name"] == "reject"
    post, (headers, *_) = by_type["http request"], by_type["change"]["rules"]
    assert (headers["p"], headers["tot"], post["ret"]) == ("headers", "json", "obj")
    sent = json.loads(headers["to"]) | {"X-API-Key": site.key}
    answer = requests.request(
        post["method"], site.url(post["url"]), data=photo.read_bytes(), headers=sent, timeout=60
    )
    assert answer.json()["verdict"] == "fail"
