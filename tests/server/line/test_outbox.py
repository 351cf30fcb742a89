"""The outbox: what was put in comes out once it can, in order, within bounds."""

import queue
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from server_process import ROOT

from server.config.load import load, to_environ
from server.errors import SettingsError
from server.line.outputs.base import Delivery, OutputError
from server.line.outputs.messages import Event, Message, is_wanted
from server.line.outputs.outbox import FILE, Bounds, Outbox
from server.line.outputs.service import make_output
from server.system.sqlite import LOG_BYTES_MAX
from server.values.template import TextTemplate


class Lost:
    """Collects what an outbox reports as dropped."""

    def __init__(self) -> None:
        self.messages: dict[tuple[str, str], int] = {}

    def add(self, name: str, result: str, count: int) -> None:
        self.messages[name, result] = self.messages.get((name, result), 0) + count


@contextmanager
def outbox(path: Path, lost: Lost | None = None, **bounds: Bounds) -> Iterator[Outbox]:
    box = Outbox(path, bounds or {"a": Bounds(1000, 0), "b": Bounds(1000, 0)}, (lost or Lost()).add)
    try:
        yield box
    finally:
        box.close()


def event(number: int, at: float | None = None) -> Event:
    return Event(at=time.time() if at is None else at, request_id=f"r{number}", part=f"P{number}")


def parts(box: Outbox, name: str) -> list[str]:
    return [message.event.part for message in box.waiting(name, 1000)]


def test_each_output_has_its_own_numbers(tmp_path: Path) -> None:
    with outbox(tmp_path / FILE) as box:
        box.put(["a", "b"], event(1))
        box.put(["b"], event(2))
        assert [message.seq for message in box.waiting("a", 10)] == [1]
        assert [message.seq for message in box.waiting("b", 10)] == [1, 2]
        assert box.delivered("b", 1) == 1
        assert box.delivered("b", 1) == 0
        assert (box.count("a"), box.count("b")) == (1, 1)


def test_numbers_go_on_after_a_stop(tmp_path: Path) -> None:
    with outbox(tmp_path / FILE) as box:
        box.put(["a"], event(1))
        box.put(["a"], event(2))
        box.delivered("a", 1)
        (first,) = box.waiting("a", 10)
    with outbox(tmp_path / FILE) as box:
        (again,) = box.waiting("a", 10)
        assert (again.seq, again.stream) == (2, first.stream)
        assert again.redelivered
        assert not first.redelivered
        box.delivered("a", 2)
    with outbox(tmp_path / FILE) as box:
        assert box.count("a") == 0
        box.put(["a"], event(3))
        assert [message.seq for message in box.waiting("a", 10)] == [3]


