"""admission: each rule, with slow work that ends when its test says so."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from job_workers import await_that

from server.errors import (
    DeadlineExceededError,
    LinesideError,
    OverloadedError,
    SupersededError,
)
from server.recognition import admission
from server.recognition.admission import (
    ESTIMATE_MAX_AGE_S,
    MAX_CAMERAS,
    WAIT_MARGIN,
    Admission,
    ServiceTimes,
)

FOREVER = 1e9


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Line:
    """Frames before an Admission; each works, in a thread of its own, until `finish`."""

    def __init__(self, slots: int = 1, max_waiting: int = 4) -> None:
        self.clock = Clock()
        self.admission = Admission(slots, max_waiting, self.clock)
        self.served: list[str] = []
        self._answers: list[Future[float]] = []
        self._threads = ThreadPoolExecutor(32)
        self._started: dict[str, threading.Event] = {}
        self._ends: dict[str, threading.Event] = {}

    def send(
        self,
        name: str,
        camera: str = "",
        *,
        deadline: float = FOREVER,
        latest_only: bool = False,
        error: Exception | None = None,
    ) -> "Future[float]":
        """A frame; returns its answer to be, the seconds it waited, once it works or waits."""
        started = self._started[name] = threading.Event()
        end = self._ends[name] = threading.Event()

        def work(waited: float) -> float:
            self.served.append(name)
            started.set()
            assert end.wait(30)
            if error is not None:
                raise error
            return waited

        before = self._state()
        answer = self._threads.submit(
            self.admission.run, work, deadline, camera, latest_only=latest_only
        )
        self._answers.append(answer)
        self._until(lambda: started.is_set() or self._state() != before)
        return answer

    def _state(self) -> tuple[int, int]:
        """Waiting, and answered or refused frames; any frame changes it that does not work."""
        return self.admission.waiting, sum(answer.done() for answer in self._answers)

    def finish(self, name: str, seconds: float = 0.0) -> None:
        """Lets a frame that works end, `seconds` after now."""
        assert self._started[name].wait(30)
        self.clock.now += seconds
        served, busy = len(self.served), self.admission.busy
        self._ends[name].set()
        self._until(lambda: len(self.served) > served or self.admission.busy < busy)

    def end(self) -> None:
        for end in self._ends.values():
            end.set()
        self._threads.shutdown()

    @staticmethod
    def _until(done: Callable[[], bool]) -> None:
        pause = threading.Event()
        for _ in range(30_000):
            if done():
                return
            pause.wait(0.001)
        pytest.fail("nothing happened in 30 s")


@contextmanager
def line(**how: Any) -> Iterator[Line]:
    made = Line(**how)
    try:
        yield made
    finally:
        made.end()


def learn(made: Line, seconds: float) -> None:
    """Has one frame take `seconds`, so that this is the service time known."""
    answer = made.send("learn")
    made.finish("learn", seconds)
    answer.result(30)
    assert f"{seconds * 1000:.1f} ms a frame" in repr(made.admission)


def refusal(answer: "Future[float]", kind: type[LinesideError]) -> LinesideError:
    error = answer.exception(30)
    assert isinstance(error, kind)
    assert error.status == 503
    return error


def test_frames_fill_the_slots_and_the_rest_wait() -> None:
    """As many frames work as there are slots, and the rest wait."""
    with line(slots=2) as made:
        answers = [made.send(name) for name in "abc"]
        assert (made.admission.busy, made.admission.waiting) == (2, 1)
        assert "2 of 2 slots busy, 1 of 4 waiting" in repr(made.admission)
        made.clock.now += 3
        made.finish("a")
        assert made.served == ["a", "b", "c"]
        made.finish("b")
        made.finish("c")
        assert [answer.result(30) for answer in answers] == [0, 0, 3]
        assert (made.admission.busy, made.admission.waiting) == (0, 0)


def test_frame_beyond_queue_is_refused_with_retry_after() -> None:
    """More frames than may wait are refused at once, with the time when there is room."""
    with line(slots=1, max_waiting=2) as made:
        learn(made, 0.5)
        for name in "abc":
            made.send(name)
        error = refusal(made.send("d"), OverloadedError)
        assert error.retry_after == pytest.approx((2 + 1) * 0.5)
        assert made.admission.waiting == 2


def test_where_none_may_wait_a_second_frame_is_refused() -> None:
    with line(slots=1, max_waiting=0) as made:
        made.send("a")
        refusal(made.send("b", "st4"), OverloadedError)
        assert made.admission.waiting == 0


def test_frame_that_would_be_late_is_refused_at_once() -> None:
    """A frame that can't be answered in time is refused at once."""
    with line(slots=1) as made:
        # As many real seconds do not pass as "in time" may wait.
        learn(made, 50)
        refusal(made.send("alone", deadline=made.clock.now + 40), DeadlineExceededError)
        made.send("busy")
        refusal(made.send("second", deadline=made.clock.now + 120), DeadlineExceededError)
        made.send("in time", deadline=made.clock.now + 130)
        assert (made.admission.busy, made.admission.waiting) == (1, 1)


