"""How a model wants its pixels, found by running it: a table of preprocessing inside models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from convert.__main__ import main
from convert.bundle_writer import load
from convert.quantization.graph import kind_of, parse
from convert.recipe.readings import ALL, READINGS, UNSCALED
from convert.sources import keras as sources
from convert.terminal import suppress_native_output
from server.recognition.answers import Options

SIDE = 16
Build = Callable[[Any], Callable[[Any], Any]]
RAW, UNIT, SIGNED = ("0..255",), ("0..1",), ("-1..1",)

# Each: of tensorflow, the function from the model's input to its first convolution.
INSIDE: dict[str, tuple[Build, tuple[str, ...]]] = {
    "nothing": (lambda tf: lambda x: x, ALL),
    "padding": (lambda tf: tf.keras.layers.ZeroPadding2D(1), ALL),
    "channels reversed": (lambda tf: lambda x: x[..., ::-1], ALL),
    "caffe": (lambda tf: tf.keras.applications.resnet50.preprocess_input, RAW),
    "torch": (lambda tf: tf.keras.applications.densenet.preprocess_input, RAW),
    "tf": (lambda tf: tf.keras.applications.mobilenet_v2.preprocess_input, RAW),
    "clip / 255": (lambda tf: lambda x: tf.keras.ops.clip(x, 0, 255) / 255, RAW),
    "maximum / 255": (lambda tf: lambda x: tf.keras.ops.maximum(x, 0) / 255, RAW),
    "where / 255": (lambda tf: lambda x: tf.keras.ops.where(x > 0, x, 0) / 255, RAW),
    "average / 255": (lambda tf: lambda x: tf.keras.layers.AveragePooling2D(2)(x) / 255, RAW),
    "max pool / 255": (lambda tf: lambda x: tf.keras.layers.MaxPooling2D(2)(x) / 255, RAW),
    "resize / 255": (lambda tf: lambda x: tf.keras.layers.Resizing(12, 12)(x) / 255, RAW),
    "dropout / 255": (lambda tf: lambda x: tf.keras.layers.Dropout(0.1)(x) / 255, RAW),
    "Rescaling": (lambda tf: tf.keras.layers.Rescaling(1 / 255), RAW),
    "flip, Rescaling": (
        lambda tf: lambda x: tf.keras.layers.Rescaling(1 / 255)(tf.keras.layers.RandomFlip()(x)),
        RAW,
    ),
    "Normalization": (
        lambda tf: tf.keras.layers.Normalization(mean=[120, 110, 100], variance=[3600] * 3),
        RAW,
    ),
    "Lambda": (lambda tf: tf.keras.layers.Lambda(lambda x: x / 127.5 - 1), RAW),
    "standardised": (
        lambda tf: tf.keras.layers.Lambda(lambda x: tf.image.per_image_standardization(x)),
        RAW,
    ),
    "NCHW and back": (
        lambda tf: lambda x: tf.transpose(tf.transpose(x, [0, 3, 1, 2]) / 255, [0, 2, 3, 1]),
        RAW,
    ),
    "as whole numbers": (lambda tf: lambda x: tf.cast(tf.cast(x, "uint8"), "float32") / 255, RAW),
    "to grey": (lambda tf: lambda x: tf.image.rgb_to_grayscale(x) / 255, RAW),
    "less its middle": (lambda tf: lambda x: x - 127.5, RAW),
    "of a tenth": (lambda tf: lambda x: x / 10, RAW),
    "2 x - 1": (lambda tf: lambda x: 2 * x - 1, UNIT),
    "clipped to 1": (lambda tf: lambda x: tf.keras.ops.clip(x, 0, 1), UNIT),
    "times 255": (lambda tf: lambda x: tf.keras.layers.Rescaling(1 / 127.5, -1)(255 * x), UNIT),
    "back to 255": (
        lambda tf: lambda x: tf.keras.applications.resnet50.preprocess_input((x + 1) * 127.5),
        SIGNED,
    ),
    "not negative": (lambda tf: lambda x: tf.keras.ops.maximum(x, 0), ("0..255", "0..1")),
    "less a half": (lambda tf: lambda x: x - 0.5, ("0..255", "0..1")),
}


def network(tf: Any, opening: Callable[[Any], Any], channels: int = 3) -> Any:
    """A classifier of three whose answers depend on how its pixels are scaled."""
    layers = tf.keras.layers
    image = layers.Input((SIDE, SIDE, channels))
    tf.keras.utils.set_random_seed(1)
    features = layers.Conv2D(8, 3, activation="relu")(opening(image))
    answers = layers.Dense(3, "softmax")(layers.GlobalAveragePooling2D()(features))
    return tf.keras.Model(image, answers)


@pytest.mark.parametrize("name", INSIDE)
def test_reading_of_preprocessing_inside(tf: Any, name: str) -> None:
    build, expected = INSIDE[name]
    opening = build(tf)
    if name in ("NCHW and back", "as whole numbers", "to grey"):
        opening = tf.keras.layers.Lambda(opening)
    assert sources.keras_readings(network(tf, opening)) == expected


def test_reading_ignores_scaling_behind_weights(tf: Any) -> None:
    layers = tf.keras.layers
    model = tf.keras.Sequential(
        [
            layers.Input((SIDE, SIDE, 3)),
            layers.Conv2D(8, 3),
            layers.Rescaling(1 / 255),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3),
        ]
    )
    assert sources.keras_readings(model) == ALL


def test_reading_of_subclass_and_first_normalisation(tf: Any) -> None:
    layers = tf.keras.layers

    class Own(tf.keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.features, self.answers = layers.Conv2D(8, 3), layers.Dense(3)

        def call(self, image: Any) -> Any:
            return self.answers(tf.reduce_mean(self.features(image / 127.5 - 1), [1, 2]))

    model = tf.keras.Sequential([layers.Input((SIDE, SIDE, 3)), Own()])
    assert sources.keras_readings(model) == RAW
    first = layers.BatchNormalization()
    first.build((None, SIDE, SIDE, 3))
    first.set_weights([np.ones(3), np.zeros(3), np.full(3, 120.0), np.full(3, 3600.0)])
    assert sources.keras_readings(network(tf, first)) == RAW


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with labels.txt and a picture of SIDE x SIDE pixels, photo.png."""
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    slope = np.linspace(0, 255, SIDE)[:, None, None] * np.array([0.9, 0.4, 0.2])
    pixels = np.broadcast_to(slope, (SIDE, SIDE, 3)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "photo.png"), pixels[..., ::-1])
    return tmp_path


