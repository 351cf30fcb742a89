"""The fuzzer of parsers: a short run of each target finds nothing, and a fault would be found."""

import importlib
import json
import mmap
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzz.child import HEAD, STATE_BYTES, Runner
from fuzz.fuzz_parsers import GROUPS
from fuzz.mutation import Draw, Mutator
from fuzz.runs import run_target
from fuzz.target import Target

INPUTS = 200
# It answers in a thread that lives as long as its process.
SERVES = "snapshot"


def taken_by(target: Target, data: bytes) -> bool:
    try:
        target.run(target.repair(data))
    except Exception as error:
        if not target.is_refusal(error):
            raise
        return False
    return True


@pytest.fixture
def state() -> Iterator[mmap.mmap]:
    with mmap.mmap(-1, STATE_BYTES) as made:
        yield made


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where targets make their folders."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("group", GROUPS)
def test_fuzzing_finds_nothing(group: str, state: mmap.mmap, folders: Path) -> None:
    for target in importlib.import_module(group).targets():
        if target.name == SERVES:
            continue
        found: list[str] = []
        runner = Runner(target, state, found.append)
        mutator = Mutator(random.Random(20), target.seeds, target.words, target.size_max)
        for data in (*target.seeds, *(mutator.draw() for _ in range(INPUTS))):
            runner.run(data)
        # On a machine with other work, even an input that costs nothing may take long.
        assert [each for each in found if json.loads(each)["fault"] != "slow"] == [], target.name
        assert HEAD.unpack_from(state)[0] == len(target.seeds) + INPUTS


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("group", GROUPS)
def test_seeds_reach_the_inside(group: str, folders: Path) -> None:
    """Each target takes most of its seeds, so that inputs like them are not refused at its door."""
    for target in importlib.import_module(group).targets():
        if target.name in (SERVES, "settings-merge", "preprocess"):
            continue
        taken = [taken_by(target, seed) for seed in target.seeds]
        assert sum(taken) >= len(taken) / 2, target.name


def test_camera_that_answers_anything(tmp_path: Path) -> None:
    outcome = run_target(
        "fuzz.targets.streams",
        SERVES,
        engine="plain",
        inputs=INPUTS,
        seconds=600,
        seed=20,
        keep=tmp_path,
    )
    assert outcome.findings == []
    assert outcome.inputs >= INPUTS


FAULTY = """
import os
from fuzz.target import Target

def run(data):
    if data.startswith(b"c"):
        os.abort()
    if data.startswith(b"k"):
        raise KeyError(data)
    if data.startswith(b"v"):
        raise ValueError(data)

def targets():
    return (Target("faulty", run, (b"vx", b"kx", b"ky", b"cx", b"ok"), (), (ValueError,)),)
"""

GREEDY = """
from fuzz.target import Target

def run(data):
    if data == b"much":
        bytearray(b"x") * (256 << 20)

def targets():
    return (Target("greedy", run, (b"little", b"much"), memory_mb=8),)
"""


def test_crash_and_undocumented_error_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "faulty_target.py").write_text(FAULTY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    outcome = run_target(
        "faulty_target",
        "faulty",
        engine="plain",
        inputs=5,
        seconds=600,
        seed=1,
        keep=tmp_path / "kept",
    )
    first, second, *_ = outcome.findings
    assert (first["fault"], Path(first["file"]).read_bytes()) == ("raised KeyError", b"kx")
    assert (second["fault"], Path(second["file"]).read_bytes()) == ("crashed", b"cx")


def test_memory_beyond_the_bound_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "greedy_target.py").write_text(GREEDY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    # More than the program's own memory, which starts from this process.
    own = bytearray(b"x") * (1 << 30)
    outcome = run_target(
        "greedy_target", "greedy", engine="plain", inputs=2, seconds=600, seed=1, keep=tmp_path
    )
    del own
    (found,) = outcome.findings
    assert (found["fault"], Path(found["file"]).read_bytes()) == ("memory", b"much")


def test_inputs_are_seeded_and_values_drawn() -> None:
    seeds = (b"one seed", b"another")
    runs = [Mutator(random.Random(3), seeds, (b"word",), 64) for _ in range(2)]
    drawn = [[mutator.draw() for _ in range(300)] for mutator in runs]
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) > 250
    assert max(map(len, drawn[0])) <= 64
    draw = Draw(b"\5\0\1z")
    assert (draw.whole(10, 12), draw.pick("ab"), draw.left, draw.rest()) == (12, "b", True, b"z")
    assert (draw.left, draw.whole(3, 9), draw.take(2)) == (False, 3, b"\0\0")