def test_waiting_frame_is_refused_at_its_deadline() -> None:
    """A waiting frame whose deadline comes is refused then."""
    with line(slots=1) as made:
        made.send("a")
        error = refusal(made.send("b", deadline=made.clock.now + 0.02), DeadlineExceededError)
        assert "0 frames wait" in error.message
        assert made.admission.waiting == 0


def test_a_frame_that_became_too_late_is_passed_over() -> None:
    with line(slots=1) as made:
        learn(made, 0.5)
        made.send("a")
        # Real seconds do not pass, so that its own wait does not end before the slot comes free.
        late = made.send("late", deadline=made.clock.now + 20)
        made.send("next")
        made.finish("a", 19.9)
        refusal(late, DeadlineExceededError)
        assert made.served[1:] == ["a", "next"]


def test_newer_frame_replaces_waiting_one_of_its_camera() -> None:
    """A newer frame of the camera takes the place of the waiting one."""
    with line(slots=1) as made:
        made.send("a", "st4")
        old = made.send("old", "st4", latest_only=True)
        made.send("other", "st5", latest_only=True)
        made.send("new", "st4", latest_only=True)
        refusal(old, SupersededError)
        assert made.admission.waiting == 2
        made.finish("a")
        made.finish("new")
        made.finish("other")
        assert made.served == ["a", "new", "other"]


def test_superseding_needs_no_room() -> None:
    with line(slots=1, max_waiting=1) as made:
        made.send("a", "st4")
        old = made.send("old", "st4", latest_only=True)
        made.send("new", "st4", latest_only=True)
        refusal(old, SupersededError)
        assert made.admission.waiting == 1


def test_frames_without_a_camera_are_never_superseded() -> None:
    with line(slots=1) as made:
        for name in "abc":
            made.send(name, latest_only=True)
        assert made.admission.waiting == 2


def test_cameras_take_turns() -> None:
    with line(slots=1, max_waiting=8) as made:
        made.send("first", "flood")
        for name in ("f1", "f2", "f3", "f4"):
            made.send(name, "flood")
        made.send("c1", "calm")
        made.send("c2", "calm")
        for _ in range(7):
            made.finish(made.served[-1])
        assert made.served == ["first", "f1", "c1", "f2", "c2", "f3", "f4"]


def test_a_full_queue_makes_room_for_a_calm_camera() -> None:
    with line(slots=1, max_waiting=3) as made:
        made.send("first", "flood")
        flood = [made.send(name, "flood") for name in ("f1", "f2", "f3")]
        calm = made.send("calm", "calm")
        refusal(flood[0], OverloadedError)
        refusal(made.send("f4", "flood"), OverloadedError)
        assert made.admission.waiting == 3
        made.finish("first")
        made.finish("f2")
        assert made.served == ["first", "f2", "calm"]
        made.finish("calm")
        assert calm.result(30) >= 0


def test_estimate_counts_only_frames_that_go_before() -> None:
    """The estimate counts only the frames that go before, by turns of the cameras."""
    with line(slots=1, max_waiting=8) as made:
        learn(made, 100)  # real seconds, of which as many do not pass as "calm" may wait
        made.send("first", "flood")
        for name in ("f1", "f2", "f3"):
            made.send(name, "flood")
        # one in hand, one of the flood before it, and itself
        soon = made.clock.now + 3 * WAIT_MARGIN * 100 + 10
        refusal(made.send("f4", "flood", deadline=soon), DeadlineExceededError)
        made.send("calm", "calm", deadline=soon)
        assert made.admission.waiting == 4


