"""What is told of an answer after it was sent."""

import functools
import threading
from pathlib import Path

import pytest
import requests
from images import encode, plain
from job_workers import await_that
from server_process import live_server
from tiny_models import MakeModel, write_bundle

from server.system.background import MOST, BackgroundQueue

GREEN = encode(plain((0, 255, 0)), "PNG")


def test_it_is_done_without_being_asked_for_and_in_order() -> None:
    afterwards, done, last = BackgroundQueue(), list[int](), threading.Event()
    for number in range(100):
        afterwards.take(functools.partial(done.append, number))
    afterwards.take(last.set)
    assert last.wait(60)
    assert done == list(range(100))


def test_who_asks_next_has_what_was_taken_before_done() -> None:
    afterwards, done = BackgroundQueue(), list[int]()
    for number in range(1000):
        afterwards.take(functools.partial(done.append, number))
        afterwards.settle(60)
        assert done[-1] == number


def test_who_asks_next_waits_for_what_is_being_done() -> None:
    afterwards = BackgroundQueue()
    begun, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        assert go_on.wait(60)
        done.set()

    afterwards.take(slow)
    assert begun.wait(60)
    afterwards.settle(0.01)
    assert not done.is_set()
    go_on.set()
    afterwards.settle(60)
    assert done.is_set()


def test_no_more_than_a_thousand_wait() -> None:
    afterwards, done = BackgroundQueue(), list[int]()
    for number in range(MOST + 1):
        afterwards.take(functools.partial(done.append, number))
    assert done


def test_what_fails_is_logged_and_keeps_nobody_waiting(
    departed: None, caplog: pytest.LogCaptureFixture
) -> None:
    afterwards, next_one = BackgroundQueue(), threading.Event()
    afterwards.take(lambda: [].pop())
    afterwards.take(next_one.set)
    assert next_one.wait(60)
    assert [record.message for record in caplog.records] == ["an answer could not be counted"]


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
        url, last = server.url + "/v1/journal?limit=1", answer.json()["request_id"]
        await_that(lambda: last in str(requests.get(url, timeout=60).json()), "its row")
