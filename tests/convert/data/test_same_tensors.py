"""Training, evaluation and serving see the same tensor of a file, bit for bit."""

import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from images import encode, picture
from numpy.typing import NDArray
from PIL import Image
from tiny_models import write_bundle

from convert.data.frames import tensors
from convert.sources import imagenet
from convert.training.inputs import read_pixels, to_batch
from server.recognition.admission import Admission
from server.recognition.frame import Limits
from server.recognition.interpreter import InterpreterPool
from server.recognition.manifest import Recipe, read_bundle
from server.recognition.reader_guard import Sender
from server.recognition.recognizer import Recognizer, StageTimer

SIDE = 32
KINDS = (
    *("JPEG", "JPEG-progressive", "JPEG-grey", "JPEG-CMYK", "PNG", "PNG-grey", "PNG-alpha"),
    *("PNG-grey-alpha", "PNG-palette", "PNG-16-bit", "BMP", "TIFF", "WEBP", "PPM"),
)


def image_file(kind: str, width: int, height: int, orientation: int, seed: int) -> bytes:
    """A picture as a file of that kind, with an EXIF orientation where the format has one."""
    form, _, variant = kind.partition("-")
    pixels: NDArray[Any] = picture(width, height, seed)
    how: dict[str, Any] = {"quality": 90} if form == "JPEG" else {}
    if form in ("JPEG", "PNG", "TIFF", "WEBP"):
        exif = Image.Exif()
        exif[0x0112] = orientation
        how["exif"] = exif
    if variant == "progressive":
        how["progressive"] = True
    if variant == "16-bit":
        return encode(pixels[..., 0].astype(np.uint16) * 257, form, None, **how)
    modes = {"grey": "L", "alpha": "RGBA", "grey-alpha": "LA", "palette": "P", "CMYK": "CMYK"}
    return encode(pixels, form, modes.get(variant), **how)


def identity_model() -> bytes:
    """A .tflite whose output is its input, flattened."""
    tf = pytest.importorskip("tensorflow")
    module = tf.Module()
    function = tf.function(
        lambda image: tf.reshape(image, [1, SIDE * SIDE * 3]),
        input_signature=[tf.TensorSpec([1, SIDE, SIDE, 3], tf.float32)],
    ).get_concrete_function()
    return bytes(tf.lite.TFLiteConverter.from_concrete_functions([function], module).convert())


class Serving:
    """A real recogniser around a model whose output is its input tensor."""

    def __init__(self, folder: Path) -> None:
        model = folder / "identity.tflite"
        model.write_bytes(identity_model())
        labels = tuple(f"value{i}" for i in range(SIDE * SIDE * 3))
        bundle = read_bundle(write_bundle(folder / "identity" / "1", model, labels))
        self.folder, self._bundle = folder, bundle
        self._pool = InterpreterPool(bundle.model_path, 1)

    def tensor(self, data: bytes, recipe: Recipe) -> NDArray[np.float32]:
        manifest = msgspec.structs.replace(self._bundle.manifest, recipe=recipe)
        bundle = msgspec.structs.replace(self._bundle, manifest=manifest)
        recognizer = Recognizer(bundle, self._pool, Admission(1, 1), Limits())
        # A classifier's answer has probabilities, and the tensor's values are from -1 to 1.
        [output] = recognizer.outputs(data, StageTimer(), math.inf, Sender("", "", math.inf))
        return output.reshape(1, SIDE, SIDE, 3)


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Serving:
    return Serving(tmp_path_factory.mktemp("identity"))


@settings(
    max_examples=120,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    kind=st.sampled_from(KINDS),
    width=st.integers(1, 301),
    height=st.integers(1, 301),
    orientation=st.integers(1, 8),
    resize=st.sampled_from(("stretch", "crop", "letterbox")),
    seed=st.integers(0, 1000),
)
def test_training_and_serving_see_the_same_tensor(
    serving: Serving,
    kind: str,
    width: int,
    height: int,
    orientation: int,
    resize: Any,
    seed: int,
) -> None:
    """Training evaluation and serving see the same tensor."""
    recipe = msgspec.structs.replace(imagenet.recipe(SIDE), resize=resize)
    file = serving.folder / "frame"
    file.write_bytes(image_file(kind, width, height, orientation, seed))

    trained = to_batch([read_pixels(file, recipe, Limits())], recipe)
    [evaluated] = tensors([file], recipe)
    served = serving.tensor(file.read_bytes(), recipe)

    assert trained.dtype == evaluated.dtype == served.dtype == np.float32
    assert trained.tobytes() == evaluated.tobytes() == served.tobytes()
