"""Measures if a classifier knows that a frame is foreign: answers as the server would give them.

    python scripts/familiarity.py BUNDLE OWN OTHER [--photographs FOLDER] [--rounds N]

OWN: held-back frames of the bundle's product, one folder a class. OTHER: frames of another
product; flat surfaces are drawn as a third. Prints how many frames of each kind are unfamiliar,
and how many pass; and what the output costs, in N rounds beside the same model without it.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.latency import measure as take_turns
from line_camera.surface import KINDS, render_surface

from convert.bundle_writer import load
from convert.data.frames import tensors
from convert.quantization.editor import GraphEditor
from server.recognition.answers import Options
from server.recognition.engines.litert import Interpreter
from server.recognition.recognizer import Recognizer

Picture = NDArray[np.uint8]

SHARED_FRAMES = Path(__file__).resolve().parents[2] / "shared" / "frames"
CROPS_PER_PHOTOGRAPH, OTHERS, SURFACES, HALVES, BLURRED, INVERTED = 6, 60, 30, 40, 30, 10
SIZE = (480, 640, 3)
HELD_BACK, NEGATIVES = "held back", "inverted"


@dataclass
class Count:
    """Answers to the frames of one kind."""

    frames: int = 0
    unfamiliar: int = 0
    passed: int = 0


def read(path: Path) -> Picture:
    """A picture file as BGR uint8 [height, width, 3]. Raises OSError if it is none."""
    picture = cv2.imread(str(path))
    if picture is None:
        raise OSError(f"{path} is not a picture")
    return np.asarray(picture, np.uint8)


def pictures(folder: Path) -> list[Path]:
    """The picture files below a folder, sorted."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in {".jpg", ".png", ".bmp"})


def foreign_frames(
    own: list[Path], other: list[Path], photographs: list[Path], seed: int = 0
) -> Iterator[tuple[str, Picture]]:
    """(kind, BGR uint8 picture) of each foreign frame. The kind NEGATIVES is that of the product's
    own frames as photographic negatives."""
    rng = np.random.default_rng(seed)
    for path in photographs:
        picture = read(path)
        yield "photograph", picture
        for share in rng.uniform(0.4, 1, CROPS_PER_PHOTOGRAPH):
            height, width = (int(side * share) for side in picture.shape[:2])
            top = int(rng.integers(picture.shape[0] - height + 1))
            left = int(rng.integers(picture.shape[1] - width + 1))
            yield "crop of a photograph", picture[top : top + height, left : left + width]
    for index in _some(rng, other, OTHERS):
        yield "another product", read(other[index])
    # Of its own generator, so that the other kinds are the same frames whatever is drawn here.
    surfaces = np.random.default_rng([seed, 1])
    for number in range(SURFACES):
        drawn, _ = render_surface(KINDS[number % len(KINDS)], surfaces)
        yield "surface, drawn", np.asarray(drawn[..., ::-1], np.uint8)
    for level, kind in ((0, "black"), (255, "white"), (128, "grey")):
        yield kind, np.full(SIZE, level, np.uint8)
    for spread in (20, 60, 100):
        yield "noise", _clipped(rng.normal(128, spread, SIZE))
        yield "noise", _clipped(np.repeat(rng.normal(128, spread, (*SIZE[:2], 1)), 3, axis=2))
    for number, index in enumerate(_some(rng, own, HALVES)):
        yield "half a frame beside black", _half(read(own[index]), number)
    for number, index in enumerate(_some(rng, own, BLURRED)):
        picture = read(own[index])
        sigma = (12, 16, 20, 28)[number % 4] / 640 * picture.shape[1]
        yield "blurred beyond use", np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma), np.uint8)
    for index in _some(rng, own, INVERTED):
        yield NEGATIVES, 255 - read(own[index])


def _some(rng: np.random.Generator, paths: list[Path], count: int) -> NDArray[np.intp]:
    return np.asarray(rng.choice(len(paths), min(count, len(paths)), replace=False), np.intp)


def _clipped(values: NDArray[Any]) -> Picture:
    return np.asarray(np.clip(values, 0, 255), np.uint8)


