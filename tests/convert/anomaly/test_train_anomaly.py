"""`python -m convert train-anomaly`: from good frames to a bundle that the server loads."""

from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from convert.__main__ import main
from convert.bundle_writer import load
from server.recognition.answers import Options
from server.recognition.tasks.anomaly import AnomalyManifest

SIDE = 160
# The part of the frame that is looked at; the colour around it differs from frame to frame.
REGION = "0.1,0.1,0.8,0.8"


def surface(rng: np.random.Generator) -> NDArray[np.uint8]:
    """A brushed surface of some tone."""
    grain = cv2.GaussianBlur(rng.normal(0, 70, (SIDE, SIDE)).astype(np.float32), (0, 0), 1, None, 9)
    tone = np.clip(grain + rng.uniform(100, 150), 0, 255).astype(np.uint8)
    return np.asarray(np.repeat(tone[..., None], 3, axis=2), np.uint8)


def write(folder: Path, count: int, seed: int, stain: Path | None = None) -> None:
    """PNG files of surfaces; with `stain`, each has one, and its mask is written there."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        pixels = surface(rng)
        if stain:
            stain.mkdir(parents=True, exist_ok=True)
            mask = np.zeros((SIDE, SIDE), np.uint8)
            x, y = (int(value) for value in rng.integers(40, 120, 2))
            cv2.circle(mask, (x, y), 18, 255, -1)
            cv2.circle(pixels, (x, y), 18, (20, 20, 200), -1)
            cv2.imwrite(str(stain / f"{number}.png"), mask)
        around = tuple(int(value) for value in rng.integers(0, 256, 3))
        cv2.rectangle(pixels, (0, 0), (SIDE - 1, SIDE - 1), around, 16)
        cv2.imwrite(str(folder / f"{number}.png"), pixels)


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("surfaces")
    write(root / "train" / "good", 30, 1)
    write(root / "val" / "good", 8, 2)
    write(root / "val" / "stain", 6, 3, root / "masks" / "stain")
    return root


@pytest.fixture(scope="module")
def made(keras_home: Path, tf: Any, frames: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the bundle."""
    out = tmp_path_factory.mktemp("models")
    arguments = [str(frames / "train" / "good"), "--validate", str(frames / "val")]
    arguments += ["--masks", str(frames / "masks"), "--out", str(out), "--seconds", "0.1"]
    arguments += ["--samples", "1", "--region", REGION, "--painted", "100"]
    assert main(["train-anomaly", *arguments, "--false-rejects", "0.001", "--name", "metal"]) == 0
    return out / "metal" / "1"


def test_bundle_tells_stains_from_good_surfaces(made: Path, frames: Path) -> None:
    model = load(made)
    for name, side in (("good", "below"), ("stain", "above")):
        for file in (frames / "val" / name).iterdir():
            answer = model.recognize(file.read_bytes(), Options())
            assert (answer.details.score > 0.5) == (side == "above"), file


def test_samples_are_of_each_class_and_not_golden(made: Path) -> None:
    samples = {path.name: path.read_bytes() for path in (made / "samples").iterdir()}
    assert sorted(samples) == ["good-1.png", "stain-1.png"]
    assert not {path.read_bytes() for path in (made / "golden").iterdir()} & {*samples.values()}


def test_region_lies_on_the_stain(made: Path, frames: Path) -> None:
    model = load(made)
    for file in (frames / "val" / "stain").iterdir():
        mask = cv2.imread(str(frames / "masks" / "stain" / file.name), cv2.IMREAD_GRAYSCALE)
        assert mask is not None
        answer = model.recognize(file.read_bytes(), Options())
        left, top, width, height = answer.details.regions[0].box
        assert mask[top : top + height, left : left + width].max() == 255, file


def test_manifest_says_what_was_found(made: Path) -> None:
    manifest = load(made).manifest
    assert isinstance(manifest, AnomalyManifest)
    found = manifest.anomaly
    assert found is not None
    assert (found.learned_from, found.false_rejects) == (30, 0.001)
    assert found.auroc == 1.0
    verdict = found.verdict
    assert verdict is not None
    assert (verdict.good, verdict.bad) == (8, 6)
    assert verdict.escapes + verdict.bad_unsure <= 1
    assert found.pixel_auroc is not None
    assert found.pixel_auroc > 0.9
    assert {golden.label for golden in manifest.golden} == {"good", "anomaly"}


def test_report_has_figures_and_pictures(made: Path) -> None:
    report = msgspec.json.decode((made / "report.json").read_bytes())
    assert report["bad"] | {"interval": None} == {
        "frames": 6,
        "above": 6,
        "share": 1.0,
        "interval": None,
    }
    assert [each["frames"] for each in report["curve"]] == [20]
    assert report["contaminated"]["bad"] == 2
    page = (made / "report.html").read_text("utf-8")
    assert "Proof of the verdict" in page
    assert page.count("data:image/jpeg") == 8
    assert "AUROC of pixels" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--masks", "masks"], "--masks does nothing without --validate"),
        (["--false-rejects", "0"], "--false-rejects 0 should be from"),
        (["--painted", "0"], "--painted 0 should be from 100 to 20000"),
        (["--validate", "val", "--good-class", "ok"], "none of them is ok"),
        (["--validate", "train"], "in both sets"),
    ],
)
def test_contradicting_arguments_are_refused(
    frames: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(frames)
    assert main(["train-anomaly", "train/good", "--out", str(tmp_path), *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_too_few_frames_are_refused(
    frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train-anomaly", str(frames / "val" / "good"), "--out", str(tmp_path)]) == 1
    assert "8 good frames: at least 10 are needed" in capsys.readouterr().err
