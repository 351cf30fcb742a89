"""Models of plain numbers: what may be served, and what goes through."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clients import SETOSA, VIRGINICA
from server_process import ROOT
from tiny_models import MakeModel, write_bundle

from server.errors import BundleError, DeadlineExceededError, InvalidFieldError
from server.recognition.admission import Admission
from server.recognition.answers import Options
from server.recognition.frame import Limits
from server.recognition.interpreter import InterpreterPool
from server.recognition.manifest import Bundle, read_bundle
from server.recognition.recognizer import Recognizer
from server.recognition.tensor_model import Model, batched, make_model, match_inputs, run_tensors


def load(folder: Path, pool: type[InterpreterPool] = InterpreterPool) -> Model:
    bundle: Bundle = read_bundle(folder)
    return make_model(bundle, pool(bundle.model_path, 1), Admission(1, 1), Limits())


@pytest.fixture(scope="module")
def iris() -> Model:
    return load(ROOT / "models" / "iris" / "1")


def test_rows_and_labels(iris: Model) -> None:
    assert batched(iris)
    inputs = match_inputs(iris, {"features": np.array([SETOSA, VIRGINICA], np.float32)})
    outcome = run_tensors(iris, inputs, Options(top_k=2))
    assert outcome.outputs[0].shape == (2, 3)
    assert [answer.label for answer in outcome.answers] == ["setosa", "virginica"]
    assert all(len(answer.predictions) == 2 for answer in outcome.answers)


def test_a_batch_answers_as_its_rows_do(iris: Model) -> None:
    rows = np.random.default_rng(0).uniform(0, 8, (20, 4)).astype(np.float32)
    together = run_tensors(iris, [rows], Options()).outputs[0]
    alone = [run_tensors(iris, [row[None]], Options()).outputs[0] for row in rows]
    # The kernels of one row and of many may differ, and round otherwise.
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=1e-6)


def test_a_late_request_is_refused_and_gives_its_slot_back(iris: Model) -> None:
    inputs = match_inputs(iris, {"features": np.array(SETOSA, np.float32)})
    with pytest.raises(DeadlineExceededError):
        run_tensors(iris, inputs, Options(deadline=0.0))
    assert iris.admission.busy == 0
    assert run_tensors(iris, inputs, Options()).answers


def test_no_label_without_finite_probabilities(iris: Model) -> None:
    with pytest.raises(InvalidFieldError, match="not finite"):
        run_tensors(iris, [np.full((1, 4), np.nan, np.float32)], Options())
    assert iris.admission.busy == 0


def test_names_by_file_and_by_signature(iris: Model) -> None:
    array = np.array([SETOSA], np.float32)
    spec = iris.pool.inputs[0]
    assert spec.signature == "features"
    for name in (spec.name, spec.signature):
        assert match_inputs(iris, {name: array})[0] is array
    assert match_inputs(iris, {"features": array[0]})[0].shape == (1, 4)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "features is missing"),
        ({"wrong": np.zeros((1, 4))}, "no input wrong"),
        ({"features": np.zeros((0, 4))}, "takes [N, 4], and [0, 4] was sent"),
        ({"features": np.zeros((1, 1, 4))}, "takes [N, 4]"),
        ({"features": np.zeros(())}, "takes [N, 4], and [] was sent"),
    ],
)
def test_what_does_not_fit(iris: Model, given: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidFieldError) as caught:
        match_inputs(iris, given)
    assert words in caught.value.message


def test_wrong_labels_are_refused(tmp_path: Path) -> None:
    model = ROOT / "models" / "iris" / "1" / "model.tflite"
    folder = write_bundle(tmp_path / "iris" / "1", model, ("one",), None, task="tensor")
    with pytest.raises(BundleError, match="1 label but the model's first output is"):
        load(folder)


def test_an_image_model_takes_its_tensor_too(colors: Path) -> None:
    model = load(colors / "colors" / "1")
    assert isinstance(model, Recognizer)
    red = np.zeros((1, 32, 32, 3), np.float32)
    red[..., 0] = 1
    (spec,) = model.pool.inputs
    outcome = run_tensors(model, match_inputs(model, {spec.name: red}), Options())
    assert outcome.answers[0].label == "red"


def test_a_model_of_plain_numbers_may_have_no_labels(tiny_model: MakeModel, tmp_path: Path) -> None:
    folder = write_bundle(
        tmp_path / "plain" / "1", tiny_model("two_outputs"), (), None, task="tensor"
    )
    model = load(folder)
    outcome = run_tensors(model, [np.zeros((3, 32, 32, 3), np.float32)], Options())
    assert [output.shape for output in outcome.outputs] == [(3, 3), (3, 3)]
    assert outcome.answers == ()
