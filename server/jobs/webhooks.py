"""Webhooks: the end of a job is posted to a URL, and again with back-off until it is taken."""

import logging
import threading
import time
from collections.abc import Callable, Sequence

from server.config.settings import Settings
from server.errors import JobsUnavailableError
from server.observe.logs import ProblemLog
from server.store.jobs.records import JobRecord
from server.store.jobs.table import JobTable
from server.system.webhook import WebhookClient
from server.values.trace import trace_headers

logger = logging.getLogger(__name__)

# Seconds after the first failed delivery; doubled with each further one.
BACK_OFF_MIN_S = 1.0
BACK_OFF_MAX_S = 300.0
# Seconds between looks for webhooks if none is due.
LOOK_INTERVAL_S = 60.0
# Seconds before another look after the table could not be used.
RETRY_S = 1.0


def pause_after(attempts: int) -> float:
    """Return the seconds to wait after that many failed deliveries: 1, 2, 4 ... 300."""
    return min(BACK_OFF_MAX_S, BACK_OFF_MIN_S * 2.0 ** min(attempts - 1, 20))


class WebhookDelivery:
    """Delivers the webhooks of the jobs in `table`, in a thread of its own, so that no job waits
    for a slow receiver. render: makes the body that is sent for a job."""

    def __init__(
        self,
        settings: Settings,
        client: WebhookClient,
        table: JobTable,
        render: Callable[[JobRecord], bytes],
    ) -> None:
        self._attempts_max = settings.webhook_attempts
        self._client = client
        self._table = table
        self._render = render
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._problem = ProblemLog("webhooks wait", "webhooks go on")
        threading.Thread(target=self._run, name="webhooks", daemon=True).start()

    def wake(self) -> None:
        """Look at once for webhooks that are due."""
        self._wake.set()

    def close(self) -> None:
        """Begin no more deliveries."""
        self._stopping.set()
        self._wake.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._deliver_all(self._table.webhooks_due(time.time(), BACK_OFF_MAX_S))
                due = self._table.next_webhook_due()
                self._problem.went_well()
            except JobsUnavailableError as error:
                if self._stopping.is_set():
                    return  # the table is closed; the next start sends what is due
                self._problem.failed(error.message)
                due = time.time() + RETRY_S
            except Exception:
                # Otherwise no webhook would be sent any more. An unforeseen error lasts.
                logger.exception("webhooks wait")
                due = None
            pause = LOOK_INTERVAL_S if due is None else min(LOOK_INTERVAL_S, due - time.time())
            self._wake.wait(max(0.0, pause))
            self._wake.clear()

    def _deliver_all(self, jobs: Sequence[JobRecord]) -> None:
        """Deliver all at once, since a receiver that does not answer takes its whole time. Raises
        what `_deliver` raises."""
        errors: list[Exception] = []

        def deliver(job: JobRecord) -> None:
            try:
                self._deliver(job)
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

    def _deliver(self, job: JobRecord) -> None:
        assert job.webhook is not None
        attempts = job.webhook.attempts + 1
        headers = trace_headers(job.ask.trace)
        reason = self._client.send(job.webhook.url, self._render(job), headers)
        fields = {"job": job.id, "attempt": attempts, "reason": reason}
        if not reason:
            logger.info("webhook delivered", extra={"fields": fields})
            self._table.webhook_tried(job.id, "delivered", None)
        elif attempts >= self._attempts_max:
            logger.error("webhook given up", extra={"fields": fields})
            self._table.webhook_tried(job.id, "failed", None)
        else:
            logger.warning("webhook failed", extra={"fields": fields})
            self._table.webhook_tried(job.id, "pending", time.time() + pause_after(attempts))


def give_up_webhooks(table: JobTable) -> None:
    """Set the pending webhooks of an earlier start to failed: their jobs would never expire."""
    try:
        jobs = table.fail_webhooks()
    except JobsUnavailableError as error:
        logger.error("webhooks wait", extra={"fields": {"reason": error.message}})
        return
    if jobs:
        fields = {"jobs": jobs, "reason": "webhook_hosts lists no host any more"}
        logger.error("webhooks given up", extra={"fields": fields})
