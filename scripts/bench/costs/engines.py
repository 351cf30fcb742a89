"""engines.py MODELS FRAMES: one network in every mode through every engine, as a table in Markdown.

MODELS holds the bundles net-float32, net-dynamic, net-int8 of `convert imagenet`, and onnx-float32,
onnx-int8 of `convert onnx`, from what `onnx_network.py` makes of net-float32: all of Keras's
MobileNetV2. FRAMES is a folder of images, on which the answers are compared with Keras's own;
KERAS_HOME has its weights.
"""

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from bench.clients.forms import build  # noqa: E402
from bench.clients.load import Figures, wrk  # noqa: E402
from bench.inputs import lay_out  # noqa: E402
from bench.servers.lineside import Bare, start_server  # noqa: E402
from convert.data.frames import decoded  # noqa: E402
from server.recognition.engines.engine import EngineOptions, find_engine  # noqa: E402
from server.recognition.engines.engine import Session as EngineSession  # noqa: E402
from server.recognition.manifest import Bundle, EngineName, read_bundle, read_model  # noqa: E402
from server.recognition.preprocessing import (  # noqa: E402
    Tensor,
    dequantize,
    to_input_pixels,
    to_tensor,
)

ROWS: tuple[tuple[EngineName, str], ...] = (
    *(("litert", f"net-{mode}") for mode in ("float32", "dynamic", "int8")),
    *(("onnxruntime", f"onnx-{mode}") for mode in ("float32", "int8")),
    *(("openvino", f"net-{mode}") for mode in ("float32", "dynamic", "int8")),
    *(("openvino", f"onnx-{mode}") for mode in ("float32", "int8")),
)
CLIENTS = 8


@dataclass
class Row:
    """One bundle by one engine, and its figures: ms of an inference on one thread; frames a second
    and CPU ms a frame, alone and behind the server, by round."""

    engine: EngineName
    bundle: Bundle
    session: EngineSession
    ms: list[float] = field(default_factory=list)
    alone: list[Figures] = field(default_factory=list)
    served: list[Figures] = field(default_factory=list)
    memory: float = 0.0
    same: float = 0.0
    apart: float = 0.0

    def tensor(self, path: Path) -> Tensor:
        """An image file as the model's input."""
        recipe = self.bundle.manifest.recipe
        assert recipe is not None
        return to_tensor(decoded(path, recipe), recipe, self.session.inputs[0])

    def probabilities(self, path: Path) -> NDArray[np.float32]:
        """Return the probabilities that the model gives an image file."""
        output = self.session.run([self.tensor(path)])[0]
        return np.asarray(dequantize(output, self.session.outputs[0])[0])


def rows(models: Path) -> list[Row]:
    """The rows of the table, their models loaded."""
    made = []
    for engine, name in ROWS:
        bundle = read_bundle(models / name / "1")
        path = bundle.model_path
        [session] = find_engine(path, EngineOptions(engine=engine)).load(
            path, read_model(path), 1, 1
        )
        made.append(Row(engine, bundle, session))
    return made


def measure_latency(table: list[Row], frame: Path, count: int) -> None:
    """Run each model in turn, twice, and time the second."""
    tensors = [row.tensor(frame) for row in table]
    for _ in range(count):
        for row, tensor in zip(table, tensors, strict=True):
            row.session.run([tensor])
            start = time.perf_counter()
            row.session.run([tensor])
            row.ms.append((time.perf_counter() - start) * 1000)


def measure_servers(table: list[Row], frame: Path, rounds: int, seconds: float) -> None:
    """Each row's engine alone and behind the server, in turns."""
    request = build("raw", "file", frame.read_bytes())
    python = Path(sys.executable)
    for row in table:
        folder = row.bundle.folder
        with (
            tempfile.TemporaryDirectory() as scratch,
            Bare(python, folder, row.engine) as bare,
            start_server(
                python,
                lay_out(folder, Path(scratch) / "models", exact=False),
                Path(scratch) / "log",
                engine=row.engine,
                journal="false",
            ) as server,
        ):
            label = str(bare.measure(frame, 0.5)["label"])
            server.await_answer(request, label)

            def served(seconds: float, label: str = label) -> Figures:
                at = Path(scratch)
                return wrk(server.url, request, label, CLIENTS, at, server.cpu_seconds, seconds)

            served(1.0)
            for _ in range(rounds):
                row.alone.append(bare.measure(frame, seconds))
                row.served.append(served(seconds))
            row.memory = server.memory()["rss"]


def compare_with_keras(table: list[Row], frames: list[Path]) -> None:
    """Compare the probabilities of each row with those of Keras's own model on the same pixels."""
    from convert.sources import imagenet

    recipe = imagenet.recipe(224)
    keras = imagenet.model()
    pixels = np.stack([to_input_pixels(decoded(path, recipe), recipe) for path in frames])
    want = np.asarray(keras.predict(pixels / np.float32(127.5) - 1, verbose=0))
    for row in table:
        found = np.stack([row.probabilities(path) for path in frames])
        row.same = float((found.argmax(1) == want.argmax(1)).mean())
        row.apart = float(np.abs(found - want).max())


def _median(figures: list[Figures], key: str) -> float:
    return float(statistics.median(each[key] for each in figures))


def shown(table: list[Row]) -> str:
    """The table."""
    lines = [
        "| engine | file | mode | MB | ms, one thread | frames a second alone | behind the server |"
        " CPU ms a frame alone | ratio behind the server | server's memory, MB"
        " | same label as Keras | largest difference |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in table:
        path = row.bundle.model_path
        turns = zip(row.served, row.alone, strict=True)
        ratio = statistics.median(served["cpu_ms"] / alone["cpu_ms"] for served, alone in turns)
        lines.append(
            f"| {row.engine} | `{path.suffix}` | {row.bundle.manifest.quantization}"
            f" | {path.stat().st_size / 1e6:.1f} | {statistics.median(row.ms):.2f}"
            f" | {_median(row.alone, 'fps'):.1f} | {_median(row.served, 'fps'):.1f}"
            f" | {_median(row.alone, 'cpu_ms'):.1f} | {ratio:.2f} | {row.memory:.0f}"
            f" | {row.same:.1%} | {row.apart:.4f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path)
    parser.add_argument("frames", type=Path)
    parser.add_argument("--frame", type=Path, required=True, help="that is posted: a 720p JPEG")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--runs", type=int, default=100, help="inferences of each for the latency")
    args = parser.parse_args()
    table = rows(args.models)
    measure_latency(table, args.frame, args.runs)
    measure_servers(table, args.frame, args.rounds, args.seconds)
    compare_with_keras(table, sorted(args.frames.rglob("*.jpg")))
    print(shown(table))


if __name__ == "__main__":
    main()
