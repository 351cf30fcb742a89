"""Keras's own MobileNetV2 with its ImageNet weights and labels."""

import json
import os
import shutil
import urllib.request
from pathlib import Path
from typing import Any

from convert.errors import ConvertError
from convert.recipe.readings import READINGS, SIGNED
from convert.terminal import suppress_native_output, tensorflow
from server.recognition.manifest import Recipe
from server.values.labels import Label

CLASS_INDEX = "imagenet_class_index.json"
CLASS_INDEX_URL = (
    "https://storage.googleapis.com/download.tensorflow.org/data/imagenet_class_index.json"
)
WEIGHTS_URL = "https://storage.googleapis.com/tensorflow/keras-applications/mobilenet_v2/"
ALPHAS = (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)
SIZES = (96, 128, 160, 192, 224)
LARGEST = SIZES[-1]
LICENSE = "Apache-2.0"


def cache_folder() -> Path:
    """Return the folder of Keras's downloads: KERAS_HOME/models, or ~/.keras/models.

    Reads the variable at each call; Keras itself reads it once, when it is imported.
    """
    return Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "models"


def recipe(size: int) -> Recipe:
    """MobileNetV2's input: RGB, stretched to size x size, scaled to -1..1."""
    reading = READINGS[SIGNED]
    return Recipe(width=size, height=size, scale=reading.scale, offset=reading.offset)


def model(alpha: float = 1.0, size: int = 224, weights: str = "imagenet") -> Any:
    """`keras.applications.MobileNetV2` with its classifier of 1000.

    weights: `imagenet` (Keras has them for ALPHAS at SIZES), `none` (random), or a file that Keras
    wrote. Raises ConvertError if the weights are not there, can't be fetched or don't fit.
    """
    if size < 32:
        raise ConvertError(f"the size {size} is too small: MobileNetV2 takes at least 32 pixels")
    if weights == "imagenet":
        if alpha not in ALPHAS or size not in SIZES:
            raise ConvertError(
                f"Keras has no ImageNet weights for alpha {alpha:g} at {size} pixels: alpha is one"
                f" of {', '.join(f'{a:g}' for a in ALPHAS)} and the size one of"
                f" {', '.join(map(str, SIZES))}; --weights none starts from random ones"
            )
        name = f"mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{alpha}_{size}.h5"
        weights = str(require_file(name, WEIGHTS_URL + name))
    elif weights != "none" and not Path(weights).is_file():
        raise ConvertError(f"the weights {weights} are neither imagenet, none nor a file")
    tf = tensorflow()
    with suppress_native_output():
        try:
            return tf.keras.applications.MobileNetV2(
                input_shape=(size, size, 3),
                alpha=alpha,
                weights=None if weights == "none" else weights,
            )
        except (ValueError, OSError, KeyError) as error:
            line = str(error).strip().splitlines()[0]
            raise ConvertError(
                f"MobileNetV2 of alpha {alpha:g} can't take the weights {weights}: {line}"
            ) from None


def labels() -> tuple[Label, ...]:
    """Return the 1000 ImageNet classes in Keras's order, with their WordNet ids.

    Raises ConvertError if Keras's class index is not there and can't be fetched.
    """
    index = json.loads(require_file(CLASS_INDEX, CLASS_INDEX_URL).read_text("utf-8"))
    return tuple(Label(index[str(i)][1], index[str(i)][0]) for i in range(len(index)))


def require_file(name: str, url: str) -> Path:
    """Return the file in `cache_folder`, fetched if it is not there yet; Keras raises a bare
    Exception if a download fails. Raises ConvertError that names the place of the file."""
    path = cache_folder() / name
    if path.is_file():
        return path
    # A name that no one else looks for, until the file is whole.
    partial = path.with_name(f"{name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The addresses are constants of this program.
        with urllib.request.urlopen(url, timeout=30) as answer, partial.open("wb") as file:  # nosec B310
            shutil.copyfileobj(answer, file)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        reason = getattr(error, "reason", None) or error
        raise ConvertError(
            f"{path} is not there, and {url} can't be fetched ({reason}): point KERAS_HOME at a"
            " Keras home that has it"
            + ("" if name == CLASS_INDEX else ", or start from random weights with --weights none")
        ) from None
    return path
