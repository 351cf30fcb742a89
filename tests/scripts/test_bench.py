"""The benchmark's parts on real servers; that its figures are sane, not what they are."""

import importlib
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / "scripts" / "bench" / "run.py"
Module = Callable[[str], ModuleType]


@pytest.fixture(scope="module")
def bench() -> Iterator[Module]:
    """Imports bench.NAME as scripts/bench/run.py does, with the scripts' folder on the path."""
    before = set(sys.modules)
    sys.path.insert(0, str(ROOT / "scripts"))
    yield lambda name: importlib.import_module(f"bench.{name}")
    sys.path.remove(str(ROOT / "scripts"))
    for name in set(sys.modules) - before:
        if name.partition(".")[0] == "bench":
            del sys.modules[name]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(RUN), *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--only", "bare,nginx"), "there is no 'nginx'; there are bare, ours, tutorial"),
        (("--quick", "--only", "mosec"), "--quick measures bare and ours"),
        (("--quick", "--bundle", "/nowhere"), "/nowhere holds no bundle.json"),
    ],
)
def test_a_wrong_command_line_says_what_would_be_right(
    arguments: tuple[str, ...], message: str
) -> None:
    if shutil.which("wrk") is None and "--bundle" in arguments:
        pytest.skip("wrk is not installed")
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.parametrize(
    "body",
    [
        b'{"predictions": [{"class_id": 1, "label": "good part"}, {"label": "dented"}]}',
        rb'{"outputs":[{"data":["[{\"class_id\": 1, \"label\": \"good part\"}]"]}]}',
    ],
)
def test_first_label_is_found_in_nested_json(bench: Module, body: bytes) -> None:
    """The first label is found in JSON and in JSON within it."""
    assert bench("servers.service").first_label(body) == "good part"


def test_an_answer_without_a_label_is_not_good(bench: Module) -> None:
    assert bench("servers.service").first_label(b'{"error":{"code":"OVERLOADED"}}') == ""


def test_answers_are_taken_from_a_connection_one_by_one(bench: Module) -> None:
    answers = bench("clients.answers")
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    second = b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n"
    buffer = bytearray(whole[:-1])
    assert answers.take(buffer) is None
    buffer += whole[-1:] + second
    assert answers.take(buffer) == answers.Answer(200, b"ok")
    assert answers.take(buffer) == answers.Answer(503, b"")
    assert not buffer


@pytest.mark.parametrize("form", ["raw", "multipart", "v2json"])
def test_the_bytes_of_a_request_are_what_was_built(bench: Module, form: str) -> None:
    request = bench("clients.forms").build(form, "file", b"\xff\xd8jpeg")
    head, _, body = request.wire("/p", "h:1").partition(b"\r\n\r\n")
    assert body == request.body
    assert head.startswith(b"POST /p HTTP/1.1\r\n")
    assert f"Content-Length: {len(body)}".encode() in head


class Refusing(BaseHTTPRequestHandler):
    """Answers every second request of a connection with 503."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    count = 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.count += 1
        body = b'{"error":{"code":"OVERLOADED"}}' if self.count % 2 == 0 else b"{}"
        self.send_response(200 if self.count % 2 else 503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def refusing() -> Iterator[tuple[str, int]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield "127.0.0.1", server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def test_open_loop_counts_every_kind_of_answer(
    bench: Module, refusing: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Open loop sends every frame and counts every kind of answer."""
    openloop, overload, forms = bench("clients.openloop"), bench("overload"), bench("clients.forms")
    monkeypatch.setattr(openloop, "PATIENCE", 60)
    wire = forms.build("raw", "file", bytes(300_000)).wire("/", "test")
    streams = [openloop.Stream("calm", wire, 20.0), openloop.Stream("flooding", wire, 100.0)]
    outcomes = openloop.Driver(refusing, streams, 0.5, 1).run()
    assert [o.stream for o in outcomes].count("calm") == 10
    assert [o.stream for o in outcomes].count("flooding") == 50
    assert all(o.sent >= o.due and o.answered >= o.sent for o in outcomes)
    kinds: dict[str, int] = {}
    for name in ("calm", "flooding"):
        figures = overload.judge([o for o in outcomes if o.stream == name], 0.5)
        for kind, count in figures["kinds"].items():
            kinds[kind] = kinds.get(kind, 0) + count
    assert kinds == {"accepted": 30, "OVERLOADED": 30}


