"""/v1/journal and `python -m server journal`, against live servers."""

import csv
import io
import json
import os
import re
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
import requests
from images import encode, plain
from job_workers import await_that
from server_process import ROOT, LiveServer, live_server
from tiny_models import MakeModel, write_bundle

from server.recognition.recognizer import STAGES
from server.store.journal.reader import Filter, JournalReader
from server.store.journal.schema import FILE, Row
from server.store.keys import add_key

GREEN = encode(plain((0, 255, 0)), "PNG")
RED = encode(plain((255, 0, 0)), "PNG")
# Frames whose rows may wait for a disk without one being lost.
ROUND = 1000
PARTS = ("=1+2", "+1", "-A", "@A", "\tx", "plain", 'q"u,o\nted', "Gehäuse №7")


def read(server: LiveServer, **query: Any) -> dict[str, Any]:
    answer = requests.get(f"{server.url}/v1/journal", params=query, timeout=60)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def await_rows(server: LiveServer, count: int) -> list[bytes]:
    """The journal as JSON lines, once it has `count` rows; its disk may be slower than its
    readers are made to wait for it."""

    def look() -> list[bytes] | None:
        url = f"{server.url}/v1/journal?format=jsonl"
        lines: list[bytes] = requests.get(url, timeout=60).content.splitlines()
        return lines if len(lines) >= count else None

    found: list[bytes] = await_that(look, f"{count} rows")
    return found


