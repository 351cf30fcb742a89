"""Even light: what it evens out, what it keeps, and when a training chooses it."""

from pathlib import Path
from typing import cast

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from images import grainy_classes
from numpy.typing import NDArray

from convert.__main__ import parser_for
from convert.cli.train import Plan, light_choice, options_from
from convert.data.dataset import Dataset, read_dataset
from convert.sources import imagenet
from convert.sources.keras import from_keras
from convert.terminal import Terminal
from convert.training import network
from convert.training.learner import Learner
from convert.training.light import evenly_lit
from convert.training.light_choice import LightChoice, is_better
from convert.training.train import Frames, Options, prepare

pytest.importorskip("tensorflow", reason="tensorflow trains")

Image = NDArray[np.float32]


def even(levels: Image) -> Image:
    """Grey levels [side, side] in even light, as float32 [side, side, 3] in -1..1."""
    image = np.repeat(levels[None, :, :, None] / 127.5 - 1, 3, axis=3).astype(np.float32)
    return cast(Image, np.asarray(evenly_lit(image))[0])


def grain(side: int, seed: int) -> Image:
    """Texture of a mean of 1."""
    return np.random.default_rng(seed).uniform(0.8, 1.2, (side, side)).astype(np.float32)


@pytest.mark.parametrize("side", [32, 96, 224])
def test_slope_of_light_and_its_strength_are_gone(side: int) -> None:
    texture = grain(side, 0)
    lamp = np.linspace(0.5, 1.5, side, dtype=np.float32)[None]
    reference = even(100 * texture)
    for lit in (100 * texture * lamp, 50 * texture, 150 * texture):
        assert np.corrcoef(even(lit).ravel(), reference.ravel())[0, 1] > 0.95
        # The least light, by which black is not divided, darkens a dark frame a little.
        assert abs(float(even(lit).mean() - reference.mean())) < 0.1


def test_colours_stay() -> None:
    red = np.full((1, 64, 64, 3), (0.4, -0.4, -0.4), np.float32)
    red[:, ::2] *= 0.9
    shown = np.asarray(evenly_lit(red))[0]
    assert (shown[..., 0] > shown[..., 1] + 0.2).all()


@pytest.mark.parametrize("level", [0.0, 128.0, 255.0])
def test_frame_of_one_level_has_no_texture(level: float) -> None:
    shown = even(np.full((96, 96), level, np.float32))
    assert np.isfinite(shown).all()
    assert float(np.ptp(shown)) < 0.05


def test_file_shows_the_network_what_training_did() -> None:
    model = network.build(2, 0.35, 96, "none", "even")
    model.get_layer(network.HEAD).set_weights(
        [np.random.default_rng(0).normal(size=(1280, 2)), np.zeros(2)]
    )
    image = np.random.default_rng(1).uniform(-1, 1, (1, 96, 96, 3)).astype(np.float32)
    interpreter = Interpreter(model_content=from_keras(model))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image)
    interpreter.invoke()
    answer = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(answer, model(image, training=False), atol=1e-3)


@pytest.mark.parametrize(
    ("gained", "lost", "better"),
    [(0, 0, False), (5, 0, True), (4, 0, False), (20, 9, True), (20, 10, False)],
)
def test_even_light_has_to_be_better_than_chance(gained: int, lost: int, *, better: bool) -> None:
    kinds = [(True, False)] * gained + [(False, True)] * lost + [(True, True), (False, False)]
    ours, others = np.array(kinds).T
    assert is_better(ours, others) is better


RECIPE = imagenet.recipe(32)
OPTIONS = Options(alpha=0.35, size=32, weights="none")


@pytest.fixture(scope="module")
def learner() -> Learner:
    return prepare(2, OPTIONS)


@pytest.fixture(scope="module")
def striped(learner: Learner) -> LightChoice:
    """Of 80 pictures of two classes, which differ in the direction of their stripes, under light
    that differs by far more."""
    rng = np.random.default_rng(0)
    labels = np.arange(80, dtype=np.int64) % 2
    levels = []
    for label in labels:
        stripes = 1 + 0.4 * (np.indices((32, 32))[label] % 2)
        ends = rng.uniform(0.1, 2.0, (2, 2)).tolist()
        slopes = [np.linspace(first, last, 32) for first, last in ends]
        levels.append(60 * stripes * np.outer(*slopes))
    gray = np.clip(levels, 0, 255).astype(np.uint8)
    frames = Frames(np.repeat(gray[..., None], 3, axis=3), labels)
    every = np.arange(80, dtype=np.intp)
    return LightChoice(frames, every, 2, RECIPE, OPTIONS, Terminal(), learner)


def test_it_is_chosen_if_light_hides_the_classes(striped: LightChoice) -> None:
    options, learner = striped.training_on(np.full(80, True))
    assert (options.light, striped.light) == ("even", "even")
    assert learner.model.get_layer("even_light") is not None
    assert striped.tops[1] > striped.tops[0] + 0.1


def test_frames_that_judge_have_no_part_in_the_choice(striped: LightChoice) -> None:
    mine = np.arange(80) < 60
    striped.training_on(mine)
    before = striped.light, striped.tops
    striped.frames.labels[60:] = 0
    striped.training_on(mine)
    assert (striped.light, striped.tops) == before


def test_same_picture_twice_says_nothing_of_others(learner: Learner) -> None:
    """Noise, each picture twice, of a class at random: only its copy knows its class."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8).repeat(2, axis=0)
    frames = Frames(pixels, rng.integers(0, 2, 40).repeat(2))
    groups = np.arange(80)
    lights = LightChoice(frames, groups, 2, RECIPE, OPTIONS, Terminal(), learner)
    lights.training_on(np.full(80, True))
    assert min(lights.tops) > 0.8
    groups //= 2
    lights.training_on(np.full(80, True))
    assert max(lights.tops) < 0.8


@pytest.mark.parametrize("how", [("--light", "even"), ("--mode", "int8"), ("--weights", "none")])
def test_nothing_is_chosen_if_it_is_named_or_can_not_be(
    striped: LightChoice, learner: Learner, tmp_path: Path, how: tuple[str, ...]
) -> None:
    args = parser_for("train").parse_args(["train", "folder", *how])
    train = Dataset(("a", "b"), ())
    plan = Plan(train, {}, RECIPE, options_from(args), tmp_path, Terminal(), learner)
    assert light_choice(args, plan) is None


def test_train_says_which_light_it_chose(keras_home: Path, tmp_path: Path) -> None:
    """It is shown pictures whose brightness tells their class."""
    words = ["train", "folder", "--weights", "imagenet-224", "--size", "32"]
    args = parser_for("train").parse_args(words)
    train = read_dataset(grainy_classes(tmp_path / "pictures", 8, (48, 40), blur=2))
    groups = {item.path: number for number, item in enumerate(train.frames)}
    options = options_from(args)
    plan = Plan(train, groups, RECIPE, options, tmp_path, Terminal(), prepare(2, options))
    lights = light_choice(args, plan)
    assert lights is not None
    assert lights.training_on(np.full(16, True))[0].light == "as-is"
    assert lights.tops[0] > lights.tops[1]
    assert lights.told.startswith("--light as-is: the network is shown the frames as they are;")