def _half(picture: Picture, side: int) -> Picture:
    """A copy of which the left, right, upper or lower half is black, by `side` % 4."""
    out, height, width = picture.copy(), picture.shape[0] // 2, picture.shape[1] // 2
    (out[:, :width], out[:, width:], out[:height], out[height:])[side % 4][:] = 0
    return out


def count_answers(model: Recognizer, frames: Iterator[tuple[str, bytes]]) -> dict[str, Count]:
    """Counts of the model's answers to (kind, encoded picture), by kind."""
    counts: dict[str, Count] = {}
    for kind, data in frames:
        answer = model.recognize(data, Options())
        count = counts.setdefault(kind, Count())
        count.frames += 1
        count.unfamiliar += getattr(answer.details, "familiar", None) is False
        count.passed += answer.verdict == "pass"
    return counts


def measure(
    model: Recognizer, own: list[Path], other: list[Path], photographs: list[Path]
) -> dict[str, Count]:
    """Counts by kind: HELD_BACK for the product's own frames, and each kind of foreign ones."""
    mine = count_answers(model, ((HELD_BACK, path.read_bytes()) for path in own))
    foreign = foreign_frames(own, other, photographs)
    # Large photographs among them take as long to compress as to recognise.
    encoded = ((kind, cv2.imencode(".bmp", one)[1].tobytes()) for kind, one in foreign)
    return mine | count_answers(model, encoded)


def total(counts: dict[str, Count]) -> Count:
    """The sum over the kinds of foreign frames, without NEGATIVES."""
    out = Count()
    for kind, count in counts.items():
        if kind not in (HELD_BACK, NEGATIVES):
            out.frames += count.frames
            out.unfamiliar += count.unfamiliar
            out.passed += count.passed
    return out


def without_output(model: bytes) -> bytes:
    """A .tflite without its last output, and without the operators that only it needs."""
    editor = GraphEditor(model)
    graph = editor.graph
    *outputs, last = (int(i) for i in graph.outputs)
    graph.outputs, needed = outputs, set(outputs)
    operators: list[Any] = []
    for op in reversed(graph.operators):
        if needed.intersection(int(i) for i in op.outputs):
            needed.update(int(i) for i in op.inputs)
            operators.insert(0, op)
    graph.operators = operators
    for signature in editor.model.signatureDefs or ():
        signature.outputs = [each for each in signature.outputs if each.tensorIndex != last]
    return editor.written()


def cost(model: Recognizer, frames: list[Path], rounds: int) -> str:
    """Return the cost of the output for a frame, a line of text: the median of the differences
    between neighbours, of the model with it and without it in turns on one thread."""
    path = model.bundle.model_path
    data = path.read_bytes()
    tensor = next(tensors(frames[:1], model.recipe, model.pool.inputs[0]))
    models = {"with": Interpreter(path, 1), "without": Interpreter(path, 1, without_output(data))}
    taken = take_turns({name: partial(each.run, [tensor]) for name, each in models.items()}, rounds)
    added = float(np.median(np.subtract(taken["with"], taken["without"])))
    answers = [model.recognize(frame.read_bytes(), Options()) for frame in frames[:200]]
    whole = 1e3 * float(np.median([answer.timing["total"] for answer in answers]))
    return (
        f"the output adds {added:.3f} ms to {np.median(taken['without']):.3f} ms of the model:"
        f" {added / whole:.1%} of a frame's {whole:.2f} ms"
    )


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("bundle", "own", "other"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--photographs", type=Path, default=SHARED_FRAMES)
    parser.add_argument("--rounds", type=int, default=2000)
    args = parser.parse_args()
    own, other, photographs = (
        pictures(folder) for folder in (args.own, args.other, args.photographs)
    )
    model = load(args.bundle)
    counts = measure(model, own, other, photographs)
    print(f"{'frames':28}{'number':>8}{'unfamiliar':>12}{'pass':>6}")
    for kind, count in [*counts.items(), (f"foreign, without {NEGATIVES}", total(counts))]:
        print(f"{kind:28}{count.frames:8}{count.unfamiliar:12}{count.passed:6}")
    print(cost(model, own, args.rounds))


if __name__ == "__main__":
    main()
