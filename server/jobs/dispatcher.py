"""Sends frames from the table of jobs to the workers, and stores what they answer.

Messages are only wake-ups: every frame without an outcome is sent, and sent again if its message
was lost or its worker fell silent, until the table holds its outcome. A frame answered twice has
one outcome, the first. Celery's own redelivery is not relied on: Redis redelivers only after an
hour, and what the broker loses is never redelivered.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from server.errors import (
    JobFinishedError,
    JobNotFoundError,
    LinesideError,
    NotReadyError,
    StorageError,
    UnsafeImageError,
)
from server.jobs.messages import FrameTask, InFlightFrame
from server.recognition.images import jpeg
from server.recognition.manifest import PolicySource
from server.recognition.reader_guard import DecodeTrial
from server.store.crashes import CrashedFrame, CrashGuard, refusal, sha256_of
from server.store.jobs.records import FrameOutcome, JobError, JobRecord, OpenFrame
from server.store.jobs.table import JobTable
from server.system.clock import rfc3339

if TYPE_CHECKING:
    from server.jobs.queue import Broker

logger = logging.getLogger(__name__)

# Frames sent and not yet answered: enough to keep workers busy, few enough to bound the broker.
IN_FLIGHT_MAX = 64
# Seconds after which a frame that nobody took counts as lost: if the queue is empty, and if it is
# not, since another server's frames may be in it.
UNTAKEN_MAX_S = 2.0
UNTAKEN_IN_QUEUE_MAX_S = 60.0
QUEUE_LENGTH_INTERVAL_S = 1.0
QUEUED_MAX = 10 * IN_FLIGHT_MAX
# Seconds without a beat after which a worker counts as dead (one beats every second).
BEAT_TIMEOUT_S = 5.0
# Seconds after BEAT_TIMEOUT_S for which a worker may only be starved; then it hangs.
STARVED_MAX_S = 20.0
# Seconds without a report of any worker while frames wait for one, after which all count as
# hanging: more than the slowest device takes to start one.
ALL_SILENT_MAX_S = 60.0
# Workers that a job may cost.
LOSSES_MAX = 3
# Times that the broker may lose a frame before that counts as the loss of a worker.
MISSED_MAX = 10
# Seconds for which a frame waits for a model that is being loaded.
LOADING_MAX_S = 120.0

TOO_LATE = JobError("DEADLINE_EXCEEDED", "the deadline passed before a worker was free")

# Returns the model that serves for a frame now, as the last five fields of a FrameTask.
Choose = Callable[[OpenFrame], tuple[str, int, str, dict[str, Any] | None, PolicySource]]


class Listener(Protocol):
    """Is notified of what was stored in the table."""

    def began(self, jobs: list[str]) -> None:
        """Note that these jobs run from now on."""

    def judged(self, frame: OpenFrame, outcome: FrameOutcome) -> FrameOutcome:
        """Return the outcome of a frame with the health of its picture, and unsure if it is late,
        before it is stored."""

    def answered(self, frame: OpenFrame, outcome: FrameOutcome, data: bytes | None) -> None:
        """Note that a frame has its outcome; its options name the model it was sent to, if it was.
        data: as received, if `wants_data` and still stored."""

    def finished(self, jobs: list[JobRecord]) -> None:
        """Note that these jobs have ended."""

    @property
    def wants_data(self) -> bool:
        """True if `answered` needs the frames."""


class JobSuspects:
    """Tries frames that may have ended their worker alone, and has `guard` refuse them if they end
    their trial too. For one thread."""

    def __init__(self, guard: CrashGuard) -> None:
        self._guard = guard
        self._trials: dict[tuple[str, int], tuple[OpenFrame, bytes, DecodeTrial]] = {}

    @property
    def any_refused(self) -> bool:
        """True if frames must be checked before they are sent."""
        return self._guard.frames.any

    def fault_of(self, data: bytes) -> JobError | None:
        """Return why no worker may have this image file; None if one may."""
        if data.startswith(jpeg.SIGNATURE):
            return None
        sha256 = sha256_of(data)
        frame = self._guard.frames.get(sha256)
        if frame is None or not frame.refused:
            return None
        return JobError(UnsafeImageError.code, refusal(sha256))

    def start(self, frame: OpenFrame, data: bytes) -> None:
        """Start the trial of a frame that a worker died with. Raises OSError."""
        if frame.kind == "image" and not data.startswith(jpeg.SIGNATURE):
            self._trials[frame.key] = (frame, data, DecodeTrial(data, self._guard.limits))

    def is_on_trial(self, key: tuple[str, int]) -> bool:
        return key in self._trials

    def collect(self) -> None:
        """End the trials that are done; frames that ended theirs are refused from now on."""
        for key, (frame, data, trial) in list(self._trials.items()):
            done, ended_by = trial.poll()
            if done:
                del self._trials[key]
            if ended_by:
                record = CrashedFrame(
                    sha256=sha256_of(data),
                    at=rfc3339(time.time()),
                    signal=ended_by,
                    camera=frame.ask.camera or "",
                    job=frame.job,
                )
                self._guard.refuse(record, data)


class Dispatcher:
    """Dispatches in rounds, by `step`, from one thread; `stage` may be called from any."""

    def __init__(
        self,
        table: JobTable,
        broker: Broker,
        choose: Choose,
        listener: Listener,
        cancelled: deque[str],
        suspects: JobSuspects | None = None,
    ) -> None:
        """Set up without a frame in flight.

        Args:
            cancelled: jobs that others have ended; each is taken out with the next round.
            suspects: frames that may have ended their worker.
        """
        self._table = table
        self._broker = broker
        self._choose = choose
        self._listener = listener
        self._cancelled = cancelled
        self._suspects = suspects
        self._length_asked = 0.0
        self._in_flight: dict[tuple[str, int], InFlightFrame] = {}
        self._await_model_since: dict[tuple[str, int], float] = {}
        self._missed: dict[tuple[str, int], int] = {}
        self._silent_since: dict[str, float] = {}
        self._last_report: float | None = None

    def stage(self, job: str, number: int) -> str | None:
        """Return the stage that a frame is in at a worker; None if no worker has it."""
        flight = self._in_flight.get((job, number))
        return flight.report.stage if flight and flight.report else None

    def hanging(self, now: float) -> tuple[frozenset[str], bool]:
        """Return the workers that fell silent with a frame and stayed so for STARVED_MAX_S seconds
        more; and True if frames are in flight, but no report came for ALL_SILENT_MAX_S seconds."""
        silent = frozenset(
            name for name, since in self._silent_since.items() if now - since > STARVED_MAX_S
        )
        for name in silent:
            del self._silent_since[name]
        all_silent = self._last_report is not None and now - self._last_report > ALL_SILENT_MAX_S
        if all_silent:
            self._last_report = now
        return silent, all_silent

    def step(self, now: float, wall: float, gone: Iterable[str] = ()) -> bool:
        """Do one round; return True if anything had happened.

        Raises BrokerLostError and JobsUnavailableError; a later round then goes on.

        Args:
            now: seconds of a monotonic clock.
            wall: Unix seconds.
            gone: names of workers that have died.
        """
        while self._cancelled:
            # Taken out once the broker has it: a later round tries again if it can't be reached.
            self._cancel(self._cancelled[0])
            self._cancelled.popleft()
        if self._suspects:
            self._suspects.collect()
        moved = self._collect(now, wall)
        self._recover(now, wall, frozenset(gone))
        moved = self._send(now, wall) or moved
        if not self._in_flight:
            self._last_report = None
            self._missed.clear()  # also of jobs that ended in other ways
        elif self._last_report is None:
            self._last_report = now
        return moved

    def close(self) -> None:
        self._broker.close()

    def tidy(self) -> None:
        """Remove old values that the broker keeps and nobody asked for."""
        self._broker.tidy()

    def _cancel(self, job: str) -> None:
        """Drop the frames of a job that has ended: no worker begins another."""
        # Even if none are in flight: a dispatcher before this one may have sent some.
        self._broker.cancel(job)
        self._remove([flight for flight in self._in_flight.values() if flight.frame.job == job])

    def _remove(self, done: Iterable[InFlightFrame]) -> None:
        tasks = []
        for flight in done:
            del self._in_flight[flight.frame.key]
            self._missed.pop(flight.frame.key, None)
            tasks.append(flight.task)
        self._broker.forget(tasks)

    def _collect(self, now: float, wall: float) -> bool:
        flights = list(self._in_flight.values())
        reports = self._broker.reports([flight.task.task for flight in flights])
        begun, ended = {}, []
        for flight in flights:
            report = reports.get(flight.task.task)
            if report is None or report == flight.report:
                continue
            if flight.report is None:
                begun[flight.frame.job] = True
            flight.report = report
            flight.heard = now
            self._last_report = now
            self._silent_since.pop(report.worker, None)
            if report.state != "running":
                ended.append(flight)
        # First: a job that has ended can't begin any more, and its begin would not be reported.
        if begun:
            self._listener.began(self._table.started(begun, wall))
        self._store(
            [(f.resolved, f.report.outcome) for f in ended if f.report and f.report.outcome], wall
        )
        missing = [f for f in ended if f.report and f.report.state == "missing"]
        self._remove(flight for flight in ended if flight not in missing)
        for flight in missing:
            self._miss(flight, wall)
        return bool(begun or ended)

    def _store(self, outcomes: list[tuple[OpenFrame, FrameOutcome]], wall: float) -> None:
        """Put outcomes into the table, and notify the listener of those that are new."""
        if not outcomes:
            return
        wanted = self._listener.wants_data
        data = {frame.key: self._data_if_intact(frame) for frame, _ in outcomes} if wanted else {}
        stored, finished = self._table.ended(
            [(*frame.key, self._listener.judged(frame, outcome)) for frame, outcome in outcomes],
            wall,
        )
        frames = {frame.key: frame for frame, _ in outcomes}
        for job, number, outcome in stored:
            self._listener.answered(frames[job, number], outcome, data.get((job, number)))
        self._listener.finished(finished)

    def _data_if_intact(self, frame: OpenFrame) -> bytes | None:
        with suppress(StorageError):
            return self._table.data(*frame.key)
        return None

    def _recover(self, now: float, wall: float, gone: frozenset[str]) -> None:
        untaken, late = [], []
        for flight in list(self._in_flight.values()):
            if flight.report is None:
                if _is_expired(flight.frame, wall):
                    late.append(flight)
                elif now - flight.sent > UNTAKEN_MAX_S:
                    untaken.append(flight)
            elif flight.report.worker in gone or now - flight.heard > BEAT_TIMEOUT_S:
                self._silent_since.setdefault(flight.report.worker, now)
                if flight.report.worker in gone:
                    self._suspect(flight.frame)
                self._lose(flight, wall)
        self._store([(flight.resolved, FrameOutcome(fault=TOO_LATE)) for flight in late], wall)
        self._remove(late)
        if not untaken or now - self._length_asked < QUEUE_LENGTH_INTERVAL_S:
            return
        self._length_asked = now
        queued = self._broker.queued()
        for flight in untaken:
            old = now - flight.sent > UNTAKEN_IN_QUEUE_MAX_S and queued < QUEUED_MAX
            if queued == 0 or old:
                flight.sent = now
                if not self._submit(flight, wall):
                    del self._in_flight[flight.frame.key]

    def _miss(self, flight: InFlightFrame, wall: float) -> None:
        """Have a frame sent again, if it is stored: the worker that took it did not find it."""
        key = flight.frame.key
        if not self._broker.carries and (fault := self._unreadable(flight.frame)) is not None:
            self._store([(flight.resolved, FrameOutcome(fault=fault))], wall)
            self._remove([flight])
            return
        self._missed[key] = self._missed.get(key, 0) + 1
        if self._missed[key] < MISSED_MAX:
            del self._in_flight[key]
            self._broker.forget((), [flight.task])
        else:
            del self._missed[key]
            self._lose(flight, wall)

    def _unreadable(self, frame: OpenFrame) -> JobError | None:
        """Return why no worker will ever find this frame; None if the table has it."""
        try:
            if frame.key not in self._missed:
                self._table.check()
            if self._table.data(*frame.key) is not None:
                return None
        except StorageError as error:
            return JobError(error.code, error.message)
        return JobError(
            StorageError.code, "the frame is no longer stored: the file of jobs was damaged"
        )

    def _suspect(self, frame: OpenFrame) -> None:
        """Try the frame of a worker that died alone, before another worker gets it."""
        with suppress(StorageError, OSError):
            data = self._table.data(*frame.key)
            if data is not None and self._suspects:
                self._suspects.start(frame, data)

    def _fault_of(self, frame: OpenFrame) -> JobError | None:
        """Return why no worker may have this frame; None if one may, or it can't be read."""
        if self._suspects is None or frame.kind != "image" or not self._suspects.any_refused:
            return None
        with suppress(StorageError):
            data = self._table.data(*frame.key)
            return self._suspects.fault_of(data) if data is not None else None
        return None

    def _lose(self, flight: InFlightFrame, wall: float) -> None:
        """Have a frame sent again: the worker that had it is gone, or its report is."""
        frame = flight.frame
        losses = self._table.lost(*frame.key)
        fields = {
            "job": frame.job,
            "frame": frame.number,
            "worker": flight.report.worker if flight.report else "",
            "losses": losses,
        }
        logger.warning("worker lost with a frame", extra={"fields": fields})
        del self._in_flight[frame.key]
        self._broker.forget((), [flight.task])
        if losses >= LOSSES_MAX:
            fault = JobError(
                "WORKER_LOST",
                f"{losses} workers died while they worked on frame {frame.number} of this job, or"
                " the broker lost it",
            )
            with suppress(JobFinishedError, JobNotFoundError):
                ended, newly = self._table.stop(frame.job, "failed", fault, wall)
                self._listener.answered(flight.resolved, FrameOutcome(fault=fault), None)
                if newly:
                    self._listener.finished([ended])
            # With the next round, which tries again if the broker is lost meanwhile.
            self._cancelled.append(frame.job)

    def _send(self, now: float, wall: float) -> bool:
        room = IN_FLIGHT_MAX - len(self._in_flight)
        # Several at a time: looking for them costs as much as for one.
        if room < IN_FLIGHT_MAX // 4:
            return False
        waiting = self._table.open_frames(2 * IN_FLIGHT_MAX)
        # Frames end in other ways than by being sent: cancelled, too late, their model gone.
        open_keys = {frame.key for frame in waiting}
        self._await_model_since = {
            key: since for key, since in self._await_model_since.items() if key in open_keys
        }
        frames = [frame for frame in waiting if frame.key not in self._in_flight][:room]
        known = self._broker.reports([frame.task for frame in frames])
        faults: list[tuple[OpenFrame, FrameOutcome]] = []
        sent = False
        for frame in frames:
            task = self._make_task(frame, now, wall)
            if isinstance(task, JobError):
                faults.append((frame, FrameOutcome(fault=task)))
            elif task is not None:
                flight = InFlightFrame(frame, task, now)
                report = known.get(frame.task)
                # A frame that this server's predecessor sent to a worker is not sent again.
                taken = report is not None and report.state in ("running", "done")
                if taken or self._submit(flight, wall):
                    self._in_flight[frame.key] = flight
                    sent = True
        self._store(faults, wall)
        return sent or bool(faults)

    def _make_task(self, frame: OpenFrame, now: float, wall: float) -> FrameTask | JobError | None:
        """Return the task for a worker; an error if the frame can't be answered any more, None if
        it can't be yet."""
        if _is_expired(frame, wall):
            return TOO_LATE
        if self._suspects and self._suspects.is_on_trial(frame.key):
            return None
        if fault := self._fault_of(frame):
            return fault
        try:
            model, version, sha256, policy, source = self._choose(frame)
        except NotReadyError as error:
            since = self._await_model_since.setdefault(frame.key, now)
            if now - since < LOADING_MAX_S:
                return None
            del self._await_model_since[frame.key]
            return JobError(error.code, error.message)
        except LinesideError as error:
            return JobError(error.code, error.message)
        self._await_model_since.pop(frame.key, None)
        return FrameTask(
            frame.task, *frame.key, frame.kind, frame.ask, model, version, sha256, policy, source
        )

    def _submit(self, flight: InFlightFrame, wall: float) -> bool:
        """Send the frame; return False if its job has ended meanwhile, or ends since the frame
        can't be read."""
        data = None
        if self._broker.carries:
            try:
                data = self._table.data(*flight.frame.key)
            except StorageError as error:
                fault = JobError(error.code, error.message)
                self._store([(flight.resolved, FrameOutcome(fault=fault))], wall)
            if data is None:
                return False
        self._broker.send(flight.task, data)
        return True


def _is_expired(frame: OpenFrame, wall: float) -> bool:
    return frame.ask.expires is not None and wall > frame.ask.expires
