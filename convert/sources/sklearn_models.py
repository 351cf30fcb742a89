"""A classifier of scikit-learn as a bundle of numbers, by skl2onnx. The device sees no pickle."""

from pathlib import Path
from typing import Any

import numpy as np

from convert import bundle_writer
from convert.data.labels import read_labels
from convert.errors import ConvertError
from convert.sources.onnx_models import import_onnx
from server.recognition.manifest import Manifest
from server.values.wording import counted

# Rows of random numbers on which both models are compared.
COMPARED = 500
# scikit-learn computes in float64.
DIFFERENCE_MAX = 1e-3
# What skl2onnx raises, beside errors of its own, for models that it can't convert.
FAULTS = (RuntimeError, NameError, ValueError, LookupError)


def load_pickle(path: Path, *, trusted: bool) -> Any:
    """Return the classifier in a file. Raises ConvertError if the user does not trust the file,
    which may do anything when it is read, and if it holds no classifier with probabilities."""
    if not trusted:
        raise ConvertError(
            f"{path} is a pickle, which runs any code that it brings when it is read: if you know"
            " who made it, add --trust-pickle"
        )
    try:
        import joblib
    except ImportError as error:
        raise ConvertError(
            f"{error.name} is not installed: pip install -r convert/requirements-onnx.txt"
        ) from None
    try:
        found = joblib.load(path)
    except OSError as error:
        raise ConvertError(f"{path} can't be read: {error.strerror or error}") from None
    except Exception as error:  # noqa: BLE001 - a pickle raises whatever it likes
        reason = next(iter(str(error).splitlines()), "")
        raise ConvertError(
            f"{path} is no pickle of a model: {type(error).__name__} {reason}"
        ) from None
    if not all(hasattr(found, each) for each in ("predict_proba", "n_features_in_", "classes_")):
        raise ConvertError(
            f"{path} holds a {type(found).__name__}, and no trained classifier of scikit-learn with"
            " predict_proba"
        )
    # Those of several answers have a list of classes for each.
    if any(np.ndim(each) for each in found.classes_):
        raise ConvertError(
            f"{path} holds a {type(found).__name__} of several answers; a bundle has one"
        )
    return found


def to_onnx(classifier: Any) -> bytes:
    """Return a classifier as an ONNX model: `features` float32 [n, features] to `probabilities`
    float32 [n, classes]. Raises ConvertError if it has no such form."""
    onnx = import_onnx()
    try:
        import skl2onnx
        from skl2onnx.common.data_types import FloatTensorType
        from skl2onnx.common.exceptions import MissingConverter, MissingShapeCalculator
    except ImportError as error:
        raise ConvertError(
            f"{error.name} is not installed: pip install -r convert/requirements-onnx.txt"
        ) from None
    features = [("features", FloatTensorType([None, classifier.n_features_in_]))]
    try:
        model = skl2onnx.convert_sklearn(
            classifier, initial_types=features, options={id(classifier): {"zipmap": False}}
        )
    except (MissingConverter, MissingShapeCalculator, *FAULTS) as error:
        reason = next(iter(str(error).splitlines()), "")
        raise ConvertError(
            f"skl2onnx can't convert a {type(classifier).__name__}: {reason}"
        ) from None
    [answer] = [each for each in model.graph.output if each.name == "probabilities"]
    del model.graph.output[:]
    model.graph.output.append(answer)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def largest_difference(classifier: Any, model: bytes) -> float:
    """Return the largest difference of a probability between both models on random numbers of
    several sizes."""
    from server.recognition.engines.onnx import OnnxRuntime

    rng = np.random.default_rng(0)
    count = classifier.n_features_in_
    rows = rng.normal(0, 1, (COMPARED, count)) * 10.0 ** rng.integers(-1, 3, (COMPARED, 1))
    rows = np.abs(rows).astype(np.float32)
    [session] = OnnxRuntime().load(Path("model.onnx"), model, 1, 1)
    [ours] = session.run([rows])
    theirs = classifier.predict_proba(rows)
    # A tree's threshold may lie between a number and its rounding: one row in a hundred may differ.
    apart = np.abs(ours - theirs).max(axis=1)
    return float(np.quantile(apart, 0.99))


def build_sklearn(
    file: Path,
    labels_file: Path,
    *,
    trusted: bool,
    out: Path,
    name: str,
    version: int | None,
    source: str,
    license_text: str,
) -> int:
    """Write the bundle, print its folder, and return the exit code 0. Raises ConvertError."""
    labels = read_labels(labels_file)
    number = version or bundle_writer.next_version(out, name)
    bundle_writer.check_free(out, name, number)
    classifier = load_pickle(file, trusted=trusted)
    if len(labels) != len(classifier.classes_):
        raise ConvertError(
            f"there {'is' if len(labels) == 1 else 'are'} {counted(len(labels), 'label')}, but the"
            f" model answers {len(classifier.classes_)}: {', '.join(map(str, classifier.classes_))}"
        )
    model = to_onnx(classifier)
    apart = largest_difference(classifier, model)
    if apart > DIFFERENCE_MAX:
        raise ConvertError(
            f"the ONNX model answers differently: by {apart:.4f} in probability on random numbers"
        )
    print(f"answers as scikit-learn's on {COMPARED} rows of random numbers, within {apart:.1e}")
    manifest = Manifest(
        name=name,
        version=number,
        task="tensor",
        sha256={},
        quantization="float32",
        source=source,
        license=license_text,
    )
    folder = bundle_writer.write_bundle(out, manifest, model, labels, {}, "model.onnx")
    print(f"wrote {folder}")
    return 0
