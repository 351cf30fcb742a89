"""Rounds of dispatching at moments that the test names."""

import threading
import time
from collections import deque
from contextlib import closing
from pathlib import Path

import pytest

from server.config import Settings
from server.errors import JobNotFoundError
from server.jobs.dispatcher import Dispatcher
from server.jobs.rounds import Rounds
from server.store.job_records import Ask, Fault, NewFrame, NewJob, Outcome
from server.store.jobs import JobTable

FAILED = Outcome(fault=Fault("UNDECODABLE_IMAGE", "the image is cut off"))
TTL = 3600.0


def never(_: JobTable) -> Dispatcher:
    raise AssertionError("no job is open")


def test_a_jump_of_the_clock_ends_no_results(tmp_path: Path) -> None:
    """As by one wrong answer of a time server."""
    with closing(JobTable(tmp_path)) as table:
        wall, now = time.time(), time.monotonic()
        settings = Settings(data=str(tmp_path), job_workers=0, job_result_ttl=TTL)
        events = threading.Event(), threading.Event()
        rounds = Rounds(settings, table, *events, never, deque())
        table.add(NewJob("j", "request", Ask(top_k=1), (NewFrame("a.png", "image", b"data"),)))
        table.ended([("j", 0, FAILED)], wall)
        rounds.sweep(now, wall)
        for later in range(60, 1860, 60):
            rounds.sweep(now + later, wall + 40 * 86_400 + later)
        rounds.sweep(now + 1860, wall + 1860)
        assert table.get("j").state == "failed"
        rounds.sweep(now + 5460, wall + 5460)
        with pytest.raises(JobNotFoundError):
            table.get("j")