KILLED = """
import os, signal, sys
from pathlib import Path
from server.line.outputs.messages import Event
from server.line.outputs.outbox import Bounds, Outbox
box = Outbox(Path(sys.argv[1]), {"a": Bounds(1000, 0)}, lambda *_: None)
for number in range(50):
    box.put(["a"], Event(at=1.0, request_id=str(number), part=f"P{number}"))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_kill_loses_nothing_that_was_put(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path / FILE)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -9
    with outbox(tmp_path / FILE, a=Bounds(1000, 0)) as box:
        assert parts(box, "a") == [f"P{number}" for number in range(50)]


def test_log_stays_short_while_messages_keep_coming(tmp_path: Path) -> None:
    """A checkpoint then hardly ever takes all of the log, unless the messages wait for its end."""
    turns, messages = 20, 600
    begun, ended = threading.Barrier(2), threading.Barrier(2)

    def put_and_deliver(box: Outbox) -> None:
        for number in range(turns * messages):
            if number % messages == 0:
                begun.wait()
            box.put(["a"], event(number))
            box.delivered("a", number + 1)
            if number % messages == messages - 1:
                ended.wait()

    with outbox(tmp_path / FILE) as box:
        writer = threading.Thread(target=put_and_deliver, args=(box,))
        writer.start()
        lengths = []
        for _ in range(turns):
            begun.wait()
            box.turn(time.time())
            ended.wait()
            lengths.append(box.log_bytes())
        writer.join()
    assert max(lengths) < 2 * LOG_BYTES_MAX


def test_oldest_are_dropped_beyond_the_bounds(tmp_path: Path) -> None:
    lost = Lost()
    with outbox(tmp_path / FILE, lost, a=Bounds(3, 0), b=Bounds(1000, 60)) as box:
        now = time.time()
        for number in range(5):
            box.put(["a", "b"], event(number, now - (100 if number < 2 else 0)))
        box.turn(now)
        assert parts(box, "a") == parts(box, "b") == ["P2", "P3", "P4"]
    assert lost.messages == {("a", "dropped"): 2, ("b", "expired"): 2}


def test_deleted_file_is_made_anew_with_its_messages(tmp_path: Path) -> None:
    path = tmp_path / FILE
    with outbox(path) as box:
        box.put(["a"], event(1))
        path.unlink()
        box.turn(time.time())
        box.put(["a"], event(2))
    with outbox(path) as box:
        assert parts(box, "a") == ["P1", "P2"]


def test_damaged_file_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.write_bytes(b"no database, but as long as the header of one is" * 100)
    with outbox(path) as box:
        box.put(["a"], event(1))
    assert list(tmp_path.glob(f"{FILE}.damaged-*"))
    with outbox(path) as box:
        assert parts(box, "a") == ["P1"]


def test_damaged_pages_are_set_aside(tmp_path: Path) -> None:
    """The file opens, and its tables can't be read."""
    path = tmp_path / FILE
    with outbox(path) as box:
        for number in range(200):
            box.put(["a"], event(number))
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\xff" * (len(data) - 4096))
    with outbox(path) as box:
        box.put(["a"], event(1))
        assert parts(box, "a") == ["P1"]
    assert list(tmp_path.glob(f"{FILE}.damaged-*"))


def test_file_that_is_locked_at_the_start_stops_nothing(tmp_path: Path) -> None:
    path = tmp_path / FILE
    with outbox(path) as box:
        box.put(["a"], event(1))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with outbox(path) as box:
        box.put(["a"], event(2))
        assert parts(box, "a") == ["P2"]
    other.close()
    with outbox(path) as box:
        assert parts(box, "a") == ["P1"]


class Breaking:
    """An output that fails at its first message, and can't even be closed then."""

    window = 1
    connected = True

    def __init__(self) -> None:
        self.delivered: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.opened = 0

    def open(self) -> None:
        self.opened += 1

    def deliver(self, messages: Sequence[Message], timeout_s: float) -> int:
        if self.opened == 1:
            raise OutputError("it breaks")
        self.delivered.put(messages[0].seq)
        return messages[0].seq

    def beat(self, ready: bool) -> None:
        """Give no sign."""

    def close(self) -> None:
        raise RuntimeError


def test_output_that_can_not_be_closed_goes_on(tmp_path: Path) -> None:
    output = Breaking()
    with outbox(tmp_path / FILE) as box:
        box.put(["a"], event(1))
        delivery = Delivery("a", "breaking", output, box, 1.0, lambda *_: None, lambda: True)
        delivery.start()
        assert output.delivered.get(timeout=60) == 1
        delivery.stop()
        delivery.join(60)


def test_locked_file_holds_no_frame_up(tmp_path: Path) -> None:
    """Messages go on in memory while another process holds the file, and back to it afterwards."""
    path = tmp_path / FILE
    with outbox(path) as box:
        box.put(["a"], event(1))
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        box.put(["a"], event(2))
        assert parts(box, "a") == ["P1", "P2"]
        other.execute("ROLLBACK")
        other.close()
        box.delivered("a", 1)
        box.turn(time.time())
        box.put(["a"], event(3))
    with outbox(path) as box:
        assert parts(box, "a") == ["P2", "P3"]
        assert [message.seq for message in box.waiting("a", 10)] == [2, 3]


MQTT = '"name": "line", "kind": "mqtt", "host": "h"'


