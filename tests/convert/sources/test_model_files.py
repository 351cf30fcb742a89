"""Model files known by their content: loaded under any name, or called what they are."""

import gzip
import io
import json
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from convert.__main__ import main
from convert.errors import ConvertError
from convert.quantization.quantize import quantize
from convert.sources import keras as sources
from convert.terminal import suppress_native_output
from server.recognition.manifest import read_bundle

Make = Callable[[Path, Path], Path]


def zipped(folder: Path, target: Path, inside: str = "") -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for file in [folder] if folder.is_file() else sorted(folder.rglob("*")):
            archive.write(file, f"{inside}{file.relative_to(folder.parent)}")
    return target


def tarred(folder: Path, target: Path) -> Path:
    with tarfile.open(target, "w:gz") as archive:
        archive.add(folder, ".")
    return target


def copied(source: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path((shutil.copytree if source.is_dir() else shutil.copy)(source, target))


def unzipped(source: Path, target: Path) -> Path:
    with zipfile.ZipFile(source) as archive:
        archive.extractall(target)
    return target


def gzipped(source: Path, target: Path) -> Path:
    target.write_bytes(gzip.compress(source.read_bytes()))
    return target


# Of the folder with the colours' files and an empty one: the file to convert.
LOADED: dict[str, Make] = {
    "HDF5 called .keras": lambda a, b: copied(a / "colours.h5", b / "m.keras"),
    "archive called .h5": lambda a, b: copied(a / "colours.keras", b / "m.h5"),
    "archive without a suffix": lambda a, b: copied(a / "colours.keras", b / "m"),
    "TFLite called .h5": lambda a, b: copied(a / "colours.tflite", b / "m.h5"),
    "folder of an archive": lambda a, b: unzipped(a / "colours.keras", b / "m.keras"),
    "SavedModel in a folder": lambda a, b: copied(a / "saved", b / "m" / "1").parent,
    "saved_model.pb": lambda a, b: copied(a / "saved", b / "m") / "saved_model.pb",
    "SavedModel in a zip": lambda a, b: zipped(a / "saved", b / "m.zip"),
    "SavedModel in a deeper zip": lambda a, b: zipped(a / "saved", b / "m.h5", "x/"),
    "SavedModel in a tar": lambda a, b: tarred(a / "saved", b / "m.tar.gz"),
    "HDF5 in a zip": lambda a, b: zipped(a / "colours.h5", b / "converted_keras.zip"),
    "HDF5 in gzip": lambda a, b: gzipped(a / "colours.h5", b / "m.h5.gz"),
}


@pytest.mark.parametrize("name", LOADED)
def test_model_loads_under_any_name(name: str, colours_files: Path, tmp_path: Path) -> None:
    found = sources.model_file(LOADED[name](colours_files, tmp_path))
    assert (found.mode, found.shape.classes) == ("float32", 3)


def written(content: bytes, name: str = "m.h5") -> Make:
    def make(_: Path, folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def archive_of(**files: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def array(values: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, values)
    return out.getvalue()


def weights_alone(folder: Path, name: str) -> Path:
    with h5py.File(folder / name, "w") as file:
        file.attrs["layer_names"] = ["dense"]
        file.attrs["backend"] = "tensorflow"
    return folder / name


def damaged(source: Path, target: Path) -> Path:
    content = source.read_bytes()
    target.write_bytes(content[: len(content) // 2])
    return target


def plain_hdf5(folder: Path) -> Path:
    with h5py.File(folder / "m.h5", "w") as file:
        file["x"] = np.zeros(3)
    return folder / "m.h5"


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
ONNX = b"\x08\x08\x12\x07pytorch\x1a\x052.1.0:\x90\x02"
FROZEN = b"\x0a\x3b\x0a\x05input\x12\x0bPlaceholder*\x0b\x0a\x05dtype\x12\x020\x01"
NAMED: dict[str, tuple[Make, str]] = {
    "nothing": (written(b""), "is empty"),
    "LFS pointer": (written(POINTER), "is a Git LFS pointer, not the model.*`git lfs pull`"),
    "ONNX": (written(ONNX, "m.onnx"), "is an ONNX model, which is not converted yet"),
    "frozen graph": (written(FROZEN, "m.pb"), "is a frozen TensorFlow graph"),
    "web page": (written(b"<!DOCTYPE html><html><body>404"), "is a web page"),
    "web page, later": (written(b"\n <html lang=en>"), "is a web page"),
    "JSON": (written(b'{"format": "layers-model"}', "model.json"), "is JSON"),
    "pickle": (written(pickle.dumps({"a": 1}), "m.pkl"), "is a Python pickle"),
    "PyTorch weights": (
        written(archive_of(**{"m/data.pkl": b"", "m/version": b"3"}), "m.pt"),
        "is a PyTorch file: use `python -m convert pytorch`",
    ),
    "PyTorch program": (
        written(archive_of(**{"m/archive_format": b"pt2"}), "m.pt2"),
        "is a PyTorch file",
    ),
    "old PyTorch": (
        written(pickle.dumps(0x1950A86A20F9469CFC6C, 2) + b"\x80\x02M", "m.pth"),
        "is a PyTorch file",
    ),
    "weights alone": (
        lambda _, folder: weights_alone(folder, "m.h5"),
        "the weights of a Keras model alone",
    ),
    "weights in .keras": (
        lambda _, folder: weights_alone(folder, "m.keras"),
        "the weights of a Keras model alone",
    ),
    "other HDF5": (lambda _, folder: plain_hdf5(folder), "an HDF5 file that holds no Keras model"),
    "half an archive": (
        lambda source, folder: damaged(source / "colours.keras", folder / "m.keras"),
        "is a damaged or incomplete zip file",
    ),
    "half an HDF5": (
        lambda source, folder: damaged(source / "colours.h5", folder / "m.h5"),
        "not a Keras model that loads: it is damaged or incomplete",
    ),
    "half a TFLite": (
        lambda source, folder: damaged(source / "colours.tflite", folder / "m.tflite"),
        "m.tflite: ",
    ),
    "half a gzip": (written(gzip.compress(bytes(9999))[:20], "m.gz"), "can't be unpacked"),
    "arrays": (written(array(np.zeros(3)), "m.npy"), "is a NumPy array"),
    "safetensors": (
        written((40).to_bytes(8, "little") + b'{"__metadata__":{}}', "m.safetensors"),
        "is a safetensors file",
    ),
    "a picture": (written(b"\x89PNG\r\n\x1a\n"), "is a PNG image"),
    "noise": (written(bytes(range(200, 256)) * 9), "is not a Keras model that loads"),
    "text": (written(b"hello"), "is not a Keras model that loads"),
    "zip of text": (written(archive_of(**{"a.txt": b"x"}), "m.zip"), "holds no model"),
    "zip of a pointer": (written(archive_of(**{"m.h5": POINTER}), "m.zip"), "Git LFS pointer"),
    "zip of two": (
        lambda source, folder: written(
            archive_of(
                a=(source / "colours.h5").read_bytes(), b=(source / "colours.h5").read_bytes()
            )
        )(source, folder),
        "holds several models, a, b",
    ),
}


@pytest.mark.parametrize("name", NAMED)
def test_other_file_is_called_what_it_is(
    name: str, colours_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, sentence = NAMED[name]
    path = make(colours_files, tmp_path)
    with pytest.raises(ConvertError, match=sentence) as caught:
        sources.model_file(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


# Keras 2's layers for functions between layers, in the place of one that does nothing: class,
# function, and arguments.
REVERSED = [{"class_name": "__ellipsis__"}, {"start": None, "stop": None, "step": -1}]
FUNCTIONS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "reversed": ("SlicingOpLambda", "__operators__.getitem", {"slice_spec": REVERSED}),
    "divided": ("TFOpLambda", "math.truediv", {"y": 255.0, "name": None}),
    "written": ("TFOpLambda", "io.write_file", {"contents": "x"}),
}


def keras_2(path: Path) -> None:
    """Rewrites a Keras 3 HDF5 file as Keras 2 wrote them, Teachable Machine's among them."""
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        for layer in every_layer(config):
            inner = layer["config"]
            inner["dtype"] = "float32"
            if layer["class_name"] == "InputLayer":
                inner["batch_input_shape"] = inner.pop("batch_shape")
                inner.pop("optional", None)
            if layer["class_name"] == "DepthwiseConv2D":
                inner["groups"] = 1
            if layer["class_name"] == "BatchNormalization":
                inner["axis"] = [3]
                inner["fused"] = True
            if layer["class_name"] == "Functional":
                layer["module"] = "keras.src.engine.functional"
                for ends in ("input_layers", "output_layers"):
                    inner[ends] = [inner[ends]] if isinstance(inner[ends][0], str) else inner[ends]
            kind, function, arguments = FUNCTIONS.get(inner["name"], ("", "", {}))
            if layer.get("inbound_nodes"):
                [tensor] = layer["inbound_nodes"][0]["args"]
                call = [*tensor["config"]["keras_history"], arguments]
                layer["inbound_nodes"] = [call if kind else [call]]
            if kind:
                layer["class_name"] = kind
                layer["config"] = {"name": inner["name"], "trainable": True, "function": function}
        file.attrs["model_config"] = json.dumps(config)
        file.attrs["keras_version"] = "2.4.0"


def every_layer(node: Any) -> list[Any]:
    """The configurations of a model and of all layers in it."""
    if isinstance(node, list):
        return [layer for item in node for layer in every_layer(item)]
    return [node, *every_layer(node["config"].get("layers", []))]


def teachable(tf: Any) -> Any:
    """A model of Teachable Machine's form: a MobileNetV2 and a head in Sequentials of their own."""
    layers = tf.keras.layers
    tf.keras.utils.set_random_seed(3)
    image = layers.Input((32, 32, 3), name="input_1")
    x = layers.ZeroPadding2D(((0, 1), (0, 1)), name="pad")(image)
    x = layers.Conv2D(16, 3, 2, use_bias=False, name="first")(x)
    x = layers.BatchNormalization(name="bn_first")(x)
    x = layers.ReLU(6.0, name="first_relu")(x)
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(x)
    x = layers.Conv2D(24, 1, name="project")(x)
    base = tf.keras.Sequential(
        [tf.keras.Model(image, x, name="model1"), layers.GlobalAveragePooling2D()]
    )
    head = [layers.Input((24,)), layers.Dense(100, "relu")]
    head.append(layers.Dense(2, "softmax", use_bias=False))
    return tf.keras.Sequential([layers.Input((32, 32, 3)), base, tf.keras.Sequential(head)])


def test_teachable_machine_loads_and_is_scaled(tf: Any, tmp_path: Path) -> None:
    model = teachable(tf)
    with suppress_native_output():
        model.save(tmp_path / "keras_model.h5")
    keras_2(tmp_path / "keras_model.h5")
    with pytest.raises((TypeError, ValueError)), suppress_native_output():
        tf.keras.models.load_model(tmp_path / "keras_model.h5", compile=False)
    (tmp_path / "labels.txt").write_bytes(b"0 Good Part\n1 Bad Part\n")
    command = ["keras", str(tmp_path / "keras_model.h5"), "--labels", str(tmp_path / "labels.txt")]
    command += ["--mode", "float32", "--out", str(tmp_path / "models"), "--accept", "Good Part"]
    assert main(command) == 0
    bundle = read_bundle(tmp_path / "models" / "keras_model" / "1")
    assert [label.name for label in bundle.labels] == ["Good Part", "Bad Part"]
    recipe = bundle.manifest.recipe
    assert recipe is not None
    assert recipe.scale == pytest.approx(1 / 127.5)
    assert recipe.offset == -1.0
    image = np.random.default_rng(0).uniform(-1, 1, (1, 32, 32, 3)).astype(np.float32)
    ours = run(bundle.model_path.read_bytes(), image)
    np.testing.assert_allclose(ours, model(image, training=False).numpy(), atol=1e-4)


def with_functions(tf: Any, *names: str) -> Any:
    layers = tf.keras.layers
    tf.keras.utils.set_random_seed(3)
    image = layers.Input((16, 16, 3))
    x = image
    for name in names:
        x = layers.Activation("linear", name=name)(x)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, activation="relu")(x))
    return tf.keras.Model(image, layers.Dense(3, "softmax")(x))


def test_functions_between_layers_of_keras_2(tf: Any, tmp_path: Path) -> None:
    model = with_functions(tf, "reversed", "divided")
    with suppress_native_output():
        model.save(tmp_path / "m.h5")
    keras_2(tmp_path / "m.h5")
    found = sources.model_file(tmp_path / "m.h5")
    assert found.shape.readings == ("0..255",)
    image = np.random.default_rng(0).uniform(0, 255, (1, 16, 16, 3)).astype(np.float32)
    expected = model(image[..., ::-1] / 255, training=False).numpy()
    np.testing.assert_allclose(run(found.data, image), expected, atol=1e-4)


def test_other_functions_are_not_run_from_a_file(tf: Any, tmp_path: Path) -> None:
    with suppress_native_output():
        with_functions(tf, "written").save(tmp_path / "m.h5")
    keras_2(tmp_path / "m.h5")
    with pytest.raises(ConvertError, match="is not a Keras model that loads"):
        sources.model_file(tmp_path / "m.h5")


def test_keras_archive_of_keras_2(tf: Any, tmp_path: Path) -> None:
    with suppress_native_output():
        teachable(tf).save(tmp_path / "m.keras")
    with zipfile.ZipFile(tmp_path / "m.keras") as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(contents["config.json"])
    for layer in every_layer(config):
        if layer["class_name"] == "DepthwiseConv2D":
            layer["config"]["groups"] = 1
        if layer["class_name"] == "Functional":
            layer["module"] = "keras.src.engine.functional"
    contents["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    assert sources.model_file(tmp_path / "m.keras").shape.classes == 2


def test_key_with_an_effect_is_not_dropped(tf: Any, tmp_path: Path) -> None:
    with suppress_native_output():
        teachable(tf).save(tmp_path / "m.h5")
    keras_2(tmp_path / "m.h5")
    with h5py.File(tmp_path / "m.h5", "r+") as file:
        config = json.loads(file.attrs["model_config"])
        for layer in every_layer(config):
            if layer["class_name"] == "DepthwiseConv2D":
                layer["config"]["groups"] = 2
        file.attrs["model_config"] = json.dumps(config)
    with pytest.raises(ConvertError, match="is not a Keras model that loads"):
        sources.model_file(tmp_path / "m.h5")


def run(model: bytes, image: np.ndarray) -> np.ndarray:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=model, num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image)
    interpreter.invoke()
    return np.asarray(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))


@pytest.mark.parametrize("form", ["m.keras", "m.h5", "saved"])
@pytest.mark.parametrize("policy", ["mixed_float16", "float16", "mixed_bfloat16", "float64"])
def test_other_floats_become_float32(tf: Any, tmp_path: Path, policy: str, form: str) -> None:
    layers = tf.keras.layers
    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        tf.keras.utils.set_random_seed(0)
        model = tf.keras.Sequential(
            [
                layers.Input((16, 16, 3)),
                layers.Rescaling(1 / 255),
                layers.Conv2D(8, 3),
                layers.BatchNormalization(),
                layers.DepthwiseConv2D(3),
                layers.GlobalAveragePooling2D(),
                layers.Dense(3, "softmax"),
            ]
        )
    finally:
        tf.keras.mixed_precision.set_global_policy(before)
    with suppress_native_output():
        if form == "saved":
            model.export(tmp_path / form, verbose=False)
        else:
            model.save(tmp_path / form)
    found = sources.model_file(tmp_path / form)
    assert found.shape.readings == ("0..255",)
    image = np.random.default_rng(0).uniform(0, 255, (1, 16, 16, 3)).astype(np.float32)
    expected = np.asarray(model(image, training=False), np.float32)
    np.testing.assert_allclose(run(found.data, image), expected, atol=0.02)


@pytest.mark.parametrize("mode", ["dynamic", "float16", "int8", "uint8"])
def test_quantised_tflite_stays_as_it_is(
    mode: str,
    colours_tflite: bytes,
    colours_frames: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, options = colours_tflite, ["--scale", "0.00784314", "--offset", "-1"]
    if mode in ("dynamic", "float16"):
        data = quantize(data, mode)
    else:
        from convert.data.frames import tensors
        from server.recognition.manifest import Recipe

        recipe = Recipe(width=32, height=32, scale=1 / 127.5, offset=-1.0)
        frames = tensors(sorted(colours_frames.glob("*/*")), recipe)
        data = quantize(data, "int8", calibration=frames, io_dtype=mode, taken=(-1.0, 1.0))
        # Its input's numbers say what pixels are.
        options = []
    (tmp_path / "m.tflite").write_bytes(data)
    (tmp_path / "labels.txt").write_text("blue\ngreen\nred\n")
    command = ["tflite", str(tmp_path / "m.tflite"), "--labels", str(tmp_path / "labels.txt")]
    command += ["--out", str(tmp_path / "models"), "--seconds", "0.1"]
    assert main([*command, *options, "--validate", str(colours_frames)]) == 0
    bundle = read_bundle(tmp_path / "models" / "m" / "1")
    assert bundle.model_path.read_bytes() == data
    stated = "int8" if mode == "uint8" else mode
    recipe_stated = bundle.manifest.recipe
    assert recipe_stated is not None
    assert bundle.manifest.quantization == stated
    assert recipe_stated.dtype == (mode if stated == "int8" else "float32")
    assert recipe_stated.scale == pytest.approx(1 / 127.5)
    assert bundle.manifest.report is not None
    assert bundle.manifest.report.top1 > 0.9
    capsys.readouterr()
    other = "float16" if mode == "dynamic" else "float32"
    assert main([*command, *options, "--mode", other]) == 1
    assert f"is quantised already ({stated}) and stays as it is" in capsys.readouterr().err
