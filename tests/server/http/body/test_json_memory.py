"""JSON bodies that could take many times their size in memory are refused before any value is made.

Each is read in a process of its own, whose peak of memory is compared with the body.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from server_process import ROOT

CHILD = Path(__file__).with_name("json_memory.py")
# What repeats in the body, beside what begins and ends it.
UNITS = {
    "lists": "[],",
    "lists of one": "[0],",
    "deep lists": "[" * 50 + "]" * 50 + ",",
    "objects": '{"a":1},',
    "empty objects": "{},",
    "numbers": "0.1,",
    "whole numbers": "999,",
    "long numbers": "1" * 300 + ",",
    "numbers of too many digits": "1" * 5000 + ",",
    "huge exponents": "1e999,",
    "texts": '"a",',
    "images": '{"b64":"YQ=="},',
    "emoji": '"\U0001f600",',
    "half a pair": '"\\ud800",',
    "spaces": " ",
}
PLACES = {
    "input": ("JsonFrame", '{"input":[', "0]}"),
    "null beside input": ("JsonFrame", '{"threshold":null,"input":[', "0]}"),
    "NaN in instances": ("PredictRequest", '{"instances":[', "NaN]}"),
    "data": (
        "InferRequest",
        '{"parameters":null,"inputs":[{"name":"a","shape":[1],"datatype":"BYTES","data":[',
        "0]}]}",
    ),
}


class Reader:
    """A process that reads each body in a child of its own, which begins with the imports alone."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def peak(self, place: str, unit: str, size: int) -> float:
        """The peak of memory over the body's size."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        kind, head, tail = PLACES[place]
        self._process.stdin.write(json.dumps([kind, head, UNITS[unit], tail, size]) + "\n")
        self._process.stdin.flush()
        taken, length = self._process.stdout.readline().split()
        return int(taken) / int(length)


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    with subprocess.Popen(
        [sys.executable, str(CHILD)],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield Reader(process)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("unit", UNITS)
def test_body_of_16_mb_takes_at_most_16_times_as_much(
    reader: Reader, place: str, unit: str
) -> None:
    assert reader.peak(place, unit, 15_900_000) < 16


@pytest.mark.parametrize("unit", ["deep lists", "lists", "objects", "texts"])
def test_body_of_2_mb_takes_at_most_60_times_as_much(reader: Reader, unit: str) -> None:
    for place in ("input", "NaN in instances"):
        assert reader.peak(place, unit, 1_900_000) < 60