def read(keys: str) -> str:
    """The sentence with which a table of these further keys stops the start; '' if it does not."""
    try:
        load({"LINESIDE_OUTPUT": f"[{{{MQTT}, {keys}}}]"})
    except SettingsError as error:
        return str(error).removeprefix("LINESIDE_OUTPUT: [[output]] line: ")
    return ""


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (r'"payload": "{\"v\": $verdict, \"p\": ${part}}"', ""),
        ('"payload": "$verdict of $part, $$"', ""),
        (r'"payload": "{\"v\": \"$verdict\"}"', "payload is no JSON: write places without quotes"),
        ('"payload": "$verdikt"', "payload: $verdikt is not known here, did you mean $verdict?"),
        ('"payload": "100 $"', "payload has a $ without a name"),
        ('"topic": "line/$part"', "topic: $part is not known here"),
        ('"topic": "line/#"', "topic can't be 'line/#'"),
        ('"tls_ca_file": "/x"', "tls_ca_file needs tls = true"),
        ('"password": "x"', "password needs a username"),
        ('"verdicts": ["maybe"]', "verdicts[0] should be error, fail, none, pass or unsure"),
        ('"discovery_prefix": "a#b"', "discovery_prefix can't be 'a#b'"),
        ('"discovery_prefix": "ha", "payload": "$verdict"', "discovery_prefix needs a payload"),
    ],
)
def test_keys_of_an_output_are_checked(keys: str, says: str) -> None:
    assert read(keys).startswith(says)
    assert bool(read(keys)) == bool(says)


def test_chip_that_is_missing_is_an_error_of_its_output() -> None:
    keys = '"name": "gate", "kind": "gpio", "chip": "/dev/no-chip"'
    (table,) = load({"LINESIDE_OUTPUT": f'[{{{keys}, "fail_line": 4}}]'}).output
    with pytest.raises(OutputError, match="the lines of /dev/no-chip can't be had"):
        make_output(table, lambda: False, lambda *_: None).open()
    with pytest.raises(SettingsError, match="gate: pass_line and the other lines"):
        load({"LINESIDE_OUTPUT": f'[{{{keys}, "fail_line": 4, "pass_line": 4}}]'})


@pytest.mark.parametrize(
    "url", ["http://[x/", "http://h:0/", "http://h:99999/", "http://u:p4ss@h/"]
)
def test_url_that_can_not_be_used_is_refused(url: str) -> None:
    table = f'[{{"name": "mes", "kind": "webhook", "url": "{url}"}}]'
    with pytest.raises(SettingsError, match=r"\[\[output\]\] mes: url ") as refused:
        load({"LINESIDE_OUTPUT": table})
    assert "p4ss" not in str(refused.value)


def test_environment_of_a_process_of_ours_has_outputs() -> None:
    settings = load({"LINESIDE_OUTPUT": f"[{{{MQTT}}}]"})
    assert load(to_environ(settings)) == settings
    assert load(to_environ(load({}))) == load({})


def test_values_can_not_break_a_payload() -> None:
    template = TextTemplate('{"part": $part}', ("part",), "payload")
    assert template.render({"part": '"}, "verdict": "pass'}) == (
        r'{"part": "\"}, \"verdict\": \"pass"}'
    )
    assert TextTemplate("$part", ("part",), "payload").render({"part": "A\nB"}) == "A B"


def test_filters_must_all_hold() -> None:
    (table,) = load(
        {
            "LINESIDE_OUTPUT": f'[{{{MQTT}, "cameras": ["st4"], "verdicts": ["fail", "error"],'
            ' "models": ["parts"]}]'
        }
    ).output
    good = Event(at=1.0, request_id="r", camera="st4", model="parts", verdict="fail")
    failed = Event(at=1.0, request_id="r", camera="st4", model="parts", error="OVERLOADED")
    assert is_wanted(table, good)
    assert is_wanted(table, failed)
    # Refused before its model was known.
    assert is_wanted(table, Event(at=1.0, request_id="r", camera="st4", error="OVERLOADED"))
    for other in ({"camera": "st5"}, {"verdict": "pass"}, {"verdict": None}, {"model": "iris"}):
        fields = {"at": 1.0, "request_id": "r", "camera": "st4", "model": "parts"}
        assert not is_wanted(table, Event(**({**fields, "verdict": "fail"} | other)))  # type: ignore[arg-type]
