"""The fuzzer of images: a short run of each format finds nothing, and a fault would be found."""

import subprocess
import sys

import pytest
from fuzz.fuzz_images import DAMAGES, case, run
from fuzz.image_kinds import KINDS
from server_process import ROOT

COUNT = 250


@pytest.mark.parametrize("format_", KINDS)
def test_fuzzing_finds_no_damage_answered(format_: str) -> None:
    assert list(run(format_, 7, COUNT)) == []


def test_cases_are_seeded_and_of_every_kind() -> None:
    for format_, kinds in KINDS.items():
        numbers = range(20 * len(kinds))
        cases = [case(format_, 7, number) for number in numbers]
        assert cases == [case(format_, 7, number) for number in numbers]
        assert {kind for kind, _, _ in cases} == set(kinds)
        assert {how for _, how, _ in cases} == set(DAMAGES)


# What stands in for a reader that ends its process, or that fills damage up.
CRASH = """
import os, sys
sys.path[:0] = ["scripts"]
from fuzz import fuzz_images
from server.recognition import frame

def decode(data, recipe, limits):
    if len(data) % 7 == 0:
        os.abort()
    return frame.np.zeros((1, 1, 3), "uint8")

frame.np = fuzz_images.np
frame.decode = decode
if __name__ == "__main__":
    faults = {found.fault for found in fuzz_images.run("BMP", 1, 20)}
    print(*sorted(faults))
"""


def test_readers_that_crash_or_guess_are_found(tmp_path: object) -> None:
    file = f"{tmp_path}/crash.py"
    with open(file, "w") as out:
        out.write(CRASH)
    done = subprocess.run(
        [sys.executable, file],
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{ROOT}/scripts", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.split() == ["crashed", "damaged", "differs"], done.stderr
