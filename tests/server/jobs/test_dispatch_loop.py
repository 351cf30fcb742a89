"""Rounds of dispatching at moments that the test names."""

import math
import threading
import time
from collections import deque
from contextlib import closing
from pathlib import Path

import pytest

from server.config.settings import Settings
from server.errors import JobNotFoundError
from server.jobs.dispatch_loop import DispatchLoop
from server.jobs.dispatcher import Dispatcher
from server.store.jobs.records import FrameOutcome, JobError, JobOptions, NewFrame, NewJob
from server.store.jobs.table import REMOVE_AT_ONCE_MAX, JobTable

FAILED = FrameOutcome(fault=JobError("UNDECODABLE_IMAGE", "the image is cut off"))
TTL = 3600.0


def never(_: JobTable) -> Dispatcher:
    raise AssertionError("no job is open")


def rounds_of(table: JobTable, data: Path) -> DispatchLoop:
    settings = Settings(data=str(data), job_workers=0, job_result_ttl=TTL)
    return DispatchLoop(settings, table, threading.Event(), threading.Event(), never, deque())


def add_ended(table: JobTable, jobs: int, wall: float) -> None:
    for number in range(jobs):
        frames = (NewFrame("a.png", "image", b"data"),)
        table.add(NewJob(str(number), "request", JobOptions(top_k=1), frames))
    table.ended([(str(number), 0, FAILED) for number in range(jobs)], wall)


def test_what_one_round_leaves_goes_with_the_next(tmp_path: Path) -> None:
    with closing(JobTable(tmp_path)) as table:
        rounds = rounds_of(table, tmp_path)
        wall, now = time.time(), time.monotonic()
        add_ended(table, REMOVE_AT_ONCE_MAX + 1, wall - TTL)
        assert not rounds.sweep(now, wall), "it looks once a minute"
        assert rounds.sweep(now + 61, wall + 61)
        assert len(table.page(None, None, None, REMOVE_AT_ONCE_MAX)) == 1
        assert not rounds.sweep(now + 61.1, wall + 61.1)
        assert table.page(None, None, None, REMOVE_AT_ONCE_MAX) == []


def test_a_jump_of_the_clock_ends_no_results(tmp_path: Path) -> None:
    """As by one wrong answer of a time server."""
    with closing(JobTable(tmp_path)) as table:
        rounds = rounds_of(table, tmp_path)
        # A whole number, so that the hour from a jump on is one to the last digit.
        wall, now = time.time(), math.ceil(time.monotonic())
        add_ended(table, 1, wall)
        rounds.sweep(now, wall)
        for later in range(60, 1860, 60):
            rounds.sweep(now + later, wall + 40 * 86_400 + later)
        rounds.sweep(now + 1860, wall + 1860)
        assert table.get("0").state == "failed"
        rounds.sweep(now + 5460, wall + 5460)
        with pytest.raises(JobNotFoundError):
            table.get("0")