def offline(data: Path | str, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("LINESIDE_")}
    return subprocess.run(
        [sys.executable, "-m", "server", "journal", "--data", str(data), *arguments],
        cwd=ROOT,
        env=env,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def kept(colors: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server that has answered a known mix of frames; its data lies in its `data` attribute."""
    data = tmp_path_factory.mktemp("kept")
    with live_server(models=colors, data=data) as server:
        for number in range(20):
            data_of = GREEN if number % 4 else RED
            server.recognize(data_of, camera=f"cam-{number % 2}", part=f"A-{number}")
        server.recognize(b"no image", camera="cam-0", part="bad")
        server.recognize(GREEN[:60], camera="cam-1", part="cut")
        server.recognize(GREEN, camera="cam-1", top_k=0)
        server.recognize(GREEN, model="nuts")
        files = [("file", ("a.png", GREEN)), ("file", ("b.png", b"x"))]
        requests.post(f"{server.url}/v1/recognize/batch?camera=b", files=files, timeout=60)
        for part in PARTS:
            server.recognize(GREEN, camera="odd", part=part)
        await_that(lambda: len(read(server, limit=1000)["rows"]) >= 34, "a row of each frame")
        yield server


def test_every_frame_has_its_row(kept: LiveServer) -> None:
    rows = read(kept, limit=1000)["rows"]
    assert [row["id"] for row in rows] == list(range(34, 0, -1))
    counted = Counter((row["status"], row["code"]) for row in rows)
    assert counted == {
        (200, None): 29,
        (415, "UNSUPPORTED_IMAGE"): 2,
        (422, "UNDECODABLE_IMAGE"): 1,
        (400, "INVALID_FIELD"): 1,
        (404, "MODEL_NOT_FOUND"): 1,
    }
    assert len({row["request_id"] for row in rows}) == 33, "a batch is one request"
    by_part = {row["part"]: row for row in rows}
    assert by_part["A-4"]["label"] == "red"
    assert by_part["A-5"]["label"] == "green"
    assert by_part["A-5"]["camera"] == "cam-1"
    assert by_part["A-5"]["probability"] > 0.9
    assert all(by_part["A-5"][f"{stage}_ms"] >= 0 for stage in (*STAGES, "total"))
    assert (by_part["cut"]["model"], by_part["cut"]["label"]) == ("colors", None)
    assert [row["camera"] for row in rows if row["status"] == 400] == ["cam-1"]
    assert [row["model"] for row in rows if row["status"] == 404] == ["nuts"]


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ({"camera": "cam-0"}, 11),
        ({"camera": "cam-0", "label": "red"}, 5),
        ({"part": "A-7"}, 1),
        ({"model": "colors", "version": 1, "status": 200}, 29),
        ({"status": 415}, 2),
        ({"code": "UNDECODABLE_IMAGE"}, 1),
        ({"cached": "true"}, 0),
        ({"cached": "false", "camera": "b"}, 2),
        ({"verdict": "fail"}, 0),
        ({"since": "2020-01-01T00:00:00Z"}, 34),
        ({"since": 4e9}, 0),
        ({"until": "2020-01-01T00:00:00+02:00"}, 0),
        ({"part": "' OR 1=1 --"}, 0),
        ({"limit": 5}, 5),
    ],
    ids=str,
)
def test_filters(kept: LiveServer, query: dict[str, Any], count: int) -> None:
    assert len(read(kept, **query)["rows"]) == count


def test_a_span_of_time(kept: LiveServer) -> None:
    rows = read(kept, order="oldest")["rows"]
    since, until = rows[5]["time"], rows[12]["time"]
    found = read(kept, since=since, until=until, order="oldest")["rows"]
    assert found == [row for row in rows if since <= row["time"] < until]
    assert found


@pytest.mark.parametrize("order", ["newest", "oldest"])
def test_pages_are_all_rows_once(kept: LiveServer, order: str) -> None:
    whole = read(kept, order=order, limit=1000)
    rows: list[Any] = []
    cursor: dict[str, Any] = {}
    while True:
        page = read(kept, order=order, limit=7, **cursor)
        rows += page["rows"]
        if page["next"] is None:
            break
        cursor = {"cursor": page["next"]}
    assert rows == whole["rows"]
    assert whole["next"] is None


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ({"lable": "red"}, "lable"),
        ({"since": "yesterday"}, "since"),
        ({"since": "2026-01-01T00:00:00"}, "since"),
        ({"until": "nan"}, "until"),
        ({"status": "ok"}, "status"),
        ({"verdict": "good"}, "verdict"),
        ({"order": "up"}, "order"),
        ({"limit": 0}, "limit"),
        ({"cursor": "x"}, "cursor"),
        ({"cursor": 1 << 70}, "cursor"),
        ({"version": 1 << 70}, "version"),
        ({"format": "xml"}, "format"),
        ({"camera": "x" * 129}, "camera"),
    ],
    ids=str,
)
def test_what_can_not_be_asked(kept: LiveServer, query: dict[str, Any], word: str) -> None:
    answer = requests.get(f"{kept.url}/v1/journal", params=query, timeout=60)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "INVALID_FIELD"
    assert word in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "how", [{"params": {"format": "csv"}}, {"headers": {"Accept": "text/csv"}}], ids=str
)
def test_csv(kept: LiveServer, how: dict[str, Any]) -> None:
    answer = requests.get(f"{kept.url}/v1/journal", timeout=60, **how)
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    assert "journal.csv" in answer.headers["Content-Disposition"]
    rows = list(csv.DictReader(io.StringIO(answer.content.decode(), newline="")))
    assert tuple(rows[0]) == Row.__struct_fields__
    assert [int(row["id"]) for row in rows] == list(range(1, 35))
    parts = [row["part"] for row in rows if row["camera"] == "odd"]
    assert parts == [*(f"'{part}" for part in PARTS[:5]), *PARTS[5:]]
    for row in rows:
        assert not any(cell[:1] in ("=", "+", "-", "@", "\t") for cell in row.values())


@pytest.mark.parametrize(
    "how",
    [{"params": {"format": "jsonl"}}, {"headers": {"Accept": "application/x-ndjson"}}],
    ids=str,
)
def test_json_lines(kept: LiveServer, how: dict[str, Any]) -> None:
    answer = requests.get(f"{kept.url}/v1/journal", timeout=60, **how)
    assert answer.headers["Content-Type"] == "application/x-ndjson"
    rows = [json.loads(line) for line in answer.content.splitlines()]
    assert rows == read(kept, order="oldest", limit=1000)["rows"]
    assert [row["part"] for row in rows if row["camera"] == "odd"] == list(PARTS)


def test_a_head_leaves_nothing_open(kept: LiveServer) -> None:
    for _ in range(3):
        requests.head(f"{kept.url}/v1/journal?format=csv", timeout=60)
    before = kept.descriptors()
    for _ in range(20):
        requests.head(f"{kept.url}/v1/journal?format=csv", timeout=60)
        answer = requests.get(f"{kept.url}/v1/journal?format=csv", stream=True, timeout=60)
        answer.close()
    await_that(lambda: kept.descriptors() <= before + 5, "the end of what was opened")


def test_offline_reads_the_same_while_the_server_runs(
    kept: LiveServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = next(tmp_path_factory.getbasetemp().glob("kept*"))
    read(kept)
    for form in ("csv", "jsonl"):
        served = requests.get(f"{kept.url}/v1/journal?format={form}&camera=odd", timeout=60)
        done = offline(data, "--format", form, "--camera", "odd")
        assert done.stderr == ""
        assert done.stdout.splitlines() == served.content.decode().splitlines()
    newest = offline(data, "--order", "newest", "--limit", "2", "--format", "jsonl")
    assert [json.loads(line)["id"] for line in newest.stdout.splitlines()] == [34, 33]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--since", "yesterday"], "--since"),
        (["--verdict", "good"], "--verdict"),
        (["--request-id", "x" * 200], "--request-id"),
        (["--limit", "0"], "--limit"),
    ],
    ids=str,
)
def test_offline_says_what_is_wrong(
    kept: LiveServer,
    tmp_path_factory: pytest.TempPathFactory,
    arguments: list[str],
    word: str,
) -> None:
    data = next(tmp_path_factory.getbasetemp().glob("kept*"))
    read(kept)
    done = offline(data, *arguments)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert word in done.stderr


def test_offline_without_a_journal(tmp_path: Path) -> None:
    done = offline(tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert str(tmp_path / FILE) in done.stderr
    (tmp_path / FILE).write_bytes(b"x" * 5000)
    done = offline(tmp_path)
    assert done.returncode == 1
    assert "can't be read" in done.stderr


def test_a_journal_that_is_off(colors: Path, tmp_path: Path) -> None:
    with live_server(models=colors, data=tmp_path, journal="false") as server:
        server.recognize(GREEN)
        answer = requests.get(f"{server.url}/v1/journal", timeout=60)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "NOT_FOUND")
    assert not list(tmp_path.glob("journal*"))


def test_it_begins_empty_and_a_stop_writes_its_last_rows(colors: Path, tmp_path: Path) -> None:
    with live_server(models=colors, data=tmp_path) as server:
        assert read(server) == {"rows": [], "next": None}
        assert requests.get(f"{server.url}/v1/journal?format=csv", timeout=60).text.count("\n") == 1
        names = {server.recognize(GREEN).headers["X-Request-Id"] for _ in range(25)}
        assert server.stop() == 0
    with closing(JournalReader(tmp_path / FILE, Filter())) as reader:
        assert {row.request_id for row in reader.page("newest", 1000)} == names


def test_refusals_before_the_application_are_rows_too(
    tiny_model: MakeModel, tmp_path: Path
) -> None:
    """The gate answers these without Flask."""
    write_bundle(tmp_path / "slow" / "1", tiny_model("slow"))
    settings = {"max_waiting": 1, "frames_at_once": 1, "interpreters": 1}
    with live_server(models=tmp_path, data=tmp_path / "data", **settings) as server:

        def client(name: int) -> Counter[str]:
            seen: Counter[str] = Counter()
            with requests.Session() as session:
                for _ in range(25):
                    url = f"{server.url}/v1/recognize?camera=c{name}&part=p&deadline_ms=300"
                    answer = session.post(
                        url, GREEN, headers={"Content-Type": "image/png"}, timeout=60
                    )
                    body = answer.json()
                    seen[body["error"]["code"] if "error" in body else "200"] += 1
            return seen

        with ThreadPoolExecutor(16) as pool:
            seen: Counter[str] = sum(pool.map(client, range(16)), Counter())
        lines = await_rows(server, sum(seen.values()))
    rows = [msgspec.json.decode(line) for line in lines]
    assert seen["OVERLOADED"] > 0
    assert Counter(row["code"] or "200" for row in rows) == seen
    assert {row["part"] for row in rows} == {"p"}
    assert {row["camera"] for row in rows} == {f"c{name}" for name in range(16)}


def test_each_of_many_frames_is_one_row(colors: Path, tmp_path: Path) -> None:
    """Each client reads each answer, so that none is under way when the server is told to stop."""
    length = re.compile(rb"\r\ncontent-length: ([0-9]+)\r\n", re.IGNORECASE)
    asked = b"POST /v1/recognize HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(GREEN)

    def camera(port: int) -> Counter[bytes]:
        seen: Counter[bytes] = Counter()
        with (
            socket.create_connection(("127.0.0.1", port), timeout=60) as client,
            client.makefile("rb") as answers,
        ):
            for _ in range(ROUND // 8):
                client.sendall(asked + GREEN)
                head = b"".join(iter(answers.readline, b"\r\n"))
                found = length.search(head)
                assert found is not None, head
                answers.read(int(found[1]))
                seen[head.split()[1]] += 1
        return seen

    answers: Counter[bytes] = Counter()
    count = 2 * ROUND
    with live_server(models=colors, data=tmp_path) as server, ThreadPoolExecutor(8) as pool:

        def written() -> bool:
            return server.sample("lineside_journal_rows_total") == answers.total()

        for _ in range(2):
            await_that(written, "all rows so far")
            answers.update(sum(pool.map(camera, [server.port] * 8), Counter()))
        assert answers == {b"200": count}
        labels = {"route": "/v1/recognize", "status": "200"}
        assert server.sample("lineside_requests_total", **labels) == count
        assert server.sample("lineside_journal_lost_total") == 0
    with closing(JournalReader(tmp_path / FILE, Filter(status=200))) as reader:
        assert sum(map(len, reader.pages("oldest"))) == count


def test_a_full_disk_loses_no_answer(colors: Path, tmp_path: Path) -> None:
    data = tmp_path / "disk"
    data.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(data)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        with live_server(models=colors, data=data) as server:
            server.recognize(GREEN, part="before")
            assert len(await_rows(server, 1)) == 1
            filler = data / "filler"
            with filler.open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(4096))
                except OSError:
                    pass

            def client(name: int) -> set[int]:
                with requests.Session() as session:
                    return {
                        session.post(
                            f"{server.url}/v1/recognize?camera=c{name}",
                            GREEN,
                            headers={"Content-Type": "image/png"},
                            timeout=60,
                        ).status_code
                        for _ in range(100)
                    }

            with ThreadPoolExecutor(8) as pool:
                assert set().union(*pool.map(client, range(8))) == {200}
            server.await_event("the journal can't be written, frames go on")
            filler.unlink()
            server.await_event("the journal is written again")
            assert len(await_rows(server, 801)) == 801, "what waited is not lost"
        errors = [line for line in server.lines if line.get("level") == "error"]
        assert len(errors) == 1
    finally:
        subprocess.run(["umount", "--lazy", str(data)], check=True)


def test_a_folder_that_can_not_be_written_loses_no_answer(colors: Path, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with live_server(models=colors, data=tmp_path / "data") as server:
        assert server.recognize(GREEN).status_code == 200
        server.await_event("the journal can't be written, frames go on")
        assert read(server) == {"rows": [], "next": None}
    assert server.process.returncode == 0


def test_a_damaged_journal_is_an_answer_and_is_begun_anew(colors: Path, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"x" * 10_000)
    with live_server(models=colors, data=tmp_path) as server:
        answer = requests.get(f"{server.url}/v1/journal", timeout=60)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "JOURNAL_UNREADABLE")
        assert "Retry-After" in answer.headers
        assert server.recognize(GREEN, part="first").status_code == 200
        server.await_event("the journal is damaged, and begun anew")
        await_that(
            lambda: [row["part"] for row in read(server)["rows"]] == ["first"], "the first row"
        )


def test_it_needs_the_right_admin(colors: Path, tmp_path: Path) -> None:
    keys, now = tmp_path / "keys.jsonl", datetime(2026, 1, 1, tzinfo=UTC)
    secrets = {name: add_key(keys, name, [name], now=now) for name in ("recognize", "admin")}
    with live_server(models=colors, keys_file=keys) as server:
        statuses = {
            name: requests.get(
                f"{server.url}/v1/journal", headers={"X-API-Key": secret}, timeout=60
            ).status_code
            for name, secret in (*secrets.items(), ("nobody", "x"))
        }
    assert statuses == {"recognize": 403, "admin": 200, "nobody": 401}


def test_write_budget_below_a_page_stops_the_start(colors: Path) -> None:
    """A write budget below one page of the database a minute stops the start."""
    server = LiveServer(models=colors, journal_write_mb_per_minute=0.01)
    try:
        assert server.process.wait(60) == 1
    finally:
        server.stop()
    assert "journal_write_mb_per_minute" in str(server.lines)
