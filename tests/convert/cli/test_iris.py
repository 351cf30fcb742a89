"""`python -m convert iris`, and the bundle of it that ships."""

from pathlib import Path

import numpy as np
import pytest
from server_process import ROOT

from convert.__main__ import main
from convert.cli.iris import load, predict
from server.recognition.manifest import read_bundle

pytest.importorskip("tensorflow", reason="tensorflow trains this model")


def accuracy(folder: Path) -> float:
    """Share of all 150 flowers that the bundle's model is right about."""
    data = load()
    features = np.concatenate([data.train_x, data.test_x])
    truth = np.concatenate([data.train_y, data.test_y])
    found = predict((folder / "model.tflite").read_bytes(), features).argmax(axis=1)
    return float((found == truth).mean())


def test_it_is_trained_converted_and_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["iris", "--out", str(tmp_path)]) == 0
    folder = tmp_path / "iris" / "1"
    assert f"wrote {folder}" in capsys.readouterr().out
    bundle = read_bundle(folder)
    assert bundle.manifest.task == "tensor"
    assert [label.name for label in bundle.labels] == ["setosa", "versicolor", "virginica"]
    report = bundle.manifest.report
    assert report is not None
    assert report.images == 30
    assert report.top1 >= 0.9
    assert report.agreement == 1
    assert accuracy(folder) >= 0.95


def test_the_shipped_bundle() -> None:
    folder = ROOT / "models" / "iris" / "1"
    assert read_bundle(folder).manifest.name == "iris"
    assert accuracy(folder) >= 0.95
    assert (folder / "model.tflite").stat().st_size < 10_000


def test_a_taken_version_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["iris", "--out", str(ROOT / "models"), "--version", "1"]) == 1
    assert "exists already" in capsys.readouterr().err