def test_lateness_is_counted_from_the_deadline(bench: Module) -> None:
    openloop, overload = bench("clients.openloop"), bench("overload")
    outcomes = [
        openloop.Outcome("c", 0.0, 0.0, 0.150, 200),
        openloop.Outcome("c", 0.1, 0.1, 0.325, 200),
        openloop.Outcome("c", 0.2, 0.2, 0.210, 503, b'{"error":{"code":"DEADLINE_EXCEEDED"}}'),
        openloop.Outcome("c", 0.3, 0.3),
    ]
    figures = overload.judge(outcomes, 1.0)
    assert (figures["in_time"], figures["share_in_time"]) == (1, 0.25)
    assert figures["late_ms"]["max"] == pytest.approx(25)
    assert figures["refusal_ms"]["p50"] == pytest.approx(10)
    assert figures["kinds"] == {"accepted": 2, "DEADLINE_EXCEEDED": 1, "status 0": 1}


def test_cpu_and_memory_of_a_tree_hold_its_children(bench: Module) -> None:
    processes = bench("servers.processes")
    code = "import subprocess; subprocess.run(['sh', '-c', 'read x; echo up; read x'])"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdin.write(b"\n")
        parent.stdin.flush()
        assert parent.stdout.readline() == b"up\n"
        pids = processes.tree(parent.pid)
        both, alone = processes.memory(pids), processes.memory([parent.pid])
        parent.communicate(b"\n")
    assert len(pids) == 2
    assert both["pss"] > alone["pss"] > 0
    assert processes.tree(parent.pid) == [parent.pid]
    assert processes.cpu_seconds([parent.pid]) == (0, 0)


def test_ratios_are_taken_within_a_round(bench: Module) -> None:
    summary, visits = (
        bench("report.summary"),
        {"bare": [100.0, 50.0], "ours-multipart": [90.0, 45.0]},
    )
    rows = {}
    for row, rates in visits.items():
        key = "720p" if row == "bare" else "720p/8"
        figures = {"p50": 1.0, "p99": 2.0, "cpu_ms": 3.0}
        rows[row] = [{"round": n, key: {"fps": r, **figures}} for n, r in enumerate(rates)]
    cell = summary.cell({"rows": rows}, "ours-multipart", "720p", 8)
    assert (cell.fps, cell.of_bare, cell.ours_over) == (67.5, pytest.approx(0.9), 1.0)


def test_a_short_run_gives_every_figure(
    bench: Module, shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("wrk") is None:
        pytest.skip("wrk is not installed")
    inputs, quick = bench("inputs"), bench("quick")
    # No frame is refused because the machine stalls.
    patient = partial(quick.start_server, max_wait_ms="60000")
    monkeypatch.setattr(quick, "start_server", patient)
    python = Path(sys.executable)
    model = inputs.lay_out(shipped, tmp_path / "models", exact=False)
    frame = inputs.find_frames(tmp_path, python)["720p"]
    result = quick.compare(python, model, frame, tmp_path, 1, 0.5, 5, warm_up=0)
    assert set(result["rounds"]) == {"bare", "raw", "multipart"}
    for way, row in quick.summarize(result["rounds"]).items():
        assert row["bad"] == 0, way
        assert row["fps"] > 0
        assert row["cpu_ms"] > 0
    assert result["rounds"]["raw"][0]["good"] > 0
    assert set(result["latency"]) >= {"recognize", "steps", "raw", "added_multipart_over_steps"}
    assert result["memory"]["rss"] >= result["memory"]["pss"] > 0
    assert "of bare" in quick.table(result)


def test_a_result_file_is_rendered_as_a_page(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    machine = {"cpu": "x", "cores": 2, "memory_gb": 1, "system": "s", "python": "3", "date": "d"}
    machine |= {"packages": {"flask": "3"}, "commit": "c", "load_average": 0.5}
    result = {"machine": machine, "command": "run.py", "rounds": 1, "seconds": 1, "model": "m"}
    result |= {"frames": "f", "failures": {"mosec": "no wheel\nfor this"}, "installed_mb": {}}
    cell = {"fps": 50.0, "good": 50, "p50": 1.0, "p99": 2.0, "cpu_ms": None}
    bad = dict.fromkeys(("wrong", "refused", "failed", "socket_errors", "timeouts"), 0)
    memory = {"rss": 1, "pss": 1, "processes": 1}
    visit = {"round": 0, "first_answer": 1, "memory": memory, "720p/8": cell | bad}
    path.write_text(json.dumps({**result, "rows": {"flask": [visit]}}))
    done = run("--render", str(path))
    assert done.returncode == 0, done.stderr
    page = path.with_suffix(".md").read_text()
    assert "| Flask + gunicorn | full | 50.0 | - | - | 1.0 | 2.0 | - |" in page
    assert "mosec could not be measured: no wheel for this" in page
    assert "## The HTTP front" in page
    assert path.with_suffix(".png").stat().st_size > 1000
