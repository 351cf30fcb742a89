"""Celery as this server uses it: one queue of frames, and values beside it for reports on them."""

import sqlite3
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from celery import Celery
from kombu.exceptions import KombuError, OperationalError

from server.config.settings import Settings
from server.jobs import embedded_queue as embedded
from server.jobs.messages import (
    QUEUE,
    TASK,
    VALUE_LIFETIME_S,
    BrokerLostError,
    FrameReport,
    FrameTask,
    cancel_key,
    frame_key,
    read_report,
    report_key,
)
from server.observe.logs import ProblemLog

if TYPE_CHECKING:
    from collections.abc import Iterator

# Seconds that connecting to the broker, and one exchange with it, may take.
CONNECT_TIMEOUT_S = 2.0
EXCHANGE_TIMEOUT_S = 10.0


def make_celery(settings: Settings) -> Celery:
    """Return the Celery application of server and workers.

    It stores no results and retries no publishing: the dispatcher keeps outcomes in its table, and
    sends again what is lost. It has no remote control, which would listen on a queue of its own.
    """
    app = Celery("lineside", set_as_current=False)
    app.conf.update(
        task_default_queue=QUEUE,
        task_create_missing_queues=True,
        task_ignore_result=True,
        task_publish_retry=False,
        task_acks_late=True,
        result_expires=VALUE_LIFETIME_S,
        # No limit: the pool `solo` takes one message at a time anyway. With a limit, one whose
        # acknowledgement was lost with the connection would count for ever, and stop the worker.
        worker_prefetch_multiplier=0,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=CONNECT_TIMEOUT_S,
    )
    if not settings.broker_url:
        app.conf.update(
            broker_url="localhost",
            broker_transport=embedded.TRANSPORT,
            broker_transport_options={"path": str(Path(settings.data) / embedded.FILE)},
            result_backend=embedded.BACKEND,
        )
        return app
    app.conf.update(
        broker_url=settings.broker_url,
        broker_transport_options={
            "socket_connect_timeout": CONNECT_TIMEOUT_S,
            # Longer than the second for which a worker asks for work. Without it, a connection that
            # fell silent would be waited for as long as TCP does.
            "socket_timeout": EXCHANGE_TIMEOUT_S,
            "socket_keepalive": True,
        },
        result_backend=settings.broker_url,
        redis_socket_connect_timeout=CONNECT_TIMEOUT_S,
        redis_socket_timeout=EXCHANGE_TIMEOUT_S,
        redis_socket_keepalive=True,
    )
    return app


def broker_errors(settings: Settings) -> tuple[type[Exception], ...]:
    """Return the errors that are raised if the broker can't be reached."""
    if not settings.broker_url:
        return (sqlite3.Error, OSError, KombuError)
    from redis.exceptions import RedisError

    return (RedisError, OSError, OperationalError)


def set_value(backend: Any, key: str, value: bytes) -> None:
    """Set `key` in Celery's result backend, for VALUE_LIFETIME_S.

    For Redis this goes past the backend's own `set`, which would publish the value as well, for
    clients that wait for results; a frame is too large to be sent twice.
    """
    if isinstance(backend, embedded.Backend):
        backend.set(key, value)
    else:
        backend.client.set(key, value, ex=VALUE_LIFETIME_S)


class Broker:
    """The server's side of the queue. Every method raises BrokerLostError if the broker can't be
    reached."""

    def __init__(self, settings: Settings) -> None:
        self._carries = bool(settings.broker_url)
        self._errors = broker_errors(settings)
        self._report_problem = ProblemLog(
            "a worker's report can't be read: is it of this version?",
            "workers' reports can be read again",
        )
        with self._broker_errors():
            if not settings.broker_url:
                embedded.renew(Path(settings.data) / embedded.FILE)
            self._app = make_celery(settings)
            # Made here, so that no other thread makes a second one.
            self._backend: Any = self._app.backend

    @contextmanager
    def _broker_errors(self) -> "Iterator[None]":
        try:
            yield
        except self._errors as error:
            raise BrokerLostError(str(error) or repr(error)) from None

    @property
    def carries(self) -> bool:
        """True if frames go through the broker, since workers may be on other machines."""
        return self._carries

    def send(self, task: FrameTask, data: bytes | None) -> None:
        """Queue one frame; `data` is needed if the broker `carries` it."""
        with self._broker_errors():
            if data is not None:
                set_value(self._backend, frame_key(task.job, task.number), data)
            self._app.send_task(
                TASK,
                args=(msgspec.json.encode(task).decode(),),
                task_id=task.task,
                queue=QUEUE,
                ignore_result=True,
            )

    def reports(self, tasks: Sequence[str]) -> dict[str, FrameReport]:
        """Return the latest report of each of `tasks` that a worker has taken. One that can't be
        read stays in the broker, for a server that can."""
        if not tasks:
            return {}
        with self._broker_errors():
            values = list(self._backend.mget([report_key(task) for task in tasks]))
        reports = {}
        for task, data in zip(tasks, values, strict=True):
            report = read_report(data) if data else None
            if report is not None:
                reports[task] = report
                self._report_problem.went_well()
            elif data:
                text = data[:200].decode("utf-8", "replace")
                self._report_problem.failed(text, task=task)
        return reports

    def close(self) -> None:
        with self._broker_errors():
            self._app.close()

    def queued(self) -> int:
        """Return the number of frames that no worker has taken."""
        with self._broker_errors(), self._app.pool.acquire(block=True) as connection:
            channel = connection.default_channel
            return int(self._app.amqp.queues[QUEUE].bind(channel).queue_declare().message_count)

    def forget(self, done: Sequence[FrameTask], lost: Sequence[FrameTask] = ()) -> None:
        """Remove the reports of these attempts, and the frames of those `done`."""
        keys = [report_key(task.task) for task in (*done, *lost)]
        if self._carries:
            keys += [frame_key(task.job, task.number) for task in done]
        with self._broker_errors():
            for key in keys:
                self._backend.delete(key)

    def cancel(self, job: str) -> None:
        """Have workers skip the frames of this job."""
        with self._broker_errors():
            set_value(self._backend, cancel_key(job), b"1")

    def tidy(self) -> None:
        """Remove old values; Redis does so by itself."""
        with self._broker_errors():
            self._backend.cleanup()
