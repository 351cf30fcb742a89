"""`python -m convert iris`: a small model of plain numbers, from data that scikit-learn brings.

Fisher's irises: four lengths in centimetres in, the probabilities of three species out. It serves
clients that send numbers in place of images.
"""

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convert.cli.arguments import version
from convert.errors import ConvertError, GateError
from convert.evaluation import metrics
from convert.terminal import suppress_native_output, tensorflow
from server.recognition.manifest import ClassReport, Manifest, Report
from server.values.labels import Label

if TYPE_CHECKING:
    from convert.evaluation.metrics import Indices

SEED = 0
TEST_SHARE = 0.2
EPOCHS = 100
LICENSE = "Apache-2.0; the data, BSD-3-Clause by scikit-learn, is R. A. Fisher's (1936)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `iris`."""
    parser.add_argument("--out", type=Path, default=Path("models"), help="folder (models)")
    parser.add_argument("--name", default="iris", help="of the model (iris)")
    parser.add_argument("--version", type=version, help="from 1 on (the next that is free)")


def run(args: argparse.Namespace) -> int:
    """Write the bundle. Returns the exit code; raises ConvertError."""
    from convert import bundle_writer as bundle

    version = args.version or bundle.next_version(args.out, args.name)
    bundle.check_free(args.out, args.name, version)
    data = load()
    network = train(data)
    model = convert(network)
    report = judge(model, network, data)
    if report.agreement != 1:
        raise GateError(
            f"no bundle was written: the converted model answers only {report.agreement} of the"
            " flowers as the network it came from does"
        )
    manifest = Manifest(
        name=args.name,
        version=version,
        task="tensor",
        sha256={},
        quantization="float32",
        source="Keras network on sklearn.datasets.load_iris",
        license=LICENSE,
        report=report,
    )
    folder = bundle.write_bundle(args.out, manifest, model, data.labels, {})
    print(f"right on {report.top1:.3f} of {report.images} flowers never trained on")
    print(f"wrote {folder}")
    return 0


class Irises:
    """Features, float32 [n, 4] in centimetres, and species, [n], of both parts; the names."""

    def __init__(self, splits: Any, names: Any) -> None:
        self.train_x, self.test_x = (np.asarray(x, np.float32) for x in splits[:2])
        self.train_y, self.test_y = (np.asarray(y, np.intp) for y in splits[2:])
        self.labels = tuple(Label(str(name)) for name in names)


def load() -> Irises:
    """Read the data and split it by TEST_SHARE. Raises ConvertError without scikit-learn."""
    try:
        from sklearn.datasets import load_iris
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ConvertError(
            f"{error.name} is not installed: pip install -r convert/requirements.txt"
        ) from None
    found = load_iris()
    splits = train_test_split(
        found.data,
        found.target,
        test_size=TEST_SHARE,
        random_state=SEED,
        stratify=found.target,
    )
    return Irises(splits, found.target_names)


def train(data: Irises) -> Any:
    """Train a network of one hidden layer that scales its inputs itself."""
    tf = tensorflow()
    with suppress_native_output():
        tf.keras.utils.set_random_seed(SEED)
        scaling = tf.keras.layers.Normalization()
        scaling.adapt(data.train_x)
        network = tf.keras.Sequential(
            [
                tf.keras.Input((data.train_x.shape[1],), name="features"),
                scaling,
                tf.keras.layers.Dense(16, "relu"),
                tf.keras.layers.Dense(len(data.labels), "softmax"),
            ]
        )
        network.compile(tf.keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
        network.fit(data.train_x, data.train_y, epochs=EPOCHS, batch_size=32, verbose=0)
    return network


def convert(network: Any) -> bytes:
    """Convert the network to a float32 .tflite whose signature is `features` -> `probabilities`."""
    tf = tensorflow()
    spec = tf.TensorSpec([None, network.input_shape[1]], tf.float32, name="features")
    with suppress_native_output(), tempfile.TemporaryDirectory() as folder:
        archive = tf.keras.export.ExportArchive()
        archive.track(network)
        archive.add_endpoint(
            "serve", lambda features: {"probabilities": network(features)}, input_signature=[spec]
        )
        archive.write_out(folder, verbose=False)
        return bytes(tf.lite.TFLiteConverter.from_saved_model(folder).convert())


def judge(model: bytes, network: Any, data: Irises) -> Report:
    """Evaluate both models on the test flowers."""
    with suppress_native_output():
        before = np.asarray(network(data.test_x))
    after = predict(model, data.test_x)
    hits, count = _hits(after, data.test_y), len(data.test_y)
    matrix = metrics.confusion(
        data.test_y, np.asarray(after.argmax(axis=1), np.intp), len(data.labels)
    )
    precision, recall = metrics.precision_recall(matrix)
    return Report(
        images=count,
        top1=hits / count,
        top1_float=_hits(before, data.test_y) / count,
        interval=metrics.wilson(hits, count),
        classes={
            label.name: ClassReport(
                images=int(matrix[i].sum()), precision=float(precision[i]), recall=float(recall[i])
            )
            for i, label in enumerate(data.labels)
        },
        confusion=tuple(tuple(int(n) for n in row) for row in matrix),
        agreement=float((before.argmax(axis=1) == after.argmax(axis=1)).mean()),
    )


def predict(model: bytes, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities, float32 [n, 3], by the runtime that the server uses."""
    from server.recognition.engines.litert import Interpreter

    with suppress_native_output():
        interpreter = Interpreter(Path("model.tflite"), 1, model)
        rows = [interpreter.run([features[i : i + 1]])[0] for i in range(len(features))]
    return np.concatenate(rows)


def _hits(probabilities: NDArray[np.float32], truth: "Indices") -> int:
    return int((probabilities.argmax(axis=1) == truth).sum())
