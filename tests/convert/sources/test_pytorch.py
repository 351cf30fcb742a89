"""PyTorch modules and exported programs; skipped where litert-torch is not installed."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if find_spec("litert_torch") is None or find_spec("torch") is None:
    pytest.skip("litert-torch is not installed", allow_module_level=True)

from ai_edge_litert.interpreter import Interpreter

from convert.__main__ import main
from convert.errors import ConvertError
from convert.sources import pytorch, shapes
from convert.terminal import suppress_native_output
from server.recognition.manifest import read_bundle

MODULE = '''
import torch
from torch import nn


def small():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(32, 5), nn.Softmax(1),
    )


class Block(nn.Module):
    def __init__(self, inner, outer, stride):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU(),
            nn.Conv2d(outer, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer),
        )
        plain = stride == 1 and inner == outer
        self.skip = nn.Identity() if plain else nn.Sequential(
            nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer)
        )

    def forward(self, x):
        return torch.relu(self.body(x) + self.skip(x))


def resnet18():
    """He, Zhang, Ren, Sun, «Deep Residual Learning for Image Recognition», 2015, table 1."""
    torch.manual_seed(0)
    widths = [64, 64, 128, 256, 512]
    blocks = []
    for i, (inner, outer) in enumerate(zip(widths, widths[1:])):
        blocks += [Block(inner, outer, 1 if i == 0 else 2), Block(outer, outer, 1)]
    return nn.Sequential(
        nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
        nn.MaxPool2d(3, 2, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10),
    )
'''


@pytest.fixture
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module `networks` in the current folder."""
    (tmp_path / "networks.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return import_module("networks")


@pytest.mark.parametrize(("name", "size"), [("small", (48, 32)), ("resnet18", (64, 64))])
def test_nchw_becomes_nhwc_with_the_same_answers(
    name: str, size: tuple[int, int], networks: Any
) -> None:
    torch = import_module("torch")
    module = pytorch.load_module(f"networks:{name}", None)
    model = pytorch.from_module(module, *size)
    interpreter = Interpreter(model_content=model)
    interpreter.allocate_tensors()
    names = {op["op_name"] for op in interpreter._get_ops_details()}
    assert not names & {"TRANSPOSE", "BATCH_NORM"}
    image = np.random.default_rng(0).uniform(-1, 1, (1, *size, 3)).astype(np.float32)
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image)
    interpreter.invoke()
    ours = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    with torch.no_grad():
        theirs = module(torch.from_numpy(image.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    expected = "probabilities" if name == "small" else "logits"
    assert shapes.describe(model).output == expected


def test_an_exported_program_and_a_state_dict_make_bundles(networks: Any, tmp_path: Path) -> None:
    torch = import_module("torch")
    module = networks.small().eval()
    torch.save(module.state_dict(), tmp_path / "weights.pt")
    with suppress_native_output():
        program = torch.export.export(module, (torch.zeros(1, 3, 48, 32),))
        torch.export.save(program, tmp_path / "program.pt2")
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\ne\n")
    common = ["--labels", "labels.txt", "--out", str(tmp_path / "models")]
    common += ["--scale", "0.00392157"]
    assert main(["pytorch", "program.pt2", *common]) == 0
    command = ["pytorch", "networks:small", "--weights", "weights.pt", "--size", "48", "32"]
    assert main([*command, *common]) == 0
    one = read_bundle(tmp_path / "models" / "program" / "1")
    two = read_bundle(tmp_path / "models" / "small" / "1")
    assert one.manifest.recipe == two.manifest.recipe
    assert one.manifest.recipe is not None
    assert (one.manifest.recipe.height, one.manifest.recipe.width) == (48, 32)
    assert one.manifest.output == "probabilities"


def test_what_is_no_module_is_refused(networks: Any, tmp_path: Path) -> None:
    (tmp_path / "text.pt2").write_text("no program")
    with pytest.raises(ConvertError, match=r"text\.pt2 is not a program"):
        pytorch.exported_program(tmp_path / "text.pt2")
    with pytest.raises(ConvertError, match="networks has no large"):
        pytorch.load_module("networks:large", None)
    with pytest.raises(ConvertError, match="not a state_dict"):
        pytorch.load_module("networks:small", tmp_path / "text.pt2")
    with pytest.raises(ConvertError, match=":small should be MODULE:CALLABLE"):
        pytorch.load_module(":small", None)
    with pytest.raises(ConvertError, match=r"nowhere\.pt does not exist"):
        pytorch.load_module("networks:small", tmp_path / "nowhere.pt")
    torch = import_module("torch")
    torch.save(torch.nn.ReLU(), tmp_path / "whole.pt")
    with pytest.raises(ConvertError, match=r"whole\.pt holds more than tensors"):
        pytorch.load_module("networks:small", tmp_path / "whole.pt")
    torch.save({}, tmp_path / "empty.pt")
    with pytest.raises(ConvertError, match=r"does not fit networks:small: .*Missing key"):
        pytorch.load_module("networks:small", tmp_path / "empty.pt")
    with pytest.raises(ConvertError, match="can't be exported for an image of 1 x 32 x 32"):
        pytorch.from_module(networks.small().eval(), 32, 32, 1)
