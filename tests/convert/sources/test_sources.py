"""Every kind of model file becomes the same .tflite, or a sentence that says why not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from convert.data.labels import is_numbered, read_labels
from convert.errors import ConvertError
from convert.quantization.quantize import quantize
from convert.recipe.choice import default_recipe, recipe_with
from convert.sources import imagenet, shapes
from convert.sources import keras as sources
from convert.terminal import suppress_native_output
from server.recognition.manifest import Recipe


def run(model: bytes, image: np.ndarray) -> np.ndarray:
    interpreter = Interpreter(model_content=model, num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image)
    interpreter.invoke()
    return np.asarray(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))


@pytest.mark.parametrize("name", ["colours.keras", "colours.h5", "saved", "colours.tflite"])
def test_each_file_answers_as_the_keras_model(
    name: str, colours_files: Path, colours_keras: Any
) -> None:
    path = colours_files / name
    if path.suffix == ".tflite":
        model = sources.tflite_file(path)
    else:
        model, _ = sources.keras_file(path)
    image = np.random.default_rng(3).uniform(-1, 1, (1, 32, 32, 3)).astype(np.float32)
    expected = colours_keras(image, training=False).numpy()
    np.testing.assert_allclose(run(model, image), expected, atol=1e-5)
    assert shapes.describe(model) == shapes.Shape(32, 32, 3, 3, False, "probabilities")


def test_batch_normalisation_is_folded(tf: Any) -> None:
    layers = tf.keras.layers
    model = tf.keras.Sequential(
        [
            layers.Input((16, 16, 3)),
            layers.Conv2D(8, 3, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(6.0),
            layers.GlobalAveragePooling2D(),
            layers.Dense(2),
        ]
    )
    converted = sources.from_keras(model)
    interpreter = Interpreter(model_content=converted)
    names = [op["op_name"] for op in interpreter._get_ops_details()]
    assert [n for n in names if n != "DELEGATE"] == ["CONV_2D", "MEAN", "FULLY_CONNECTED"]
    assert shapes.describe(converted).output == "logits"


@pytest.mark.parametrize("end", ["flattened", "mean of two", "logits", "sigmoid"])
def test_probabilities_known_wherever_the_softmax_is(tf: Any, end: str) -> None:
    """Probabilities are known wherever the softmax stands."""
    layers = tf.keras.layers
    pixels = layers.Input((16, 16, 3))
    features = layers.GlobalAveragePooling2D(keepdims=True)(layers.Conv2D(8, 3)(pixels))
    if end == "flattened":
        answers = layers.Flatten()(layers.Conv2D(3, 1, activation="softmax")(features))
    else:
        last = {"mean of two": "softmax", "sigmoid": "sigmoid"}.get(end)
        answers = [layers.Dense(3, last)(layers.Flatten()(features)) for _ in range(2)]
        answers = layers.Average()(answers) if end == "mean of two" else answers[0]
    model = sources.from_keras(tf.keras.Model(pixels, answers))
    assert shapes.describe(model).output == ("logits" if end == "logits" else "probabilities")


def test_layers_that_vary_images_do_nothing_in_service(tf: Any) -> None:
    layers = tf.keras.layers
    model = tf.keras.Sequential(
        [
            layers.Input((16, 16, 3)),
            layers.RandomFlip(),
            layers.RandomRotation(0.2),
            layers.RandomZoom(0.2),
            layers.RandomContrast(0.2),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )
    image = np.random.default_rng(0).uniform(-1, 1, (1, 16, 16, 3)).astype(np.float32)
    expected = model(image, training=False).numpy()
    np.testing.assert_allclose(run(sources.from_keras(model), image), expected, atol=1e-5)


def test_model_that_scales_its_pixels_gets_them_raw(tf: Any, tmp_path: Path) -> None:
    """A model that scales its pixels is fed them as they are."""
    layers = tf.keras.layers
    model = tf.keras.Sequential(
        [
            layers.Input((8, 8, 1)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(4, 3),
            layers.GlobalAveragePooling2D(),
            layers.Dense(2, activation="sigmoid"),
        ]
    )
    with suppress_native_output():
        model.save(tmp_path / "scaled.keras")
    _, shape = sources.keras_file(tmp_path / "scaled.keras")
    recipe = default_recipe(shape)
    assert (recipe.scale, recipe.offset, recipe.color) == (1.0, 0.0, "gray")
    assert shape.output == "probabilities"


@pytest.mark.parametrize("layer", [True, False], ids=["Rescaling", "division"])
def test_scaling_that_the_converter_folds_away_is_seen(
    tf: Any, tmp_path: Path, layer: bool
) -> None:
    layers = tf.keras.layers
    pixels = layers.Input((8, 8, 3))
    scaled = layers.Rescaling(1 / 255)(pixels) if layer else pixels / 255
    features = layers.Conv2D(4, 3, padding="same")(scaled)
    answers = layers.Dense(2)(layers.GlobalAveragePooling2D()(features))
    model = tf.keras.Model(pixels, answers)
    assert not shapes.describe(sources.from_keras(model)).scales_inside
    with suppress_native_output():
        model.save(tmp_path / "folded.keras")
        model.export(tmp_path / "folded", verbose=False)
    for path in (tmp_path / "folded", tmp_path / "folded.keras"):
        _, shape = sources.keras_file(path)
        assert shape.scales_inside


def test_a_model_of_any_size_needs_one(tf: Any, tmp_path: Path) -> None:
    layers = tf.keras.layers
    model = tf.keras.Sequential(
        [layers.Input((None, None, 3)), layers.GlobalAveragePooling2D(), layers.Dense(2)]
    )
    with suppress_native_output():
        model.save(tmp_path / "open.keras")
    with pytest.raises(ConvertError, match="--size HEIGHT WIDTH"):
        sources.keras_file(tmp_path / "open.keras")
    _, shape = sources.keras_file(tmp_path / "open.keras", (40, 24))
    assert (shape.height, shape.width) == (40, 24)


def test_a_fixed_size_is_not_changed(colours_files: Path) -> None:
    with pytest.raises(ConvertError, match=r"\[None, 32, 32, 3\], so --size can't be 40 40"):
        sources.keras_file(colours_files / "saved", (40, 40))


def test_missing_signature_error_lists_the_others(colours_files: Path) -> None:
    """A missing signature is answered with those there are."""
    with pytest.raises(ConvertError, match="no signature other: its signatures are serve, serving"):
        sources.saved_model(colours_files / "saved", "other")


def test_a_saved_model_without_signatures(tf: Any, tmp_path: Path) -> None:
    tf.saved_model.save(tf.Module(), str(tmp_path))
    with pytest.raises(ConvertError, match="serving_default: it has no signatures at all"):
        sources.saved_model(tmp_path)


def test_two_inputs_are_refused(tf: Any) -> None:
    layers = tf.keras.layers
    one, two = layers.Input((8, 8, 3)), layers.Input((8, 8, 3))
    model = tf.keras.Model([one, two], layers.Add()([one, two]))
    with pytest.raises(ConvertError, match="2 inputs and 1 outputs; a classifier has one of each"):
        sources.from_keras(model)


def test_an_input_that_is_no_image_is_refused(tf: Any) -> None:
    model = tf.keras.Sequential([tf.keras.layers.Input((8,)), tf.keras.layers.Dense(2)])
    with pytest.raises(ConvertError, match=r"takes \[None, 8\]"):
        sources.from_keras(model)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.keras", b"no model", "is not a Keras model that loads"),
        ("a.h5", b"no model", "is not a Keras model that loads"),
        ("a.txt", b"no model", "neither .keras, .h5 nor the folder of a SavedModel"),
    ],
)
def test_a_file_that_is_no_model(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConvertError, match=message):
        sources.keras_file(tmp_path / name)


def test_a_folder_that_is_no_saved_model(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match=r"it holds no saved_model\.pb"):
        sources.keras_file(tmp_path)


def test_a_quantised_or_broken_tflite_is_refused(colours_tflite: bytes, tmp_path: Path) -> None:
    path = tmp_path / "small.tflite"
    path.write_bytes(quantize(colours_tflite, "dynamic"))
    with pytest.raises(ConvertError, match=r"small\.tflite: The model is quantised already"):
        sources.tflite_file(path)
    path.write_bytes(b"no model")
    with pytest.raises(ConvertError, match=r"small\.tflite: The bytes are no TFLite model"):
        sources.tflite_file(path)


def test_a_model_without_inputs_is_refused(tf: Any) -> None:
    with pytest.raises(ConvertError, match="has no inputs yet: give it an Input layer"):
        sources.from_keras(tf.keras.Sequential([tf.keras.layers.Dense(2)]))


def test_an_operator_that_tflite_lacks_is_named(tf: Any, tmp_path: Path) -> None:
    class Singular(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([1, 8, 8, 3])])
        def __call__(self, pixels: Any) -> Any:
            return tf.linalg.svd(pixels[..., 0], compute_uv=False)

    module = Singular()
    tf.saved_model.save(module, str(tmp_path), signatures=module.__call__)
    with pytest.raises(ConvertError, match=r"a \.tflite: TFLite has no operator for Svd of"):
        sources.saved_model(tmp_path)


def test_an_unknown_layer_is_named(tf: Any, tmp_path: Path) -> None:
    class Foo(tf.keras.layers.Layer):
        def call(self, values: Any) -> Any:
            return values

    layers = tf.keras.layers
    model = tf.keras.Sequential([layers.Input((8, 8, 3)), Foo(), layers.Flatten()])
    with suppress_native_output():
        model.save(tmp_path / "foo.keras")
    with pytest.raises(ConvertError, match="that loads: Could not locate class 'Foo'"):
        sources.keras_file(tmp_path / "foo.keras")


def test_a_grey_image_has_one_scale() -> None:
    with pytest.raises(ConvertError, match=r"recipe\.scale should be one number"):
        recipe_with(Recipe(width=8, height=8, color="gray"), scale=(1.0, 2.0, 3.0))


def test_a_map_of_classes_is_refused(tf: Any) -> None:
    layers = tf.keras.layers
    model = tf.keras.Sequential([layers.Input((8, 8, 3)), layers.Conv2D(3, 3)])
    with pytest.raises(ConvertError, match=r"answers \[1, 6, 6, 3\]; a classifier answers"):
        sources.from_keras(model)


def test_labels_saved_by_a_windows_editor(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes("\ufeffone\r\ntwo\r\n".encode())
    assert [label.name for label in read_labels(tmp_path / "names.txt")] == ["one", "two"]


@pytest.mark.parametrize(
    "content",
    [
        b"0 Good Part\n1 Bad",
        b"0 Good Part\r\n1 Bad\r\n\r\n",
        "\ufeff0 Good Part\n1  Bad\n".encode(),
    ],
)
def test_labels_numbered_from_zero_lose_their_numbers(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "labels.txt").write_bytes(content)
    labels = read_labels(tmp_path / "labels.txt")
    assert [label.name for label in labels] == ["Good Part", "Bad"]
    assert is_numbered(tmp_path / "labels.txt")


@pytest.mark.parametrize(
    "lines",
    [["0 good", "2 bad"], ["1 good", "2 bad"], ["0", "1"], ["0 hole", "1 hole"], ["0 good", "bad"]],
)
def test_numbers_that_do_not_count_the_lines_stay(tmp_path: Path, lines: list[str]) -> None:
    (tmp_path / "labels.txt").write_text("\n".join(lines))
    assert [label.name for label in read_labels(tmp_path / "labels.txt")] == lines
    assert not is_numbered(tmp_path / "labels.txt")


def test_labels_with_an_empty_line_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("one\n\nthree\n")
    with pytest.raises(ConvertError, match=r"names\.txt line 2 is empty"):
        read_labels(tmp_path / "names.txt")


def test_recipe_values_out_of_range_are_refused(colours_tflite: bytes) -> None:
    recipe = default_recipe(shapes.describe(colours_tflite))
    assert recipe_with(recipe, scale=(1.0, 2.0, 3.0), pad=None).scale == (1.0, 2.0, 3.0)
    with pytest.raises(ConvertError, match="the recipe is not usable"):
        recipe_with(recipe, pad=300)


@pytest.mark.parametrize(("alpha", "size"), [(0.6, 224), (1.0, 200)])
def test_imagenet_weights_exist_for_some_sizes_only(alpha: float, size: int) -> None:
    with pytest.raises(ConvertError, match=f"no ImageNet weights for alpha {alpha:g} at {size}"):
        imagenet.model(alpha, size)


def test_imagenet_offline_says_where_the_weights_should_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    # Nothing listens there, so this machine is offline for the length of the test.
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(ConvertError, match=r"0\.5_224\.h5 is not there.*--weights none"):
        imagenet.model(0.5, 224)


def test_mobilenet_of_any_width_and_size(tf: Any) -> None:
    """Its conversion to a .tflite is shown where such a network is trained."""
    model = imagenet.model(0.35, 64, "none")
    assert model.input_shape == (None, 64, 64, 3)
    assert model.output_shape == (None, 1000)
    assert model.layers[-1].activation is tf.keras.activations.softmax
