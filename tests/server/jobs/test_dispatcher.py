"""The dispatcher between a real table and a real broker; the test says what workers say."""

from collections import deque
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from job_workers import redis_server
from redis import Redis

from server.config.settings import Settings
from server.errors import NotReadyError
from server.jobs.dispatcher import (
    ALL_SILENT_MAX_S,
    BEAT_TIMEOUT_S,
    MISSED_MAX,
    STARVED_MAX_S,
    Dispatcher,
)
from server.jobs.messages import BrokerLostError, FrameReport, cancel_key, report_key
from server.jobs.queue import Broker, make_celery, set_value
from server.recognition.answers import Answer, Prediction
from server.recognition.manifest import PolicySource
from server.store.jobs.records import (
    FrameOutcome,
    JobError,
    JobOptions,
    JobRecord,
    NewFrame,
    NewJob,
    OpenFrame,
)
from server.store.jobs.table import JobTable

BEST = Prediction(1, "good", 0.75)
ANSWER = Answer("parts", 3, BEST, (BEST,), "pass", {"total": 0.008})
BAD = JobError("UNDECODABLE_IMAGE", "the image is cut off")


class Told:
    """What a listener was told, in order."""

    wants_data = False

    def __init__(self) -> None:
        self.all: list[tuple[object, ...]] = []

    def began(self, jobs: list[str]) -> None:
        self.all += [("began", job) for job in jobs]

    def judged(self, _: OpenFrame, outcome: FrameOutcome) -> FrameOutcome:
        return outcome

    def answered(self, frame: OpenFrame, outcome: FrameOutcome, data: bytes | None) -> None:
        fault = outcome.fault.code if outcome.fault else None
        self.all.append(("answered", frame.number, frame.ask.model, frame.ask.version, fault))

    def finished(self, jobs: list[JobRecord]) -> None:
        self.all += [("finished", job.id, job.state) for job in jobs]


class Bench:
    """A dispatcher of the folder `data`. `cancelled` outlives it, as at a server."""

    def __init__(self, data: Path, cancelled: deque[str], broker_url: str = "") -> None:
        self._settings = Settings(data=str(data), broker_url=broker_url)
        self.table, self.told = JobTable(data), Told()
        self._broker = Broker(self._settings)
        self.loading = False
        self.dispatcher = Dispatcher(self.table, self._broker, self._choose, self.told, cancelled)
        self._now = 0.0

    def _choose(self, _: OpenFrame) -> tuple[str, int, str, None, PolicySource]:
        if self.loading:
            raise NotReadyError("the model is being loaded")
        return "parts", 3, "00", None, "bundle"

    def add(self, job: str, frames: int = 1) -> None:
        new = tuple(NewFrame(f"{number}.png", "image", b"data") for number in range(frames))
        self.table.add(NewJob(job, "request", JobOptions(top_k=1), new))

    def step(self, *gone: str) -> None:
        self._now += 0.01
        self.dispatcher.step(self._now, 1000.0 + self._now, gone)

    def later(self, seconds: float) -> None:
        """The next round, so many seconds after the last one."""
        self._now += seconds
        self.step()

    def fall_silent(self, worker: str) -> None:
        """A worker begins the only frame of the job j, and is not heard of any more."""
        self.add("j")
        self.step()
        self.report("j-0-0", FrameReport("running", worker, "decode"))
        self.step()
        self.later(BEAT_TIMEOUT_S + 1)

    def hanging(self) -> tuple[frozenset[str], bool]:
        return self.dispatcher.hanging(self._now)

    def report(self, task: str, report: FrameReport) -> None:
        """Says this in a worker's stead."""
        app = make_celery(self._settings)
        set_value(app.backend, report_key(task), msgspec.json.encode(report))
        app.close()

    def close(self) -> None:
        self.dispatcher.close()
        self.table.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with closing(Bench(tmp_path, deque())) as made:
        yield made


def test_a_job_that_is_done_before_anyone_looked_has_begun(bench: Bench) -> None:
    bench.add("j")
    bench.step()
    bench.report("j-0-0", FrameReport("done", "w", outcome=FrameOutcome(answer=ANSWER)))
    bench.step()
    assert [what for what, *_ in bench.told.all] == ["began", "answered", "finished"]
    assert bench.table.get("j").started is not None


