"""Several bundles on the same frames."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from convert.__main__ import main
from convert.bundle_writer import load
from convert.data.dataset import images
from convert.errors import ConvertError
from convert.evaluation import compare
from convert.evaluation.evaluate import Model, from_bundle
from convert.pipeline import Request, build
from server.values.labels import Label


@pytest.fixture
def folders(request_of: Request, colours_frames: Path) -> list[Path]:
    """The colours model in three modes."""
    frames = images(colours_frames)
    return [
        build(replace(request_of, name=mode, mode=mode, calibration=frames), lambda _: None)
        for mode in ("float32", "dynamic", "int8")
    ]


def test_table_and_plot(
    folders: list[Path], colours_frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "plot.png"
    command = ["compare", *map(str, folders), "--frames", str(colours_frames)]
    assert main([*command, "--plot", str(plot), "--seconds", "0.2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["model", "size", "of"]
    assert [line.split()[0] for line in lines[1:4]] == ["float32/1", "dynamic/1", "int8/1"]
    assert "36 of 36" in lines[1]
    assert len({len(line.split()) for line in lines[1:4]}) == 1
    assert cv2.imread(str(plot)) is not None


def test_without_frames_there_is_no_accuracy(
    folders: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *map(str, folders[:2]), "--seconds", "0.1"]) == 0
    assert "top-1" not in capsys.readouterr().out
    assert main(["compare", *map(str, folders[:2]), "--seconds", "0.1", "--plot", "x.png"]) == 1
    assert "give --frames FOLDER" in capsys.readouterr().err


def test_unlabelled_frames_give_agreement_alone(folders: list[Path], colours_frames: Path) -> None:
    models = [from_bundle(load(folder).bundle) for folder in folders[:2]]
    first, second = compare.compare(models, colours_frames / "red", 0.1)
    assert (first.frames, first.agreement, first.moved) == (12, 1.0, 0.0)
    assert first.top1 is None
    assert second.size_ratio < 0.5
    assert second.moved is not None
    assert 0 < second.moved < 0.1
    assert compare.plot((first, second)).startswith(b"\x89PNG")


def test_labels_in_another_order_are_matched(folders: list[Path], colours_frames: Path) -> None:
    model = from_bundle(load(folders[0]).bundle)
    order = [2, 0, 1]
    moved = Model(
        "moved",
        permuted(model.data, order),
        model.recipe,
        model.output,
        tuple(model.labels[i] for i in order),
    )
    first, second = compare.compare([model, moved], colours_frames, 0.1)
    assert (first.top1, first.agreement) == (second.top1, second.agreement)
    assert second.agreement == 1.0


def permuted(data: bytes, order: list[int]) -> bytes:
    """The colours model with its outputs in another order: the rows of its weights are moved."""
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(data))
    for tensor in model.subgraphs[0].tensors:
        values = model.buffers[tensor.buffer].data
        if values is not None and list(tensor.shape) in ([3, 3072], [3]):
            rows = np.frombuffer(values, np.float32).reshape(3, -1)[order]
            model.buffers[tensor.buffer].data = np.ascontiguousarray(rows).view(np.uint8).ravel()
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def test_other_labels_are_refused(folders: list[Path]) -> None:
    model = from_bundle(load(folders[0]).bundle)
    other = Model("other", model.data, model.recipe, model.output, (*model.labels[:2], Label("x")))
    with pytest.raises(ConvertError, match="the same labels: 2 are in one of them alone: red, x"):
        compare.compare([model, other], None, 0.1)


def test_one_bundle_twice_is_refused(
    folders: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(folders[0]), str(folders[0])]) == 1
    assert "a bundle is named twice: float32/1" in capsys.readouterr().err
