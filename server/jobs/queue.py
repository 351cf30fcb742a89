"""Celery as this server uses it: one queue of frames, and a place for reports on them."""

import logging
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
    KEPT,
    QUEUE,
    TASK,
    BrokerLostError,
    FrameReport,
    FrameTask,
    cancel_key,
    frame_key,
    read_report,
    report_key,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)

# Seconds that connecting to the broker, and one exchange with it, may take.
CONNECT, EXCHANGE = 2.0, 10.0


def make_celery(settings: Settings) -> Celery:
    """The Celery application of server and workers."""
    app = Celery("lineside", set_as_current=False)
    app.conf.update(
        task_default_queue=QUEUE,
        task_create_missing_queues=True,
        task_ignore_result=True,
        task_publish_retry=False,
        task_acks_late=True,
        result_expires=KEPT,
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=CONNECT,
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
            "socket_connect_timeout": CONNECT,
            # Longer than the second for which a worker asks for work. A connection that fell silent
            # would be waited for as long as TCP does.
            "socket_timeout": EXCHANGE,
            "socket_keepalive": True,
        },
        result_backend=settings.broker_url,
        redis_socket_connect_timeout=CONNECT,
        redis_socket_timeout=EXCHANGE,
        redis_socket_keepalive=True,
    )
    return app


def broker_errors(settings: Settings) -> tuple[type[Exception], ...]:
    """What is raised where the broker can't be reached."""
    if not settings.broker_url:
        return (sqlite3.Error, OSError, KombuError)
    from redis.exceptions import RedisError

    return (RedisError, OSError, OperationalError)


def keep(backend: Any, key: str, value: bytes) -> None:
    """Sets `key` in Celery's result backend for as long as anyone may ask.

    Redis's own would publish the value as well, for clients that wait for results; a frame is too
    large to be sent twice.
    """
    if isinstance(backend, embedded.Backend):
        backend.set(key, value)
    else:
        backend.client.set(key, value, ex=KEPT)


class Broker:
    """The server's side of the queue. Every method raises BrokerLostError where the broker can't be
    reached."""

    def __init__(self, settings: Settings) -> None:
        self._carries = bool(settings.broker_url)
        self._errors = broker_errors(settings)
        self._warned = False
        with self._telling():
            if not settings.broker_url:
                embedded.renew(Path(settings.data) / embedded.FILE)
            self._app = make_celery(settings)
            # Made here, so that no other thread makes a second one.
            self._backend: Any = self._app.backend

    @contextmanager
    def _telling(self) -> "Iterator[None]":
        try:
            yield
        except self._errors as error:
            raise BrokerLostError(str(error) or repr(error)) from None

    @property
    def carries(self) -> bool:
        """Whether frames go through the broker, since workers may be on other machines."""
        return self._carries

    def send(self, work: FrameTask, data: bytes | None) -> None:
        """Queues one frame; `data` is needed where the broker `carries` it."""
        with self._telling():
            if data is not None:
                keep(self._backend, frame_key(work.job, work.number), data)
            self._app.send_task(
                TASK,
                args=(msgspec.json.encode(work).decode(),),
                task_id=work.task,
                queue=QUEUE,
                ignore_result=True,
            )

    def reports(self, tasks: Sequence[str]) -> dict[str, FrameReport]:
        """The latest report of each of `tasks` that a worker has taken. One that can't be read
        stays where it is, for whoever can."""
        if not tasks:
            return {}
        with self._telling():
            found = list(self._backend.mget([report_key(task) for task in tasks]))
        reports = {}
        for task, data in zip(tasks, found, strict=True):
            report = read_report(data) if data else None
            if report is not None:
                reports[task] = report
            elif data and not self._warned:
                self._warned = True
                fields = {"task": task, "report": data[:200].decode("utf-8", "replace")}
                logger.error(
                    "a worker's report can't be read: is it of this version?",
                    extra={"fields": fields},
                )
        return reports

    def close(self) -> None:
        """Closes the connections."""
        with self._telling():
            self._app.close()

    def queued(self) -> int:
        """Frames that no worker has taken."""
        with self._telling(), self._app.pool.acquire(block=True) as connection:
            channel = connection.default_channel
            return int(self._app.amqp.queues[QUEUE].bind(channel).queue_declare().message_count)

    def forget(self, done: Sequence[FrameTask], lost: Sequence[FrameTask] = ()) -> None:
        """Removes the reports of these attempts, and the frames of those `done`."""
        keys = [report_key(work.task) for work in (*done, *lost)]
        if self._carries:
            keys += [frame_key(work.job, work.number) for work in done]
        with self._telling():
            if self._carries and keys:
                self._backend.client.delete(*keys)
            elif keys:
                self._backend.forget_all(keys)

    def cancel(self, job: str) -> None:
        """Tells workers to pass over the frames of this job."""
        with self._telling():
            keep(self._backend, cancel_key(job), b"1")

    def tidy(self) -> None:
        """Removes what nobody asked for."""
        if not self._carries:
            with self._telling():
                self._backend.cleanup()