def test_job_cancelled_in_outage_is_reported_later(tmp_path: Path) -> None:
    """A job cancelled during an outage is reported by the next dispatcher."""
    cancelled: deque[str] = deque()
    (tmp_path / "redis").mkdir()
    with redis_server(tmp_path / "redis") as server:
        with closing(Bench(tmp_path, cancelled, broker_url=server.url)) as bench:
            bench.add("j")
            bench.step()
            server.stop()
            cancelled.append("j")
            with pytest.raises(BrokerLostError):
                bench.step()
        server.start()
        with closing(Bench(tmp_path, cancelled, broker_url=server.url)) as bench:
            bench.step()
        with closing(Redis.from_url(server.url)) as redis:
            assert redis.exists(cancel_key("j"))
    assert not cancelled


def test_failed_frame_is_reported_with_its_model(bench: Bench) -> None:
    """A failed frame is reported with the model that it was sent to."""
    bench.add("j")
    bench.step()
    bench.report("j-0-0", FrameReport("done", "w", outcome=FrameOutcome(fault=BAD)))
    bench.step()
    assert bench.told.all[1:] == [
        ("answered", 0, "parts", 3, "UNDECODABLE_IMAGE"),
        ("finished", "j", "failed"),
    ]


def test_frames_ending_during_model_load_leave_nothing(tmp_path: Path) -> None:
    """Nothing is kept of frames that end while their model is loaded."""
    cancelled: deque[str] = deque()
    with closing(Bench(tmp_path, cancelled)) as bench:
        bench.loading = True
        for job in ("j", "k"):
            bench.add(job)
        bench.step()
        assert set(bench.dispatcher._await_model_since) == {("j", 0), ("k", 0)}
        bench.table.stop("j", "cancelled", JobError("CANCELLED", "the job was cancelled"), 1000.0)
        cancelled.append("j")
        bench.step()
        assert set(bench.dispatcher._await_model_since) == {("k", 0)}


def test_a_frame_that_the_broker_lost_costs_no_worker(bench: Bench) -> None:
    bench.add("j")
    for _ in range(MISSED_MAX - 1):
        bench.step()
        bench.report("j-0-0", FrameReport("missing", "w"))
        bench.step()
    bench.step()
    bench.report("j-0-0", FrameReport("done", "w", outcome=FrameOutcome(answer=ANSWER)))
    bench.step()
    assert bench.table.get("j").state == "succeeded"


def test_silent_worker_with_a_frame_counts_as_hung(bench: Bench) -> None:
    """A worker that falls silent with a frame counts as hung after a while."""
    bench.fall_silent("w")
    assert bench.hanging() == (frozenset(), False)
    bench.later(STARVED_MAX_S + 1)
    assert bench.hanging() == (frozenset({"w"}), False)
    assert bench.hanging() == (frozenset(), False)


def test_a_worker_that_is_heard_of_again_does_not_hang(bench: Bench) -> None:
    bench.fall_silent("w")
    bench.report("j-0-1", FrameReport("running", "w", "decode"))
    bench.step()
    bench.later(STARVED_MAX_S - BEAT_TIMEOUT_S)
    assert bench.hanging() == (frozenset(), False)


def test_all_hang_where_frames_wait_and_no_word_comes(bench: Bench) -> None:
    bench.later(ALL_SILENT_MAX_S + 1)
    assert bench.hanging() == (frozenset(), False)
    bench.add("j")
    bench.step()
    bench.later(ALL_SILENT_MAX_S - 1)
    bench.add("k")
    bench.step()
    assert bench.hanging() == (frozenset(), False)
    bench.later(2)
    assert bench.hanging() == (frozenset(), True)


def test_two_workers_that_die_with_the_same_job(bench: Bench) -> None:
    """Its third loss ends the job while another of its frames is still in a dead worker's hand."""
    bench.add("j", 2)
    for losses in range(3):
        bench.step()
        for number in range(2):
            bench.report(f"j-{number}-{losses}", FrameReport("running", f"w{number}", "decode"))
        bench.step()
        bench.step("w0", "w1")
    bench.step()
    assert bench.table.get("j").state == "failed"
    assert bench.told.all[1:] == [
        ("answered", 0, "parts", 3, "WORKER_LOST"),
        ("finished", "j", "failed"),
    ]
