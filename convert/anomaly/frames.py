"""Frames through the feature model and the anomaly model: good ones, painted ones, and those of the
validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from convert.anomaly.defects import paint
from convert.anomaly.locator import shares_of
from convert.anomaly.network import CHANNELS, FEATURES, FINE, MAP, SCORE
from convert.anomaly.scoring import FINE_CHANNELS, Features
from convert.anomaly.statistics import SIDE, Floats
from convert.data.frames import decoded, float_spec
from convert.terminal import Terminal
from server.recognition.engines.litert import Interpreter
from server.recognition.manifest import Recipe
from server.recognition.preprocessing import apply_table, mean_grey, scaling_table, to_input_pixels
from server.system.resources import available_cores

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Seen:
    """Frames through a model. features: the coarse ones with CHANNELS. brightness: mean grey level
    0..255, [frames]."""

    features: Features
    brightness: Floats


def seen_by(
    model: bytes, paths: Sequence[Path], recipe: Recipe, terminal: Terminal, text: str
) -> Seen:
    """Return what the feature model makes of each frame. Raises ConvertError for one that can't be
    read."""

    def look(run: Run, number: int) -> tuple[Floats, Floats, float]:
        pixels = pixels_of(paths[number], recipe)
        outputs = run(pixels)
        return outputs[FEATURES], outputs[FINE], mean_grey(pixels)

    with terminal.bar(text, len(paths)) as advance:
        found = _each(model, recipe, len(paths), look, advance)
    features = Features(
        np.stack([coarse.reshape(-1, CHANNELS) for coarse, _, _ in found]),
        np.stack([fine.reshape(-1, FINE_CHANNELS) for _, fine, _ in found]),
    )
    return Seen(features, np.array([brightness for *_, brightness in found], np.float32))


def painted_features(
    model: bytes, paths: Sequence[Path], recipe: Recipe, count: int, seed: int, terminal: Terminal
) -> tuple[Floats, Floats]:
    """Return `count` frames with defects painted on good ones: coarse features [frames, places,
    CHANNELS], and the share of each place that is painted, [frames, SIDE, SIDE]."""

    def look(run: Run, number: int) -> tuple[Floats, NDArray[np.bool_]]:
        rng = np.random.default_rng((seed, number))
        frame = pixels_of(paths[number % len(paths)], recipe)
        other = pixels_of(paths[int(rng.integers(len(paths)))], recipe)
        painted, mask = paint(frame, other, rng)
        return run(painted)[FEATURES], mask

    with terminal.bar("Painting defects", count) as advance:
        found = _each(model, recipe, count, look, advance)
    features = np.stack([each.reshape(-1, CHANNELS) for each, _ in found])
    return features, shares_of(np.stack([mask for _, mask in found]))


def answers(model: bytes, paths: Sequence[Path], recipe: Recipe) -> tuple[Floats, Floats]:
    """Return scores [frames] and maps [frames, SIDE, SIDE] of an anomaly model."""
    found = _each(
        model, recipe, len(paths), lambda run, number: run(pixels_of(paths[number], recipe))
    )
    scores = np.array([float(outputs[SCORE].reshape(-1)[0]) for outputs in found], np.float32)
    maps = np.stack([outputs[MAP].reshape(SIDE, SIDE) for outputs in found])
    return scores, np.asarray(maps, np.float32)


def pixels_of(path: Path, recipe: Recipe) -> NDArray[np.uint8]:
    """Return a frame as the model's input takes it. Raises ConvertError if it can't be read."""
    return to_input_pixels(decoded(path, recipe), recipe)


# Pixels to the outputs by their signature's names.
Run = Callable[[NDArray[np.uint8]], dict[str, Floats]]


def _each(
    model: bytes,
    recipe: Recipe,
    count: int,
    look: Callable[[Run, int], T],
    on_frame: Callable[[], object] = lambda: None,
) -> list[T]:
    """Look at the frames 0 to `count` - 1 on all cores."""
    table = scaling_table(recipe, float_spec(recipe))
    threads = available_cores()
    interpreters = [Interpreter(Path("model.tflite"), 1, model) for _ in range(threads)]
    names = [spec.signature for spec in interpreters[0].outputs]

    def one(number: int) -> T:
        def run(pixels: NDArray[np.uint8]) -> dict[str, Floats]:
            outputs = interpreters[number % threads].run([apply_table(pixels, table)])
            return dict(zip(names, outputs, strict=True))

        found = look(run, number)
        on_frame()
        return found

    with ThreadPoolExecutor(threads) as workers:
        try:
            return list(workers.map(one, range(count)))
        finally:
            workers.shutdown(cancel_futures=True)