def converted(folder: Path, file: str, *options: str) -> int:
    command = ["keras", str(folder / file), "--labels", str(folder / "labels.txt")]
    return main([*command, "--name", "m", "--out", str(folder / "models"), *options])


def answers(folder: Path, version: int = 1) -> dict[str, float]:
    bundle = load(folder / "models" / "m" / str(version))
    result = bundle.recognize((folder / "photo.png").read_bytes(), Options(top_k=3))
    return {p.label: p.probability for p in result.predictions}


def expected(folder: Path, model: Any, reading: str = "0..255") -> dict[str, float]:
    pixels = np.asarray(cv2.imread(str(folder / "photo.png")), np.float64)[..., ::-1]
    given = model(READINGS[reading].feed(pixels[None]), training=False)
    return dict(zip("abc", (float(p) for p in given.numpy()[0]), strict=True))


@pytest.mark.parametrize("form", ["model.keras", "model.h5", "saved", "model.tflite"])
def test_bundle_answers_as_model_with_means_inside(
    tf: Any, folder: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    inside = tf.keras.applications.resnet50.preprocess_input
    if form == "model.h5":
        # Keras does not read functions between layers back from HDF5.
        inside = tf.keras.layers.Normalization(mean=[104, 117, 124], variance=[1] * 3)
    model = network(tf, inside)
    with suppress_native_output():
        if form == "saved":
            model.export(folder / form, verbose=False)
        elif form == "model.tflite":
            (folder / form).write_bytes(sources.from_keras(model))
        else:
            model.save(folder / form)
    assert converted(folder, form, "--mode", "float32") == 0
    assert "by default, since the model scales them itself" in capsys.readouterr().out
    assert answers(folder) == pytest.approx(expected(folder, model), abs=1e-3)


@pytest.mark.parametrize("name", ["2 x - 1", "back to 255"])
def test_bundle_scales_what_the_model_expects_scaled(tf: Any, folder: Path, name: str) -> None:
    build, [reading] = INSIDE[name]
    model = network(tf, build(tf))
    with suppress_native_output():
        model.export(folder / "saved", verbose=False)
    assert converted(folder, "saved", "--mode", "float32") == 0
    assert answers(folder) == pytest.approx(expected(folder, model, reading), abs=1e-3)


def test_tflite_with_channels_first_is_served(tf: Any, folder: Path) -> None:
    """Its first operators are run to find its reading, and bundle.json says its layout."""
    model = network(tf, tf.keras.layers.Rescaling(1 / 255))
    first = tf.keras.Sequential(
        [tf.keras.layers.Input((3, SIDE, SIDE)), tf.keras.layers.Permute((2, 3, 1)), model]
    )
    with suppress_native_output():
        first.export(folder / "first", verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / "first"))
        (folder / "m.tflite").write_bytes(converter.convert())
    assert converted(folder, "m.tflite") == 0
    recipe = load(folder / "models" / "m" / "1").recipe
    assert (recipe.layout, recipe.scale) == ("nchw", 1.0)
    assert answers(folder) == pytest.approx(expected(folder, model), abs=0.02)


