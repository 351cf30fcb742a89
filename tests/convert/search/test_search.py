"""A search: tiny networks on a few generated pictures, killed in between."""

import csv
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from images import grainy_classes
from server_process import ROOT, environ_without_coverage

from convert.__main__ import main, parser_for
from convert.cli.search import run
from convert.data.dataset import read_dataset
from convert.errors import ConvertError
from convert.recipe.choice import recipe_with
from convert.search.space import RESIZES
from convert.sources import imagenet
from convert.training.inputs import read_pixels
from server.recognition.frame import Limits
from server.recognition.manifest import read_bundle

pytest.importorskip("tensorflow", reason="tensorflow trains")

TINY = (
    *("--alphas", "0.35", "--sizes", "32", "192", "--weights", "none", "--batch", "8"),
    *("--folds", "2", "--epochs", "0", "--trials", "1", "--seconds", "0.1"),
    *("--lights", "as-is"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grainy pictures of a dark and a light class, 12 of each."""
    return grainy_classes(tmp_path_factory.mktemp("pictures"), 12, (48, 40), blur=2)


def command(folder: Path, out: Path, *more: str) -> list[str]:
    return ["search", str(folder), "--out", str(out), "--name", "tiny", *TINY, *more]


# `python -m convert` that ends by SIGKILL within the second fold of its first candidate. It sends
# that to itself, since another process might be late.
KILLED = """
import os, signal, sys
from convert.__main__ import main
from convert.search.clock import Watch

say, said = Watch.say, []

def say_and_die(watch, line):
    say(watch, line)
    said.append(line)
    if "fold 2 of 2" in said and line.startswith("before fine-tuning"):
        os.kill(os.getpid(), signal.SIGKILL)

Watch.say = say_and_die
sys.exit(main())
"""


@pytest.fixture
def quickest(folder: Path, without_weights: None, tmp_path: Path) -> float:
    """Milliseconds of the quickest network, by the refusal of a budget that is less."""
    arguments = command(folder, tmp_path, "--budget-ms", "1e-6")
    with pytest.raises(ConvertError) as refused:
        run(parser_for("search").parse_args(arguments))
    said = re.fullmatch(
        r"--budget-ms 1e-06 is less than the quickest network takes: 0\.35@32 dynamic takes"
        r" ([0-9.]+) ms",
        str(refused.value),
    )
    assert said, refused.value
    return float(said[1])


def test_a_killed_search_goes_on_to_a_bundle(
    folder: Path, quickest: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # 192 x 192 pixels take some twenty times as long as 32 x 32.
    arguments = command(folder, tmp_path, "--budget-ms", f"{5 * quickest:g}")
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments],
        cwd=ROOT,
        env=environ_without_coverage(),
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    # The refused search has kept what it measured.
    assert "Converting networks" not in killed.stdout
    (decoded,) = (tmp_path / ".search").glob("*/candidate-*/frames.npy")
    learned = np.load(decoded).reshape(20, -1)

    assert main(arguments) == 0
    said = capsys.readouterr().out
    left = re.search(r"going on after 0 candidates, with ([0-9.]+) minutes left", said)
    assert left
    assert 0 < float(left[1]) < 60
    assert "Converting networks" not in said
    # The broken off trial is asked for again, with another number, and its first fold is kept.
    assert "trial 2: 0.35@32 dynamic, judged" in said
    assert not list((tmp_path / ".search").iterdir())

    bundle = read_bundle(tmp_path / "tiny" / "1")
    report = json.loads((bundle.folder / "report.json").read_text())
    search = report["search"]
    assert (search["trials"], search["folds"]) == (1, 2)
    states = [each["state"] for each in search["tried"]]
    assert states == ["chosen", "unfinished", "over budget"]
    chosen, slow = search["tried"][0], search["tried"][-1]
    assert chosen["pareto"]
    assert chosen["top1"]["frames"] == 20
    assert (slow["settings"]["size"], slow["number"], slow["folds"]) == (192, None, 0)
    assert slow["latency"] > search["budget_ms"] >= chosen["latency"]
    table = (bundle.folder / "search.csv").read_text("utf-8")
    rows = list(csv.DictReader(table.splitlines()))
    assert [row["state"] for row in rows] == states
    page = (bundle.folder / "report.html").read_text("utf-8")
    assert "How this model was chosen" in page
    assert 'alt="accuracy against latency of all candidates"' in page

    # The frames that judge were in no candidate's folder.
    assert bundle.manifest.report is not None
    assert (bundle.manifest.report.images, report["chose_epoch"]) == (4, False)
    held = [folder / each["file"] for each in report["per_frame"]]
    everything = read_dataset(folder).frames
    for item in everything:
        shown = [
            read_pixels(item.path, recipe_with(imagenet.recipe(32), resize=resize), Limits())
            for resize in RESIZES
        ]
        found = any((learned == pixels.reshape(-1)).all(axis=1).any() for pixels in shown)
        assert found == (item.path not in held), item.path


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--folds", "1"), "--folds 1 should be from 2 to 20"),
        (("--folds", "12"), "too few pictures for --folds 12"),
        (("--budget-ms", "-1"), "--budget-ms -1 should be a number above 0"),
        (("--budget-ms", "inf"), "--budget-ms inf should be a number above 0"),
        (("--modes", "int4"), "--modes int4 should be some of dynamic, "),
        (("--sizes", "16"), "--sizes 16 should be from 32 to 1024"),
        (("--device", "/nowhere"), "--device /nowhere is not what `python -m server bench"),
        (("--accept", "shiny"), "--accept shiny is not one of the labels dark, light"),
    ],
)
def test_what_can_not_be_searched_is_refused(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    message: str,
) -> None:
    assert main(command(folder, tmp_path, "--budget-ms", "1", *more)) == 1
    ended = capsys.readouterr()
    assert message in ended.err
    assert "measuring" not in ended.out
