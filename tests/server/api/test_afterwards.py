"""What is told of an answer after it was sent."""

import threading
from pathlib import Path
from typing import Any

import pytest
import requests
from images import encode, plain
from live import live_server
from tiny_models import MakeModel, write_bundle

from server.api.afterwards import Afterwards
from server.protocol import AFTERWARDS

GREEN = encode(plain((0, 255, 0)), "PNG")


def test_without_a_server_that_can_wait_it_is_done_at_once() -> None:
    done: list[int] = []
    Afterwards().take({}, lambda: done.append(1))
    assert done == [1]


def test_who_asks_next_waits_for_what_was_taken_before_and_for_no_more() -> None:
    afterwards = Afterwards()
    first: dict[str, Any] = {AFTERWARDS: []}
    second: dict[str, Any] = {AFTERWARDS: []}
    begun, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        assert go_on.wait(60)
        done.set()

    afterwards.take(first, slow)
    answering = threading.Thread(target=first[AFTERWARDS][0])
    answering.start()
    assert begun.wait(60)
    settled = threading.Thread(target=afterwards.settle, args=(60,))
    settled.start()
    while not afterwards._ended._waiters:  # type: ignore[attr-defined]
        pass
    afterwards.take(second, lambda: None)
    go_on.set()
    settled.join(60)
    assert done.is_set()
    assert not settled.is_alive()
    answering.join(60)


def test_what_takes_too_long_is_not_waited_for() -> None:
    afterwards = Afterwards()
    afterwards.take({AFTERWARDS: []}, lambda: None)
    afterwards.settle(0.01)


def test_what_fails_is_logged_and_keeps_nobody_waiting(caplog: pytest.LogCaptureFixture) -> None:
    afterwards = Afterwards()
    environ: dict[str, Any] = {AFTERWARDS: []}
    afterwards.take(environ, lambda: [].pop())
    environ[AFTERWARDS][0]()
    assert [record.message for record in caplog.records] == ["an answer could not be counted"]
    afterwards.settle(60)


def test_an_answer_that_came_is_counted_and_in_the_journal(
    tiny_model: MakeModel, tmp_path: Path
) -> None:
    write_bundle(tmp_path / "models" / "colors" / "1", tiny_model("colors"))
    with live_server(models=tmp_path / "models") as server:
        for count in range(1, 101):
            answer = server.recognize(GREEN)
            assert server.sample("lineside_predictions_total", model="colors", label="green") == (
                count
            )
        rows = requests.get(server.url + "/v1/journal?limit=1", timeout=60).json()
        assert answer.json()["request_id"] in str(rows)
