"""Rows of the journal, written and read back."""

import time
from collections import deque
from contextlib import closing
from pathlib import Path

from server.recognition.answers import Answer, FrameAnswered, Options, Prediction
from server.store.journal.reader import Filter, JournalReader
from server.store.journal.schema import Row, Values
from server.store.journal.writer import JournalLimits, Writer

BOUNDS = JournalLimits(days=30, bytes=64_000_000)


def observation(
    number: int, at: float | None = None, camera: str = "", part: str = ""
) -> FrameAnswered:
    best = Prediction(1, "good", 0.75)
    timing = {"decode": 0.001, "preprocess": 0.002, "wait": 0.0, "inference": 0.004, "total": 0.008}
    answer = Answer("parts", 3, best, (best,), "pass", timing)
    return FrameAnswered(
        at or time.time(), f"id-{number}", answer, Options(camera=camera, part=part)
    )


def rows_of(path: Path, wanted: Filter | None = None) -> list[Row]:
    with closing(JournalReader(path, wanted or Filter())) as reader:
        return [row for page in reader.pages("oldest") for row in page]


class Lost:
    """Counts what a journal loses."""

    def __init__(self) -> None:
        self.rows = 0

    def __call__(self, rows: int) -> None:
        self.rows += rows


def write(writer: Writer, rows: list[Values], wall: float = 0, now: float = 0) -> deque[Values]:
    """One turn; returns what is left."""
    left = deque(rows)
    writer.turn(left, wall or time.time(), now)
    return left
