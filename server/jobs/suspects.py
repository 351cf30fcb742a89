"""Frames of jobs that may have ended their worker: tried alone, and refused if they did."""

import time

from server.errors import UnsafeImageError
from server.recognition.images import jpeg
from server.recognition.reader_guard import DecodeTrial
from server.store.crashes import CrashedFrame, CrashGuard, refusal, sha256_of
from server.store.jobs.records import JobError, OpenFrame
from server.system.clock import rfc3339


class JobSuspects:
    """What `guard` refuses, and the trials of frames that a worker died with. For one thread."""

    def __init__(self, guard: CrashGuard) -> None:
        self._guard = guard
        self._trials: dict[tuple[str, int], tuple[OpenFrame, bytes, DecodeTrial]] = {}

    @property
    def any_refused(self) -> bool:
        """Whether a frame is to be looked at before it is sent."""
        return self._guard.frames.any

    def fault_of(self, data: bytes) -> JobError | None:
        """Why no worker may have this image file; None if one may."""
        if data.startswith(jpeg.SIGNATURE):
            return None
        sha256 = sha256_of(data)
        frame = self._guard.frames.get(sha256)
        if frame is None or not frame.refused:
            return None
        return JobError(UnsafeImageError.code, refusal(sha256))

    def start(self, frame: OpenFrame, data: bytes) -> None:
        """Tries a frame that a worker died with. Raises OSError."""
        if frame.kind == "image" and not data.startswith(jpeg.SIGNATURE):
            self._trials[frame.key] = (frame, data, DecodeTrial(data, self._guard.limits))

    def holds(self, key: tuple[str, int]) -> bool:
        """Whether the frame is being tried."""
        return key in self._trials

    def collect(self) -> None:
        """Takes up the trials that have ended; frames that ended theirs are refused from now on."""
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
