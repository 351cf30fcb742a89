"""From the table of jobs to the workers and back.

Messages are only wake-ups: every frame without an outcome is sent, and sent again where its message
was lost or its worker fell silent, until the table holds its outcome. A frame answered twice has
one outcome, the first.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from server.errors import (
    JobFinishedError,
    JobNotFoundError,
    LinesideError,
    NotReadyError,
    StorageError,
)
from server.jobs.in_flight import InFlightFrame, Listener
from server.jobs.messages import FrameTask
from server.store.jobs.records import FrameOutcome, JobError, OpenFrame
from server.store.jobs.table import JobTable

if TYPE_CHECKING:
    from server.jobs.queue import Broker
    from server.jobs.suspects import JobSuspects

logger = logging.getLogger(__name__)

# Frames sent and not yet answered: enough to keep workers busy, few enough to bound the broker.
WINDOW = 64
# Seconds after which a frame that nobody took counts as lost, where the queue is empty; and where
# it is not, since another server's frames may be in it.
UNTAKEN, UNTAKEN_AT_ALL = 2.0, 60.0
# Seconds between questions after the queue's length.
ASKING = 1.0
MOST_QUEUED = 10 * WINDOW
# Seconds without a beat after which a worker counts as dead (one beats every second).
SILENT = 5.0
# Seconds without a word of any worker while frames wait for one, after which all count as hanging:
# more than the slowest device takes to start one.
STALLED = 60.0
# Seconds after SILENT for which a worker may be starved and no worse.
HANGING = 20.0
# Workers that a job may cost.
MOST_LOSSES = 3
# Times that the broker may lose a frame before that counts as the loss of a worker.
MOST_MISSED = 10
# Seconds for which a frame waits for a model that is being loaded.
LONGEST_LOADING = 120.0

LATE = JobError("DEADLINE_EXCEEDED", "the deadline passed before a worker was free")

# The model that serves for this frame now, as (name, version, sha256 of its file).
Choose = Callable[[OpenFrame], tuple[str, int, str]]


class Dispatcher:
    """One round after the other by `step`, from one thread; `stage` may be asked from any."""

    def __init__(
        self,
        table: JobTable,
        broker: Broker,
        choose: Choose,
        listener: Listener,
        cancelled: deque[str],
        suspects: JobSuspects | None = None,
    ) -> None:
        """cancelled: jobs that others have ended, taken from it with the next round. suspects:
        frames that may have ended their worker."""
        self._table, self._broker = table, broker
        self._choose, self._listener, self._cancelled = choose, listener, cancelled
        self._suspects = suspects
        self._asked = 0.0
        self._flights: dict[tuple[str, int], InFlightFrame] = {}
        self._held: dict[tuple[str, int], float] = {}
        self._missed: dict[tuple[str, int], int] = {}
        self._silent: dict[str, float] = {}
        self._heard: float | None = None

    def stage(self, job: str, number: int) -> str | None:
        """The stage that a frame is in at a worker; None where none has it."""
        flight = self._flights.get((job, number))
        return flight.report.stage if flight and flight.report else None

    def hanging(self, now: float) -> tuple[frozenset[str], bool]:
        """The workers that fell silent with a frame, and were not heard of for HANGING seconds
        more; and whether frames are under way, of which none was heard of for STALLED seconds."""
        silent = frozenset(n for n, since in self._silent.items() if now - since > HANGING)
        for name in silent:
            del self._silent[name]
        stalled = self._heard is not None and now - self._heard > STALLED
        if stalled:
            self._heard = now
        return silent, stalled

    def step(self, now: float, wall: float, gone: Iterable[str] = ()) -> bool:
        """One round. now, wall: seconds of a monotonic clock and since 1970. gone: workers known
        to have died. Returns whether anything had happened.

        Raises BrokerLostError and JobsUnavailableError; a later round then goes on.
        """
        while self._cancelled:
            # Taken out once the broker knows: what can't be told now is told by a later round.
            self._cancel(self._cancelled[0])
            self._cancelled.popleft()
        if self._suspects:
            self._suspects.collect()
        moved = self._collect(now, wall)
        self._recover(now, wall, frozenset(gone))
        moved = self._send(now, wall) or moved
        if not self._flights:
            self._heard = None
            self._missed.clear()  # also of jobs that ended in other ways
        elif self._heard is None:
            self._heard = now
        return moved

    def close(self) -> None:
        """Closes the connections to the broker."""
        self._broker.close()

    def tidy(self) -> None:
        """Removes what the broker keeps and nobody asked for."""
        self._broker.tidy()

    def _cancel(self, job: str) -> None:
        """Drops the frames of a job that has ended: no worker begins another."""
        # Even where none are known: a dispatcher before this one may have sent some.
        self._broker.cancel(job)
        self._land([flight for flight in self._flights.values() if flight.frame.job == job])

    def _land(self, done: Iterable[InFlightFrame]) -> None:
        works = []
        for flight in done:
            del self._flights[flight.frame.key]
            self._missed.pop(flight.frame.key, None)
            works.append(flight.work)
        self._broker.forget(works)

    def _collect(self, now: float, wall: float) -> bool:
        flights = list(self._flights.values())
        reports = self._broker.reports([flight.work.task for flight in flights])
        begun, ended = {}, []
        for flight in flights:
            report = reports.get(flight.work.task)
            if report is None or report == flight.report:
                continue
            if flight.report is None:
                begun[flight.frame.job] = True
            flight.report, flight.heard = report, now
            self._heard = now
            self._silent.pop(report.worker, None)
            if report.state != "running":
                ended.append(flight)
        # First, since a job that has ended can't begin any more and would not be told of.
        if begun:
            self._listener.began(self._table.started(begun, wall))
        self._keep(
            [(f.asked, f.report.outcome) for f in ended if f.report and f.report.outcome], wall
        )
        missing = [f for f in ended if f.report and f.report.state == "missing"]
        self._land(flight for flight in ended if flight not in missing)
        for flight in missing:
            self._miss(flight, wall)
        return bool(begun or ended)

    def _keep(self, found: list[tuple[OpenFrame, FrameOutcome]], wall: float) -> None:
        """Puts outcomes into the table, and tells of those that it had not."""
        if not found:
            return
        wanted = self._listener.wants_data
        data = {f.key: self._data_if_whole(f) for f, _ in found} if wanted else {}
        kept, finished = self._table.ended([(*frame.key, o) for frame, o in found], wall)
        frames = {frame.key: frame for frame, _ in found}
        for job, number, outcome in kept:
            self._listener.answered(frames[job, number], outcome, data.get((job, number)))
        self._listener.finished(finished)

    def _data_if_whole(self, frame: OpenFrame) -> bytes | None:
        with suppress(StorageError):
            return self._table.data(*frame.key)
        return None

    def _recover(self, now: float, wall: float, gone: frozenset[str]) -> None:
        untaken, late = [], []
        for flight in list(self._flights.values()):
            if flight.report is None:
                if _expired(flight.frame, wall):
                    late.append(flight)
                elif now - flight.sent > UNTAKEN:
                    untaken.append(flight)
            elif flight.report.worker in gone or now - flight.heard > SILENT:
                self._silent.setdefault(flight.report.worker, now)
                if flight.report.worker in gone:
                    self._suspect(flight.frame)
                self._lose(flight, wall)
        self._keep([(flight.asked, FrameOutcome(fault=LATE)) for flight in late], wall)
        self._land(late)
        if not untaken or now - self._asked < ASKING:
            return
        self._asked = now
        queued = self._broker.queued()
        for flight in untaken:
            old = now - flight.sent > UNTAKEN_AT_ALL and queued < MOST_QUEUED
            if queued == 0 or old:
                flight.sent = now
                if not self._submit(flight, wall):
                    del self._flights[flight.frame.key]

    def _miss(self, flight: InFlightFrame, wall: float) -> None:
        """The worker that came for this frame did not find it. It is sent again, if it is there."""
        key = flight.frame.key
        if not self._broker.carries and (fault := self._unreadable(flight.frame)) is not None:
            self._keep([(flight.asked, FrameOutcome(fault=fault))], wall)
            self._land([flight])
            return
        self._missed[key] = self._missed.get(key, 0) + 1
        if self._missed[key] < MOST_MISSED:
            del self._flights[key]
            self._broker.forget((), [flight.work])
        else:
            del self._missed[key]
            self._lose(flight, wall)

    def _unreadable(self, frame: OpenFrame) -> JobError | None:
        """Why no worker will ever find this frame; None if the table has it."""
        try:
            if frame.key not in self._missed:
                self._table.check()
            if self._table.data(*frame.key) is not None:
                return None
        except StorageError as error:
            return JobError(error.code, error.message)
        return JobError(
            StorageError.code, "the frame is no longer kept: the file of jobs was damaged"
        )

    def _suspect(self, frame: OpenFrame) -> None:
        """Has the frame of a worker that died tried alone, before another worker gets it."""
        with suppress(StorageError, OSError):
            data = self._table.data(*frame.key)
            if data is not None and self._suspects:
                self._suspects.start(frame, data)

    def _fault_of(self, frame: OpenFrame) -> JobError | None:
        """Why no worker may have this frame, as far as it can be read."""
        if self._suspects is None or frame.kind != "image" or not self._suspects.any_refused:
            return None
        with suppress(StorageError):
            data = self._table.data(*frame.key)
            return self._suspects.fault_of(data) if data is not None else None
        return None

    def _lose(self, flight: InFlightFrame, wall: float) -> None:
        """The worker that had this frame is gone, or what it said is."""
        frame = flight.frame
        losses = self._table.lost(*frame.key)
        fields = {
            "job": frame.job,
            "frame": frame.number,
            "worker": flight.report.worker if flight.report else "",
            "losses": losses,
        }
        logger.warning("worker lost with a frame", extra={"fields": fields})
        del self._flights[frame.key]
        self._broker.forget((), [flight.work])
        if losses >= MOST_LOSSES:
            fault = JobError(
                "WORKER_LOST",
                f"{losses} workers died with the frame {frame.number} of this job in hand, or the"
                " broker does not keep it",
            )
            with suppress(JobFinishedError, JobNotFoundError):
                ended, newly = self._table.stop(frame.job, "failed", fault, wall)
                self._listener.answered(flight.asked, FrameOutcome(fault=fault), None)
                if newly:
                    self._listener.finished([ended])
            # With the next round, which tries again where the broker is lost meanwhile.
            self._cancelled.append(frame.job)

    def _send(self, now: float, wall: float) -> bool:
        room = WINDOW - len(self._flights)
        # Several at a time: looking for them costs as much as for one.
        if room < WINDOW // 4:
            return False
        waiting = self._table.open_frames(2 * WINDOW)
        # Frames end in other ways than by being sent: cancelled, too late, their model gone.
        open_keys = {frame.key for frame in waiting}
        self._held = {key: at for key, at in self._held.items() if key in open_keys}
        frames = [frame for frame in waiting if frame.key not in self._flights][:room]
        known = self._broker.reports([frame.task for frame in frames])
        faults: list[tuple[OpenFrame, FrameOutcome]] = []
        sent = False
        for frame in frames:
            work = self._choose_model(frame, now, wall)
            if isinstance(work, JobError):
                faults.append((frame, FrameOutcome(fault=work)))
            elif work is not None:
                flight = InFlightFrame(frame, work, now)
                report = known.get(frame.task)
                # What a worker was told by this server's predecessor is not told again.
                taken = report is not None and report.state in ("running", "done")
                if taken or self._submit(flight, wall):
                    self._flights[frame.key] = flight
                    sent = True
        self._keep(faults, wall)
        return sent or bool(faults)

    def _choose_model(
        self, frame: OpenFrame, now: float, wall: float
    ) -> FrameTask | JobError | None:
        """What to tell a worker; a fault where the frame can't be answered any more, None where it
        can't be yet."""
        if _expired(frame, wall):
            return LATE
        if self._suspects and self._suspects.holds(frame.key):
            return None
        if fault := self._fault_of(frame):
            return fault
        try:
            model, version, sha256 = self._choose(frame)
        except NotReadyError as error:
            since = self._held.setdefault(frame.key, now)
            if now - since < LONGEST_LOADING:
                return None
            del self._held[frame.key]
            return JobError(error.code, error.message)
        except LinesideError as error:
            return JobError(error.code, error.message)
        self._held.pop(frame.key, None)
        return FrameTask(frame.task, *frame.key, frame.kind, frame.ask, model, version, sha256)

    def _submit(self, flight: InFlightFrame, wall: float) -> bool:
        """Sends the frame; False if its job has ended meanwhile, or ends since the frame can't be
        read."""
        data = None
        if self._broker.carries:
            try:
                data = self._table.data(*flight.frame.key)
            except StorageError as error:
                fault = JobError(error.code, error.message)
                self._keep([(flight.asked, FrameOutcome(fault=fault))], wall)
            if data is None:
                return False
        self._broker.send(flight.work, data)
        return True


def _expired(frame: OpenFrame, wall: float) -> bool:
    return frame.ask.expires is not None and wall > frame.ask.expires