def test_whole_numbers_as_input_are_pixels(tf: Any, folder: Path) -> None:
    layers = tf.keras.layers
    image = layers.Input((SIDE, SIDE, 3), dtype="uint8")
    inner = network(tf, layers.Rescaling(1 / 255))
    model = tf.keras.Model(image, inner(tf.keras.ops.cast(image, "float32")))
    with suppress_native_output():
        model.save(folder / "model.keras")
    assert converted(folder, "model.keras", "--mode", "float32") == 0
    assert answers(folder) == pytest.approx(expected(folder, inner), abs=1e-3)


def test_unknown_scaling_is_asked_for(
    tf: Any, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = network(tf, lambda image: image)
    with suppress_native_output():
        model.save(folder / "model.keras")
    assert converted(folder, "model.keras") == 1
    error = capsys.readouterr().err
    for reading in READINGS.values():
        assert reading.options in error
    assert not (folder / "models").exists()
    for version, reading in enumerate(READINGS.values(), 1):
        assert converted(folder, "model.keras", "--mode", "float32", *reading.options.split()) == 0
        seen = expected(folder, model, ALL[version - 1])
        assert answers(folder, version) == pytest.approx(seen, abs=2e-3)


def test_scaling_twice_as_given_is_warned_of(
    tf: Any, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with suppress_native_output():
        network(tf, tf.keras.layers.Rescaling(1 / 255)).save(folder / "model.keras")
    assert converted(folder, "model.keras", "--scale", "0.00392157") == 0
    assert "with --scale 1 they would be scaled once" in capsys.readouterr().out
    assert converted(folder, "model.keras", "--scale", "1") == 0
    assert "warning" not in capsys.readouterr().out


# Each: what a converter, or a person, multiplies into the first convolution.
FOLDED: dict[str, tuple[Build, str]] = {
    "1/255": (lambda tf: tf.keras.layers.Rescaling(1 / 255), "same"),
    "-1..1": (lambda tf: tf.keras.layers.Rescaling(1 / 127.5, -1), "valid"),
}


@pytest.mark.parametrize("name", FOLDED)
@pytest.mark.parametrize("channels", [1, 3])
def test_scaling_in_the_first_weights_is_never_done_twice(
    tf: Any, folder: Path, capsys: pytest.CaptureFixture[str], name: str, channels: int
) -> None:
    """TensorFlow's converter leaves no operator of it, and names as of a MobileNet's layers would
    ask for -1..1."""
    build, padding = FOLDED[name]
    layers = tf.keras.layers
    tf.keras.utils.set_random_seed(1)
    image = layers.Input((SIDE, SIDE, channels))
    first = layers.Conv2D(8, 3, 2, padding=padding, name="Conv1")(build(tf)(image))
    first = layers.DepthwiseConv2D(3, name="bn_Conv1")(layers.ReLU(6.0)(first))
    model = tf.keras.Model(image, layers.Dense(3)(layers.GlobalAveragePooling2D()(first)))
    data = sources.from_keras(model)
    (folder / "m.tflite").write_bytes(data)
    parsed = parse(data)
    kinds = {kind_of(parsed, op) for op in parsed.subgraphs[0].operators}
    assert not {"MUL", "ADD", "SUB"} & kinds
    assert converted(folder, "m.tflite") == 1
    error = capsys.readouterr().err
    assert "seems to be in its weights" in error
    ways = {name: error.find(f"{reading.options} (") for name, reading in READINGS.items()}
    asked = sorted((name for name in ways if ways[name] > 0), key=lambda name: ways[name])
    first = ["0..255"] if channels == 1 else ["0..255", "caffe"]
    assert asked[: len(first) + 1] == [*first, "0..1"]
    assert converted(folder, "m.tflite", "--scale", "1/255") == 0
    assert "hardly changes" in capsys.readouterr().out
    assert converted(folder, "m.tflite", "--scale", "1") == 0
    assert "warning" not in capsys.readouterr().out


def test_mean_and_deviation_in_the_first_weights_are_found(tf: Any, folder: Path) -> None:
    """Where Keras's own function shows no operator either."""
    model = network(tf, lambda image: image)
    kernel, *rest = model.layers[1].get_weights()
    model.layers[1].set_weights([kernel / 60, rest[0] - kernel.sum((0, 1, 2)) * 110 / 60])
    with suppress_native_output():
        model.save(folder / "model.keras")
    assert sources.model_file(folder / "model.keras").shape.readings == UNSCALED


def needs_range(tf: Any, *, above_zero: bool, scale: float = 1.0) -> Any:
    """A model that tells blue, green and red apart if the sum of an even picture's channels is
    below 2, and `above_zero` if asked for; it answers blue otherwise. scale: of the first weights,
    which the others make up for."""
    layers = tf.keras.layers
    image = layers.Input((SIDE, SIDE, 3))
    sums = layers.GlobalAveragePooling2D()(layers.Conv2D(5, 3)(image))
    model = tf.keras.Model(image, layers.Dense(3, use_bias=False)(layers.ReLU()(sums)))
    kernel, weights = np.zeros((3, 3, 3, 5), np.float32), np.zeros((5, 3), np.float32)
    kernel[1, 1, :, :3] = np.eye(3)
    kernel[1, 1, :, 3:] = 1, -1
    bias = np.array([0.5, 0.5, 0.5, -2, 0], np.float32)
    weights[:3] = np.eye(3)[::-1]
    weights[3:, 0] = 30, 30 * above_zero
    model.set_weights([kernel * scale, bias * scale, weights / scale])
    return model


def test_labelled_frames_decide(
    tf: Any, colours_frames: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "labels.txt").write_text("blue\ngreen\nred\n")
    frames = ["--validate", str(colours_frames), "--seconds", "0.1"]
    with suppress_native_output():
        needs_range(tf, above_zero=True).save(folder / "one.keras")
        needs_range(tf, above_zero=False).save(folder / "several.keras")
    assert converted(folder, "one.keras", *frames) == 0
    assert "pixels * 0.00392157 + 0 since it is right on 100%" in capsys.readouterr().out
    assert converted(folder, "one.keras", *frames, "--scale", "1") == 0
    assert "warning: fed so the model is right on" in capsys.readouterr().out
    # Seven of ten frames could be chance.
    few = folder / "few"
    for name, count in (("blue", 3), ("green", 3), ("red", 4)):
        (few / name).mkdir(parents=True)
        for file in sorted((colours_frames / name).iterdir())[:count]:
            (few / name / file.name).write_bytes(file.read_bytes())
    assert converted(folder, "one.keras", "--validate", str(few)) == 1
    assert "right on 100% of the labelled frames" in capsys.readouterr().err
    # Small first weights look as if they held the scaling, and the frames show that they do not.
    small = needs_range(tf, above_zero=True, scale=1e-3)
    with suppress_native_output():
        small.save(folder / "small.keras")
    assert sources.model_file(folder / "small.keras").shape.readings == UNSCALED
    assert converted(folder, "small.keras", *frames) == 0
    assert "pixels * 0.00392157 + 0 since it is right on 100%" in capsys.readouterr().out
    assert converted(folder, "small.keras", *frames, "--scale", "1/255") == 0
    assert "warning" not in capsys.readouterr().out
    # 0..1 and -1..1 are as good as each other.
    assert converted(folder, "several.keras", *frames) == 1
    assert "labelled frames); --scale" in capsys.readouterr().err


def test_lambda_in_a_file_runs_only_when_asked(
    tf: Any, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = network(tf, tf.keras.layers.Lambda(lambda image: image / 255))
    with suppress_native_output():
        model.save(folder / "model.keras")
    assert converted(folder, "model.keras") == 1
    assert "--run-lambdas" in capsys.readouterr().err
    assert converted(folder, "model.keras", "--run-lambdas", "--mode", "float32") == 0
    assert answers(folder) == pytest.approx(expected(folder, model), abs=1e-3)


def test_mobilenet_has_its_own_default(
    tf: Any, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layers = tf.keras.layers
    base = tf.keras.Sequential(
        [
            layers.Input((32, 32, 3)),
            layers.Conv2D(8, 3, 2, use_bias=False, name="Conv1"),
            layers.BatchNormalization(name="bn_Conv1"),
            layers.ReLU(6.0),
            layers.DepthwiseConv2D(3, name="expanded_conv_depthwise"),
            layers.GlobalAveragePooling2D(),
        ]
    )
    model = tf.keras.Sequential([base, layers.Dense(3, "softmax")])
    with suppress_native_output():
        model.export(folder / "saved", verbose=False)
    assert converted(folder, "saved") == 0
    assert "+ -1 by default, as Keras's MobileNets are trained" in capsys.readouterr().out
