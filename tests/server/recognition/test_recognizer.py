"""Recognizer: a deadline that passes while a frame is decoded, and the order of dimensions."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from images import encode, picture, plain
from server_process import ROOT
from tiny_models import RECIPE, MakeModel, change_manifest, write_bundle

from server.errors import BundleError, DeadlineExceededError
from server.recognition.admission import Admission
from server.recognition.answers import Options
from server.recognition.frame import Limits
from server.recognition.interpreter import InterpreterPool
from server.recognition.manifest import read_bundle
from server.recognition.recognizer import Recognizer
from server.recognition.tensor_model import Model, make_model, run_images

Recognize = Callable[[Recognizer, bytes, Options], object]


class Slow:
    """A model of which every image takes 5 s to decode, by its own clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.stages: list[str] = []
        bundle = read_bundle(ROOT / "models" / "parts" / "1")
        pool = InterpreterPool(bundle.model_path, 1)
        admission = Admission(1, 1, lambda: self.now)
        self.recognizer = Recognizer(bundle, pool, admission, Limits(), self._ended)

    def _ended(self, stage: str, _seconds: float) -> None:
        self.stages.append(stage)
        if stage == "decode":
            self.now += 5


@pytest.mark.parametrize(
    "recognize",
    [
        lambda model, data, options: model.recognize(data, options),
        lambda model, data, options: run_images(model, [data], options),
    ],
    ids=["recognize", "run_images"],
)
def test_frame_late_after_decoding_gets_no_interpreter(recognize: Recognize) -> None:
    """A frame that is late once it is decoded gets no interpreter."""
    slow = Slow()
    data = encode(picture())
    with pytest.raises(DeadlineExceededError, match="while the image was decoded") as refused:
        recognize(slow.recognizer, data, Options(deadline=slow.now + 4.9))
    assert refused.value.status == 503
    assert slow.stages == ["wait", "decode"]
    assert slow.recognizer.admission.busy == 0
    assert recognize(slow.recognizer, data, Options(deadline=slow.now + 5))
    assert slow.stages[2:] == ["wait", "decode", "preprocess", "inference"]


@pytest.mark.parametrize("kind", ["colors", "int8", "uint8"])
def test_channels_may_come_first(kind: str, tiny_model: MakeModel, tmp_path: Path) -> None:
    """A model whose channels come first answers as the same model with channels last."""
    dtype = "float32" if kind == "colors" else kind
    data, answers = encode(plain((200, 90, 20)), "PNG"), []
    for number, (prefix, layout) in enumerate([("", "nhwc"), ("nchw_", "nchw")], 1):
        recipe = msgspec.structs.replace(RECIPE, layout=layout, dtype=dtype)
        folder = write_bundle(
            tmp_path / "m" / str(number), tiny_model(prefix + kind), recipe=recipe
        )
        model = load(folder)
        assert isinstance(model, Recognizer)
        answers.append(model.recognize(data, Options()))
    assert (answers[1].label, answers[1].probability) == ("red", answers[0].probability)


def test_layout_that_the_model_lacks_is_refused(tiny_model: MakeModel, tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "m" / "1", tiny_model("nchw_colors"))
    words = r"the model takes float32 \[3, 32, 32\]: set the recipe's .*layout"
    with pytest.raises(BundleError, match=words):
        load(folder)


def test_grey_recipe_with_three_scales_is_refused(tiny_model: MakeModel, tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "m" / "1", tiny_model("colors"))
    recipe = msgspec.to_builtins(RECIPE) | {"color": "gray", "scale": [1.0, 2.0, 3.0]}
    change_manifest(folder, recipe=recipe)
    with pytest.raises(BundleError, match=r"recipe\.scale should be one number"):
        load(folder)


def load(folder: Path) -> Model:
    bundle = read_bundle(folder)
    return make_model(bundle, InterpreterPool(bundle.model_path, 1), Admission(1, 1), Limits())
