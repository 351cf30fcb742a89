"""One inference for all who ask for the same at once, and whose errors are whose."""

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from server.errors import (
    DeadlineExceededError,
    LinesideError,
    SupersededError,
    UndecodableImageError,
)
from server.store.cache.single_flight import SingleFlight

LONG = 60.0


class Work:
    """Counts its calls; each begins with `begun` and ends, as told, once `go` is set."""

    def __init__(self, *ends: str | Exception) -> None:
        self._ends = list(ends)
        self.calls = 0
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self) -> str:
        self.calls += 1
        end = self._ends[min(self.calls, len(self._ends)) - 1]
        self.begun.set()
        assert self.go.wait(LONG)
        if isinstance(end, Exception):
            raise end
        return end


def until(true: object) -> None:
    assert callable(true)
    give_up = time.monotonic() + LONG
    while not true():
        assert time.monotonic() < give_up


def fly(
    flights: SingleFlight[str], work: Work, pool: ThreadPoolExecutor, others: int
) -> list[Future[tuple[str, bool]]]:
    """One that leads and `others` that wait for it, and then the end."""
    deadline = time.monotonic() + LONG
    futures = [pool.submit(flights.run, "key", work, deadline)]
    assert work.begun.wait(LONG)
    futures += [pool.submit(flights.run, "key", work, deadline) for _ in range(others)]
    until(lambda: flights.waiting == others)
    work.go.set()
    return futures


def test_all_get_what_one_made() -> None:
    flights, work = SingleFlight[str](8), Work("answer")
    with ThreadPoolExecutor(9) as pool:
        ends = [future.result(LONG) for future in fly(flights, work, pool, 7)]
    assert ends == [("answer", False), *[("answer", True)] * 7]
    assert work.calls == 1
    assert flights.run("key", work, time.monotonic() + LONG) == ("answer", False), "none is kept"


def test_what_is_wrong_with_the_frame_is_wrong_for_all() -> None:
    flights, work = SingleFlight[str](8), Work(UndecodableImageError("cut off"))
    with ThreadPoolExecutor(9) as pool:
        errors = [future.exception(LONG) for future in fly(flights, work, pool, 3)]
    assert work.calls == 1
    assert len({id(error) for error in errors}) == 4
    assert {(type(error), str(error)) for error in errors} == {(UndecodableImageError, "cut off")}


@pytest.mark.parametrize(
    "own",
    [DeadlineExceededError("late"), SupersededError("newer"), LinesideError("ours")],
    ids=lambda error: error.code,
)
def test_what_is_about_one_request_is_its_own(own: LinesideError) -> None:
    flights, work = SingleFlight[str](8), Work(own, "answer")
    with ThreadPoolExecutor(9) as pool:
        first, *others = fly(flights, work, pool, 3)
        assert first.exception(LONG) is own
        ends = [other.result(LONG) for other in others]
    assert {answer for answer, _ in ends} == {"answer"}
    assert not all(shared for _, shared in ends)


def test_a_fault_of_ours_is_not_shared_either() -> None:
    flights, work = SingleFlight[str](8), Work(ZeroDivisionError(), "answer")
    with ThreadPoolExecutor(9) as pool:
        first, other = fly(flights, work, pool, 1)
        assert isinstance(first.exception(LONG), ZeroDivisionError)
        assert other.result(LONG)[0] == "answer"


def test_who_waits_has_a_deadline_of_its_own() -> None:
    flights, work = SingleFlight[str](8), Work("answer")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(flights.run, "key", work, time.monotonic() + LONG)
        assert work.begun.wait(LONG)
        with pytest.raises(DeadlineExceededError, match="same frame"):
            flights.run("key", work, time.monotonic() + 0.01)
        with pytest.raises(DeadlineExceededError):
            flights.run("key", work, time.monotonic() - 1)
        work.go.set()
        assert first.result(LONG) == ("answer", False)
    assert flights.waiting == 0


def test_no_more_wait_than_may() -> None:
    """Beyond, each asks the admission for itself, which refuses what is too many."""
    flights, work = SingleFlight[str](0), Work("one", "two")
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(flights.run, "key", work, time.monotonic() + LONG)
        assert work.begun.wait(LONG)
        second = pool.submit(flights.run, "key", work, time.monotonic() + LONG)
        until(lambda: work.calls == 2)
        work.go.set()
        assert {first.result(LONG), second.result(LONG)} == {("one", False), ("two", False)}


def test_other_keys_do_not_wait() -> None:
    flights, work = SingleFlight[str](8), Work("answer")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(flights.run, "key", work, time.monotonic() + LONG)
        assert work.begun.wait(LONG)
        assert flights.run("other", lambda: "own", time.monotonic() + LONG) == ("own", False)
        work.go.set()
        first.result(LONG)
