"""Loads Keras models from .keras archives and HDF5, also those that Keras 2 wrote."""

import json
import re
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from convert.errors import ConvertError
from convert.sources.keras_2 import for_keras_3, function_layers
from convert.sources.shapes import first_line
from convert.terminal import suppress_native_output

_UNKNOWN_CLASS = re.compile(r"Could not locate class '[^']*'|Unknown layer: '?\w+'?")
_REFUSALS = (
    *(ValueError, TypeError, KeyError, OSError, AttributeError, ImportError, IndexError),
    *(NotImplementedError, RuntimeError, zipfile.BadZipFile),
)


def load_keras(tf: Any, path: Path, named: Path, *, hdf5: bool, run_lambdas: bool = False) -> Any:
    """Return the `keras.Model` in the file `path`, which messages call `named`.

    What Keras 2 wrote is rewritten for Keras 3 if that refuses it. run_lambdas: run the Python
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
        plain = file.with_stem("plain")
        shutil.copyfile(path, plain)
        if _rewrite(tf, plain, hdf5=hdf5):
            try:
                return _load(tf, plain, run_lambdas)
            except _REFUSALS as error:
                refused = error
    raise ConvertError(f"{named} is not a Keras model that loads: {_reason(refused)}")


def _load(tf: Any, file: Path, run_lambdas: bool) -> Any:
    with suppress_native_output():
        try:
            return tf.keras.models.load_model(
                file,
                custom_objects=function_layers(tf),
                compile=False,
                safe_mode=not run_lambdas,
            )
        except _REFUSALS as error:
            # `suppress_native_output` shows what it held back if anything but a ConvertError
            # passes.
            failed = error
    raise failed


def _reason(error: BaseException) -> str:
    text = str(error)
    if "Lambda" in text and "unsafe" in text.lower():
        return (
            "it has a Lambda layer, and the file brings its Python code: if you trust the file, run"
            " it with --run-lambdas; or export the model as a SavedModel (model.export(FOLDER))"
        )
    if "OpLambda" in text:
        return (
            "it computes with TensorFlow functions between its layers that can't be read from a"
            " Keras 2 file: export it as a SavedModel in the program that made it"
        )
    unknown = _UNKNOWN_CLASS.search(text)
    if unknown:
        return (
            f"{unknown[0]}; a model with layers of its own loads as a SavedModel"
            " (model.export(FOLDER))"
        )
    return first_line(error)


def _check_hdf5(path: Path, named: Path) -> None:
    """Raise ConvertError if an HDF5 file holds no whole Keras model."""
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


def _rewrite(tf: Any, file: Path, *, hdf5: bool) -> bool:
    """Rewrite the configuration in a copy of a model's file for Keras 3; False if it is damaged or
    needs no change."""
    import h5py

    config_file = "config.json"
    try:
        if hdf5:
            with h5py.File(file, "r+") as archive:
                config = json.loads(archive.attrs["model_config"])
                simple = for_keras_3(tf, config)
                archive.attrs["model_config"] = json.dumps(simple)
            return bool(simple != config)
        with zipfile.ZipFile(file) as source:
            contents = {name: source.read(name) for name in source.namelist()}
    except (ValueError, OSError, KeyError, zipfile.BadZipFile):
        return False
    config = json.loads(contents[config_file])
    simple = for_keras_3(tf, config)
    contents[config_file] = json.dumps(simple).encode()
    with zipfile.ZipFile(file, "w") as target:
        for name, content in contents.items():
            target.writestr(name, content)
    return bool(simple != config)
