"""Who learns how jobs go: the metrics, those who keep or count frames, and webhooks."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from server.config.settings import Settings
from server.errors import JobsUnavailableError, status_of
from server.observe.metrics import Metrics
from server.recognition.answers import (
    Answer,
    FrameAnswered,
    FrameRefused,
    Listener,
    Options,
    RefusalListener,
)
from server.store.jobs.records import FrameOutcome, JobError, JobRecord, OpenFrame, State
from server.values.wording import kept_sentence

if TYPE_CHECKING:
    from server.jobs.webhooks import WebhookClient
    from server.store.jobs.webhooks import JobWebhooks

logger = logging.getLogger(__name__)

# Seconds between looks for webhooks where none is due.
LONGEST_PAUSE = 60.0
RETRY = 1.0


class JobEvents:
    """Told by the dispatcher, in its thread. Webhooks have a thread of their own, so that no job
    waits for a slow receiver.

    observe: is told of each answered frame, refuse of each that got no answer. render: a job as the
    API tells it.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        observe: Listener,
        refuse: RefusalListener,
        wants_data: bool,
        render: Callable[[JobRecord], bytes],
    ) -> None:
        self._settings, self._metrics = settings, metrics
        self._observe, self._refuse = observe, refuse
        self.wants_data, self._render = wants_data, render
        self._sender: WebhookClient | None = None
        self._ended, self._stopping = threading.Event(), threading.Event()

    def pending(self, count: Callable[[], int]) -> None:
        """Has Prometheus ask `count` for the jobs that wait or run: not a number where the table
        can't tell."""

        def ask() -> float:
            try:
                return count()
            except JobsUnavailableError:
                return math.nan

        self._metrics.jobs_pending.set_function(ask)

    def count(self, state: State) -> None:
        """Counts a job that has come into this state."""
        self._metrics.jobs.labels(state).inc()

    def began(self, jobs: list[str]) -> None:
        """These jobs run from now on."""
        for _ in jobs:
            self.count("running")

    def answered(self, frame: OpenFrame, outcome: FrameOutcome, data: bytes | None) -> None:
        """A frame has its outcome."""
        ask = frame.ask
        if outcome.fault is not None:
            self._refuse(_refusal(frame, outcome.fault))
            return
        options = Options(ask.top_k, ask.threshold, camera=ask.camera or "", part=ask.part or "")
        answers: tuple[Answer, ...] = (outcome.answer,) if outcome.answer else ()
        if outcome.numbers is not None:
            answers, data = outcome.numbers.answers, None
        for answer in answers:
            self._observe(FrameAnswered(time.time(), frame.request_id, answer, options, data))

    def finished(self, jobs: list[JobRecord]) -> None:
        """These jobs have ended."""
        for job in jobs:
            self.count(job.state)
            if job.webhook is not None:
                self._ended.set()

    def sender(self) -> WebhookClient | None:
        """What posts webhooks; None where none may go anywhere."""
        if self._sender is None and self._settings.webhook_hosts:
            from server.jobs.webhooks import WebhookClient

            self._sender = WebhookClient(
                self._settings.webhook_hosts, self._settings.webhook_secret
            )
        return self._sender

    def start(self, webhooks: JobWebhooks) -> None:
        """Sends what is due, now and later, where webhooks are switched on; where they are not any
        more, gives up what an earlier start left, whose jobs would never expire."""
        sender = self.sender()
        if sender is None:
            _give_up(webhooks)
            return
        threading.Thread(
            target=self._deliver, args=(webhooks, sender), name="webhooks", daemon=True
        ).start()

    def close(self) -> None:
        """Sends no more."""
        self._stopping.set()
        self._ended.set()

    def _deliver(self, webhooks: JobWebhooks, sender: WebhookClient) -> None:
        from server.jobs.webhooks import LONGEST

        while not self._stopping.is_set():
            try:
                self._deliver_all(webhooks, sender, webhooks.due(time.time(), LONGEST))
                due = webhooks.next_due()
            except JobsUnavailableError as error:
                if self._stopping.is_set():
                    return  # the table is closed; the next start sends what is due
                logger.error("webhooks wait", extra={"fields": {"reason": error.message}})
                due = time.time() + RETRY
            except Exception:
                # Else no webhook would be sent any more. What nobody foresaw is not soon over.
                logger.exception("webhooks wait")
                due = None
            pause = LONGEST_PAUSE if due is None else min(LONGEST_PAUSE, due - time.time())
            self._ended.wait(max(0.0, pause))
            self._ended.clear()

    def _deliver_all(
        self, webhooks: JobWebhooks, sender: WebhookClient, jobs: Sequence[JobRecord]
    ) -> None:
        """All at once, since a receiver that does not answer takes its whole time. Raises what
        `_deliver_one` does."""
        errors: list[Exception] = []

        def deliver(job: JobRecord) -> None:
            try:
                self._deliver_one(webhooks, sender, job)
            except Exception as error:  # noqa: BLE001 - raised again below
                errors.append(error)

        # Not those of a pool, which the process's end would wait for.
        threads = [threading.Thread(target=deliver, args=(job,), daemon=True) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]

    def _deliver_one(self, webhooks: JobWebhooks, sender: WebhookClient, job: JobRecord) -> None:
        from server.jobs.webhooks import pause_after

        assert job.webhook is not None
        attempts = job.webhook.attempts + 1
        reason = sender.send(job.webhook.url, self._render(job))
        fields = {"job": job.id, "attempt": attempts, "reason": reason}
        if not reason:
            logger.info("webhook delivered", extra={"fields": fields})
            webhooks.told(job.id, "delivered", None)
        elif attempts >= self._settings.webhook_attempts:
            logger.error("webhook given up", extra={"fields": fields})
            webhooks.told(job.id, "failed", None)
        else:
            logger.warning("webhook failed", extra={"fields": fields})
            webhooks.told(job.id, "pending", time.time() + pause_after(attempts))


def _give_up(webhooks: JobWebhooks) -> None:
    try:
        jobs = webhooks.give_up()
    except JobsUnavailableError as error:
        logger.error("webhooks wait", extra={"fields": {"reason": error.message}})
        return
    if jobs:
        fields = {"jobs": jobs, "reason": "webhook_hosts lists no host any more"}
        logger.error("webhooks given up", extra={"fields": fields})


def _refusal(frame: OpenFrame, fault: JobError) -> FrameRefused:
    """What the synchronous route would have told of a frame with this fault."""
    now, ask = time.time(), frame.ask
    return FrameRefused(
        at=now,
        request_id=frame.request_id,
        status=status_of(fault.code),
        code=fault.code,
        model=ask.model or "",
        version=ask.version or 0,
        camera=ask.camera or "",
        part=ask.part or "",
        seconds=max(0.0, now - frame.created),
        reason=kept_sentence(fault.message),
        let_in=True,  # its job was taken
    )
