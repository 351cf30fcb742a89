"""Passes on what happens to jobs: to metrics, to listeners of frames, and to webhooks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from server.config.settings import Settings
from server.errors import JobsUnavailableError, status_of
from server.observe.metrics import Metrics
from server.recognition.answers import (
    Answer,
    FrameAnswered,
    FrameRefused,
    Options,
    RefusalListener,
    unsure,
)
from server.store.jobs.records import FrameOutcome, JobError, JobRecord, OpenFrame, State
from server.values.wording import kept_sentence

if TYPE_CHECKING:
    from server.jobs.webhooks import WebhookDelivery
    from server.store.jobs.table import JobTable
    from server.system.webhook import WebhookClient


# The reason of the verdict of a frame whose part is likely gone.
LATE = "late"


class JobEvents:
    """Listens to the dispatcher, in its thread."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        on_answer: Callable[[FrameAnswered], object],
        on_refusal: RefusalListener,
        wants_data: bool,
        render: Callable[[JobRecord], bytes],
        judge_health: Callable[[Answer, Options], Answer] | None = None,
    ) -> None:
        """Set up without webhooks, which begin with `start`.

        Args:
            on_answer: called with each answered frame.
            on_refusal: called with each frame that got no answer.
            wants_data: True if `on_answer` needs the frames themselves.
            render: makes the body of a job's webhook.
            judge_health: returns an answer with the health of its picture; None if that is off.
        """
        self._settings = settings
        self._metrics = metrics
        self._on_answer = on_answer
        self._on_refusal = on_refusal
        self.wants_data = wants_data
        self._render = render
        self._judge_health = judge_health
        self._client: WebhookClient | None = None
        self._delivery: WebhookDelivery | None = None

    def pending(self, count: Callable[[], int]) -> None:
        """Have Prometheus ask `count` for the jobs that wait or run; NaN if the table can't be
        read."""

        def ask() -> float:
            try:
                return count()
            except JobsUnavailableError:
                return math.nan

        self._metrics.jobs_pending.set_function(ask)

    def count(self, state: State) -> None:
        self._metrics.jobs.labels(state).inc()

    def began(self, jobs: list[str]) -> None:
        for _ in jobs:
            self.count("running")

    def judged(self, frame: OpenFrame, outcome: FrameOutcome) -> FrameOutcome:
        answer, numbers = outcome.answer, outcome.numbers
        if answer is not None and self._judge_health is not None:
            answer = self._judge_health(answer, _options(frame))
        if self._is_late(frame):
            answer = unsure(answer, LATE) if answer else None
            if numbers is not None:
                answers = tuple(unsure(each, LATE) for each in numbers.answers)
                numbers = msgspec.structs.replace(numbers, answers=answers)
        return msgspec.structs.replace(outcome, answer=answer, numbers=numbers)

    def _is_late(self, frame: OpenFrame) -> bool:
        """Return whether a frame's deadline has passed: the one that was asked for, else, as for a
        frame that is answered at once, `max_wait_ms` from its capture. Without a word of when it
        was captured a job has time."""
        ask, now = frame.ask, time.time()
        if ask.expires is not None:
            return now > ask.expires
        if ask.captured_age is None:
            return False
        age = max(0.0, ask.captured_age) + now - frame.created
        return age > self._settings.max_wait_ms / 1000

    def answered(self, frame: OpenFrame, outcome: FrameOutcome, data: bytes | None) -> None:
        if outcome.fault is not None:
            self._on_refusal(_refusal(frame, outcome.fault))
            return
        options = _options(frame)
        answers: tuple[Answer, ...] = (outcome.answer,) if outcome.answer else ()
        if outcome.numbers is not None:
            answers, data = outcome.numbers.answers, None
        for answer in answers:
            event = FrameAnswered(
                time.time(), frame.request_id, answer, options, data, trace=frame.ask.trace
            )
            self._on_answer(event)

    def finished(self, jobs: list[JobRecord]) -> None:
        for job in jobs:
            self.count(job.state)
            if job.webhook is not None and self._delivery is not None:
                self._delivery.wake()

    def webhook_client(self) -> WebhookClient | None:
        """Return the client that posts webhooks; None if they are switched off."""
        if self._client is None and self._settings.webhook_hosts:
            from server.system.webhook import WebhookClient

            self._client = WebhookClient(
                self._settings.webhook_hosts, self._settings.webhook_secret
            )
        return self._client

    def start(self, table: JobTable) -> None:
        """Deliver the webhooks of `table`, now and later; if they are switched off, give up what an
        earlier start left."""
        from server.jobs.webhooks import WebhookDelivery, give_up_webhooks

        client = self.webhook_client()
        if client is None:
            give_up_webhooks(table)
        else:
            self._delivery = WebhookDelivery(self._settings, client, table, self._render)

    def close(self) -> None:
        """Deliver no more webhooks."""
        if self._delivery is not None:
            self._delivery.close()


def _options(frame: OpenFrame) -> Options:
    ask = frame.ask
    return Options(
        ask.top_k,
        ask.threshold,
        camera=ask.camera or "",
        part=ask.part or "",
        product=ask.product or "",
        batch=ask.batch or "",
    )


def _refusal(frame: OpenFrame, fault: JobError) -> FrameRefused:
    """Return what the synchronous route would have reported of a frame with this fault."""
    now = time.time()
    ask = frame.ask
    return FrameRefused(
        at=now,
        request_id=frame.request_id,
        status=status_of(fault.code),
        code=fault.code,
        model=ask.model or "",
        version=ask.version or 0,
        camera=ask.camera or "",
        part=ask.part or "",
        product=ask.product or "",
        batch=ask.batch or "",
        seconds=max(0.0, now - frame.created),
        reason=kept_sentence(fault.message),
        let_in=True,  # its job was taken
        trace=ask.trace,
    )