def test_an_error_gives_the_slot_to_the_next_frame() -> None:
    with line(slots=1) as made:
        broken = made.send("broken", error=ZeroDivisionError("in the work"))
        made.send("next")
        made.finish("broken")
        assert isinstance(broken.exception(30), ZeroDivisionError)
        assert made.served == ["broken", "next"]
        assert made.admission.busy == 1


def test_failed_frames_do_not_change_the_estimate() -> None:
    """Failed frames say nothing about the time that a good one takes."""
    with line(slots=1) as made:
        learn(made, 0.5)
        broken = made.send("broken", error=ZeroDivisionError("at once"))
        made.finish("broken")
        broken.exception(30)
        assert "500.0 ms a frame" in repr(made.admission)


def test_estimate_longer_than_all_deadlines_is_corrected() -> None:
    """An estimate longer than every deadline is corrected."""
    with line(slots=1) as made:
        learn(made, 60.0)
        refusal(made.send("refused", deadline=made.clock.now + 5), DeadlineExceededError)
        made.clock.now += ESTIMATE_MAX_AGE_S
        probe = made.send("probe", deadline=made.clock.now + 5)
        made.finish("probe", 0.01)
        probe.result(30)
        assert "10.0 ms a frame" in repr(made.admission)


def test_slow_camera_does_not_refuse_a_quick_one() -> None:
    """The slow frames of one camera do not refuse the quick ones of another."""
    with line(slots=2) as made:
        first = made.send("slow", camera="large")
        made.finish("slow", 0.64)
        first.result(30)
        made.send("slow again", camera="large")
        quick = made.send("quick", deadline=made.clock.now + 0.1, camera="small")
        made.finish("quick", 0.012)
        quick.result(30)
        again = made.send("quick again", deadline=made.clock.now + 0.1, camera="small")
        made.finish("quick again", 0.012)
        again.result(30)
        refusal(
            made.send("hopeless", deadline=made.clock.now + 0.1, camera="large"),
            DeadlineExceededError,
        )


def test_quick_frame_is_taken_if_slow_would_be_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The waiting frame of a quick camera is taken if a slow camera's would be late."""
    # Times so long that as many real seconds do not pass while "quick" waits.
    monkeypatch.setattr(admission, "ESTIMATE_MAX_AGE_S", 100 * ESTIMATE_MAX_AGE_S)
    with line(slots=1) as made:
        for camera, seconds in (("small", 1.0), ("large", 20)):
            answer = made.send(camera, camera=camera)
            made.finish(camera, seconds)
            answer.result(30)
        made.send("busy", camera="small")
        quick = made.send("quick", deadline=made.clock.now + 15, camera="small")
        refusal(
            made.send("late", deadline=made.clock.now + 15, camera="large"),
            DeadlineExceededError,
        )
        made.finish("busy", 10)
        made.finish("quick", 1.0)
        quick.result(30)


def test_the_times_of_cameras_are_bounded() -> None:
    times = ServiceTimes()
    for n in range(MAX_CAMERAS + 1):
        times.learn(f"camera {n}", 0.1, now=0.0)
    assert times.known("camera 0", now=0.0) is None
    assert times.known(f"camera {MAX_CAMERAS}", now=0.0) == pytest.approx(0.1)


def test_one_slow_frame_moves_the_estimate_little() -> None:
    with line(slots=1) as made:
        learn(made, 0.1)
        answer = made.send("slow")
        made.finish("slow", 0.5)
        answer.result(30)
        assert "120.0 ms a frame" in repr(made.admission)  # 0.1 + 0.4 * 0.05 s


def test_no_slot_is_lost_where_deadlines_and_grants_meet() -> None:
    """Many frames whose deadlines come while slots are handed on: whatever each one sees, all
    slots are free afterwards and nobody is left waiting."""
    admission = Admission(2, 16)
    ended: list[str] = []

    def camera(number: int) -> None:
        for turn in range(150):
            try:
                admission.run(
                    lambda _: ended.append("served"),
                    time.monotonic() + 0.0002 * (turn % 7),
                    f"c{number}",
                    latest_only=turn % 3 == 0,
                )
            except LinesideError as error:
                ended.append(error.code)

    with ThreadPoolExecutor(8) as cameras:
        list(cameras.map(camera, range(8)))
    assert len(ended) == 8 * 150
    assert ended.count("served") > 0
    # A slot's thread hands out an answer before it frees its slot.
    await_that(lambda: (admission.busy, admission.waiting) == (0, 0), "all slots free", 30)
    assert not admission._queues
