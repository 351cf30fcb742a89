"""Triggers, and how a camera's frame is judged: as a posted one is."""

import os
import time
from collections.abc import Callable

import msgspec

from server.config.cameras import CameraTable
from server.config.settings import Settings
from server.errors import (
    BodyTooLargeError,
    LinesideError,
    StaleFrameError,
    UndecodableImageError,
)
from server.line.cameras.sources import Shot
from server.recognition.answers import Answer, FrameAnswered, FrameRefused, Options
from server.values.trace import Trace
from server.values.wording import kept_sentence


class Trigger(msgspec.Struct, frozen=True):
    """One demand for a frame. asked: when (time.monotonic()). part: the caller's name for what the
    frame shows; product: in place of the camera's own; batch: the part's lot. trace: of the request
    that asked, if it named one."""

    request_id: str
    asked: float
    part: str = ""
    product: str = ""
    batch: str = ""
    trace: Trace | None = None


def new_trigger(part: str = "", product: str = "", batch: str = "") -> Trigger:
    """Return a trigger of now, with an id of its own."""
    return Trigger(os.urandom(16).hex(), time.monotonic(), part, product, batch)


class Judge:
    """Has frames recognized, and reports each as a posted frame is reported.

    recognize: returns the answer to a camera's frame, and its options with its product.
    """

    def __init__(
        self,
        settings: Settings,
        recognize: Callable[[CameraTable, bytes, Options, str], tuple[Answer, Options]],
        answered: Callable[[FrameAnswered], object],
        refused: Callable[[FrameRefused], None],
    ) -> None:
        self._settings = settings
        self._recognize = recognize
        self._answered = answered
        self._refused = refused

    def judge(self, table: CameraTable, trigger: Trigger, shot: Shot) -> LinesideError | None:
        """Recognize a frame until it is one interval old. Return the error if it was refused."""
        deadline = shot.captured + table.interval_s
        options = Options(
            top_k=self._settings.default_top_k,
            deadline=deadline,
            camera=table.name,
            latest_only=self._settings.latest_only,
            part=trigger.part,
            from_capture=True,
            product=trigger.product or table.product,
            batch=trigger.batch,
            pulled=True,
        )
        try:
            if time.monotonic() > deadline:
                raise StaleFrameError("the frame is older than the camera's interval_s")
            if not shot.data:
                raise UndecodableImageError("the camera's picture can't be read, or is too large")
            if len(shot.data) > self._settings.max_body_mb * 1e6:
                raise BodyTooLargeError(
                    f"the camera's picture is larger than {self._settings.max_body_mb:g} MB"
                    " (max_body_mb)"
                )
            answer, options = self._recognize(table, shot.data, options, trigger.request_id)
        except LinesideError as error:
            self.refuse(table, trigger, error)
            return error
        except Exception:
            # A trigger that was taken is always accounted for.
            self.refuse(table, trigger, LinesideError("an error of the server, see its log"))
            raise
        event = FrameAnswered(
            time.time(), trigger.request_id, answer, options, shot.data, trace=trigger.trace
        )
        self._answered(event)
        return None

    def refuse(self, table: CameraTable, trigger: Trigger, error: LinesideError) -> None:
        """Report that `trigger` got no verdict."""
        self._refused(
            FrameRefused(
                at=time.time(),
                request_id=trigger.request_id,
                status=error.status,
                code=error.code,
                model=table.model,
                camera=table.name,
                part=trigger.part,
                product=trigger.product or table.product,
                batch=trigger.batch,
                seconds=time.monotonic() - trigger.asked,
                reason=kept_sentence(error.message),
                cause=error.cause,
                let_in=True,
                trace=trigger.trace,
            )
        )
