"""A frame on its way to a worker and back, and who is told of it."""

from __future__ import annotations

from typing import Protocol

import msgspec

from server.jobs.messages import FrameReport, FrameTask
from server.store.jobs.records import FrameOutcome, JobRecord, OpenFrame


class Listener(Protocol):
    """Who is told of what was kept in the table."""

    def began(self, jobs: list[str]) -> None:
        """These jobs run from now on."""

    def answered(self, frame: OpenFrame, outcome: FrameOutcome, data: bytes | None) -> None:
        """A frame has its outcome; its ask names the model it was sent to, if it was. data: as
        received, where `wants_data` and still kept."""

    def finished(self, jobs: list[JobRecord]) -> None:
        """These jobs have ended."""

    @property
    def wants_data(self) -> bool:
        """Whether `answered` is to be given the frames."""


class InFlightFrame:
    """A frame that was sent. heard: when its report last changed, in the seconds of `step`."""

    def __init__(self, frame: OpenFrame, work: FrameTask, now: float) -> None:
        self.frame, self.work = frame, work
        self.sent = self.heard = now
        self.report: FrameReport | None = None

    @property
    def asked(self) -> OpenFrame:
        """The frame, with the model and version that it was sent to."""
        ask = msgspec.structs.replace(
            self.frame.ask, model=self.work.model, version=self.work.version
        )
        return msgspec.structs.replace(self.frame, ask=ask)
