"""Loads Keras models from .keras archives and HDF5, also those that Keras 2 wrote."""

import inspect
import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.errors import ConvertError
from convert.quiet import quiet
from convert.shapes import first_line

_UNKNOWN_CLASS = re.compile(r"Could not locate class '[^']*'|Unknown layer: '?\w+'?")
_REFUSALS = (
    *(ValueError, TypeError, KeyError, OSError, AttributeError, ImportError, IndexError),
    *(NotImplementedError, RuntimeError, zipfile.BadZipFile),
)
# Keys of Keras 2 that change nothing at these values; None, False and nothing never do.
_WITHOUT_EFFECT: Mapping[str, tuple[Any, ...]] = {
    "groups": (1,),
    "implementation": (0, 1, 2),
    "data_format": ("channels_last",),
    "dilation_rate": (1, [1], [1, 1]),
    "depth_multiplier": (1,),
    "fused": (True,),
    "virtual_batch_size": (0,),
    "stateful": (False,),
    "unroll": (False,),
}
# What every layer takes beside the parameters of its constructors.
_EVERY_LAYER = frozenset(
    {"activity_regularizer", "autocast", "batch_input_shape", "batch_shape", "dtype", "name"}
    | {"input_dim", "input_shape", "trainable"}
)


def load_keras(tf: Any, path: Path, named: Path, *, hdf5: bool, run_lambdas: bool = False) -> Any:
    """The `keras.Model` in the file `path`, which messages call `named`.

    Keys of Keras 2 without effect, which Keras 3 refuses, are left out. run_lambdas: run the Python
    code that the file brings for its Lambda layers. Raises ConvertError if it
    holds weights alone, is damaged, or needs what Keras does not have.
    """
    if hdf5:
        _check_hdf5(path, named)
    with tempfile.TemporaryDirectory() as folder:
        # Keras goes by the name.
        file = Path(folder) / ("model.h5" if hdf5 else "model.keras")
        try:
            file.symlink_to(path.resolve())
        except OSError:
            shutil.copyfile(path, file)
        try:
            return _load(tf, file, run_lambdas)
        except _REFUSALS as error:
            refused = error
        if hdf5:
            plain = Path(folder) / "plain.h5"
            shutil.copyfile(path, plain)
            if _simplify(tf, plain):
                try:
                    return _load(tf, plain, run_lambdas)
                except _REFUSALS as error:
                    refused = error
    raise ConvertError(f"{named} is not a Keras model that loads: {_reason(refused)}")


def _load(tf: Any, file: Path, run_lambdas: bool) -> Any:
    with quiet():
        try:
            return tf.keras.models.load_model(file, compile=False, safe_mode=not run_lambdas)
        except _REFUSALS as error:
            # `quiet` shows what it held back when anything but a ConvertError passes.
            failed = error
    raise failed


def _reason(error: BaseException) -> str:
    text = str(error)
    if "Lambda" in text and "unsafe" in text.lower():
        return (
            "it has a Lambda layer, and the file brings its Python code: if you trust the file, run"
            " it with --run-lambdas; or export the model as a SavedModel (model.export(FOLDER))"
        )
    if "TFOpLambda" in text or "SlicingOpLambda" in text:
        return (
            "it computes with TensorFlow functions between layers, which Keras 3 can't read from a"
            " Keras 2 file: export it as a SavedModel where it was made"
        )
    unknown = _UNKNOWN_CLASS.search(text)
    if unknown:
        return (
            f"{unknown[0]}; a model with layers of its own loads as a SavedModel"
            " (model.export(FOLDER))"
        )
    return first_line(error)


def _check_hdf5(path: Path, named: Path) -> None:
    """Raises ConvertError if an HDF5 file holds no whole Keras model."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            attributes, members = dict(file.attrs), set(file)
    except OSError:
        raise ConvertError(
            f"{named} is not a Keras model that loads: it is damaged or incomplete"
        ) from None
    if "model_config" in attributes:
        return
    if "layer_names" in attributes or members & {"layers", "_layer_checkpoint_dependencies"}:
        raise ConvertError(
            f"{named} has the weights of a Keras model alone, without the model: save the whole"
            " with model.save(FILE)"
        )
    raise ConvertError(f"{named} is an HDF5 file that holds no Keras model")


def _simplify(tf: Any, file: Path) -> bool:
    """Rewrites the configuration in an HDF5 file without keys that have no effect; True if that
    changed it."""
    import h5py

    with h5py.File(file, "r+") as archive:
        text = archive.attrs["model_config"]
        try:
            config = json.loads(text)
        except ValueError:
            return False
        simple = _simple(tf, config)
        if simple == config:
            return False
        archive.attrs["model_config"] = json.dumps(simple)
    return True


def _simple(tf: Any, node: Any) -> Any:
    if isinstance(node, list):
        return [_simple(tf, item) for item in node]
    if not isinstance(node, dict):
        return node
    node = {key: _simple(tf, value) for key, value in node.items()}
    layer = getattr(tf.keras.layers, str(node.get("class_name")), None)
    if inspect.isclass(layer) and isinstance(node.get("config"), dict):
        taken = _EVERY_LAYER | _parameters(layer)
        config = {
            key: value
            for key, value in node["config"].items()
            if key in taken or not _without_effect(key, value)
        }
        axis = config.get("axis")
        if node["class_name"] == "BatchNormalization" and isinstance(axis, list) and len(axis) == 1:
            config["axis"] = axis[0]
        node["config"] = config
    return node


def _parameters(layer: type) -> set[str]:
    return {
        name
        for kind in layer.__mro__
        if "__init__" in vars(kind)
        for name in inspect.signature(kind.__init__).parameters  # type: ignore[misc]
    }


def _without_effect(key: str, value: Any) -> bool:
    if value is None or value is False or value == [] or value == {}:
        return True
    # True equals 1.
    return any(type(value) is type(none) and value == none for none in _WITHOUT_EFFECT.get(key, ()))
