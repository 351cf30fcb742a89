"""The bounded queue with a thread of its own, and the bookkeeping that a server does by it."""

import functools
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from images import encode, plain
from job_workers import await_that
from server_process import live_server
from tiny_models import MakeModel, write_bundle

from server.system.background import TASKS_MAX, BackgroundQueue, in_order, make_task_queue

GREEN = encode(plain((0, 255, 0)), "PNG")


class Recorder:
    """A queue whose turns wait for `go_on`; `done` are the items that it has taken out."""

    def __init__(self) -> None:
        self.done: list[int] = []
        self.turn_begun = threading.Event()
        self.go_on = threading.Event()
        self.queue = BackgroundQueue("recorder", self._work, capacity=3, delay_s=0.01)

    def _work(self, items: deque[int]) -> None:
        self.turn_begun.set()
        assert self.go_on.wait(60)
        while items:
            self.done.append(items.popleft())


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    made = Recorder()
    yield made
    made.go_on.set()
    made.queue.close(60)


def test_tasks_run_unasked_and_in_order() -> None:
    queue, done, last = make_task_queue("test"), list[int](), threading.Event()
    for number in range(100):
        queue.submit(functools.partial(done.append, number))
    queue.submit(last.set)
    assert last.wait(60)
    assert done == list(range(100))


def test_event_of_a_task_comes_before_later_events() -> None:
    queue, events = make_task_queue("test"), list[str]()
    listener = in_order(queue, events.append)
    queue.submit(lambda: listener("of the first task"))
    listener("later")
    assert queue.flush(60)
    assert events == ["of the first task", "later"]


def test_flush_waits_for_all_items_submitted() -> None:
    queue, done = make_task_queue("test"), list[int]()
    for number in range(1000):
        queue.submit(functools.partial(done.append, number))
        assert queue.flush(60)
        assert done[-1] == number


def test_flush_waits_for_the_item_in_work(recorder: Recorder) -> None:
    recorder.queue.submit(1)
    assert recorder.turn_begun.wait(60)
    assert not recorder.queue.flush(0.01)
    recorder.go_on.set()
    assert recorder.queue.flush(60)
    assert recorder.done == [1]


def test_flush_from_a_task_does_not_wait_for_itself() -> None:
    queue, flushed = make_task_queue("test"), list[bool]()
    queue.submit(lambda: flushed.append(queue.flush(60)))
    assert queue.flush(60)
    assert flushed == [False]


def test_full_queue_refuses_items(recorder: Recorder) -> None:
    assert [recorder.queue.submit(number) for number in range(4)] == [True, True, True, False]
    recorder.go_on.set()
    assert recorder.queue.flush(60)
    assert recorder.done == [0, 1, 2]


def test_full_task_queue_waits_for_room() -> None:
    queue, done, go_on = make_task_queue("test"), list[int](), threading.Event()
    queue.submit(lambda: done.append(go_on.wait(60)))
    for number in range(TASKS_MAX):
        if queue.waiting >= TASKS_MAX - 1:
            go_on.set()
        queue.submit(functools.partial(done.append, number))
    assert queue.flush(60)
    assert len(done) == TASKS_MAX + 1


def test_items_left_come_again_after_idle_s() -> None:
    turns, twice = list[int](), threading.Event()

    def work(items: deque[int]) -> None:
        turns.append(len(items))
        if len(turns) == 2:
            items.clear()
            twice.set()

    queue = BackgroundQueue[int]("test", work, capacity=3, idle_s=0.01)
    queue.submit(1)
    assert twice.wait(60)
    queue.close(60)
    assert turns[:2] == [1, 1]


def test_wake_runs_a_turn_without_items(recorder: Recorder) -> None:
    recorder.queue.wake()
    assert recorder.turn_begun.wait(60)


def test_close_does_what_waits_and_refuses_the_rest(recorder: Recorder) -> None:
    recorder.queue.submit(1)
    recorder.go_on.set()
    assert recorder.queue.close(60) == 0
    assert recorder.done == [1]
    assert not recorder.queue.submit(2)
    assert recorder.queue.closed
    assert recorder.queue.flush(60)


def test_close_counts_what_is_left_after_its_timeout(recorder: Recorder) -> None:
    recorder.queue.submit(1)
    assert recorder.turn_begun.wait(60)
    assert recorder.queue.close(0.01) == 1


def test_failing_task_is_logged_and_the_next_one_runs(
    departed: None, caplog: pytest.LogCaptureFixture
) -> None:
    queue, next_one = make_task_queue("test"), threading.Event()
    queue.submit(lambda: [].pop())
    queue.submit(next_one.set)
    assert next_one.wait(60)
    assert [record.message for record in caplog.records] == ["an answer could not be counted"]


def test_failing_turn_is_logged_and_the_next_one_runs(
    departed: None, caplog: pytest.LogCaptureFixture
) -> None:
    done = list[int]()

    def work(items: deque[int]) -> None:
        while items:
            done.append(10 // items.popleft())

    queue = BackgroundQueue("test", work, capacity=3)
    queue.submit(0)
    assert queue.flush(60)
    queue.submit(5)
    assert queue.close(60) == 0
    assert done == [2]
    assert [record.message for record in caplog.records] == ["background work failed"]


def test_answer_that_was_sent_is_counted_and_in_the_journal(
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
