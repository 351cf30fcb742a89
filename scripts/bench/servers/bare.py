"""The bare limit: decode, preprocess and invoke on every core, in one process, without a server.
Of a detector or an anomaly model the reading of its outputs is part of it.

    python -m bench.servers.bare BUNDLE

Reads a JSON object a line from standard input, {"frame": FILE, "seconds": S, "exact": false},
recognises the frame over and over for so long with as many threads and interpreters as cores, and
answers in a line: frames, seconds, latencies in ms, the label. `exact` decodes every pixel and
resizes by area, as the peers do.
"""

import json
import sys
import threading
import time
from pathlib import Path

import msgspec
import numpy as np

from server.recognition import frame
from server.recognition.answers import Options
from server.recognition.engines.engine import EngineOptions
from server.recognition.images.views import views
from server.recognition.interpreter import InterpreterPool
from server.recognition.manifest import Bundle, EngineChoice, Recipe
from server.recognition.preprocessing import (
    Tensor,
    apply_table,
    placement,
    scaling_table,
    to_input_pixels,
)
from server.recognition.tasks.task import Result, find_task
from server.store.bundles.layout import open_bundle
from server.system import process
from server.system.resources import available_cores


class Steps:
    """The bare steps of one frame over a pool of interpreters."""

    def __init__(self, bundle: Bundle, pool: InterpreterPool, *, exact: bool) -> None:
        if bundle.manifest.recipe is None:
            raise ValueError(f"{bundle.folder} has no recipe")
        if len(views(bundle.manifest.recipe)) > 1:
            raise ValueError(f"{bundle.folder} is shown several views of a frame")
        self.bundle, self.pool = bundle, pool
        self.recipe = full_decode(bundle.manifest.recipe) if exact else bundle.manifest.recipe
        [image] = [spec for spec in pool.inputs if spec.name not in self.recipe.zero_inputs]
        self._table, self._limits = scaling_table(self.recipe, image), frame.Limits()
        self._zeros = [
            None if spec is image else np.full(spec.shape, spec.zero_point, spec.dtype)
            for spec in pool.inputs
        ]
        self._reader = find_task(bundle.manifest.task).make_reader(bundle, pool)
        # Scores of labels are an answer as they are; other outputs have to be read.
        self.work = self.run if bundle.manifest.task == "classify" else self.read

    def run(self, data: bytes, *, alone: bool = False) -> tuple[Tensor, ...]:
        """An image file's bytes -> the model's outputs; `alone` as InterpreterPool.lease has it."""
        return self._invoke(frame.decode(data, self.recipe, self._limits), alone=alone)

    def read(self, data: bytes) -> Result:
        """An image file's bytes -> what it shows."""
        decoded = frame.decode_frame(data, self.recipe, self._limits)
        height, width = decoded.pixels.shape[:2]
        values = self._reader.decode(self._invoke(decoded.pixels, alone=False))
        place = placement(decoded.size, (width, height), self.recipe)
        return self._reader.result(values, Options(), place)

    def _invoke(self, pixels: frame.Pixels, *, alone: bool) -> tuple[Tensor, ...]:
        tensor = apply_table(to_input_pixels(pixels, self.recipe), self._table, self.recipe.layout)
        inputs = [tensor if zeros is None else zeros for zeros in self._zeros]
        with self.pool.lease(alone=alone) as interpreter:
            return interpreter.run(inputs)

    def label(self, data: bytes) -> str:
        """The best label of an image; '' if nothing is found in it."""
        best = self.read(data).best
        return best.label if best else ""


def full_decode(recipe: Recipe) -> Recipe:
    """`recipe` with every pixel decoded and an area resize, the documented idiom of a user."""
    return msgspec.structs.replace(recipe, decode="exact", interpolation="area")


def _work(steps: Steps, data: bytes, until: float, latencies: list[float]) -> None:
    now = time.perf_counter()
    while now < until:
        steps.work(data)
        before, now = now, time.perf_counter()
        latencies.append(now - before)


def limit(steps: Steps, data: bytes, seconds: float) -> dict[str, float | int]:
    """Frames recognised in `seconds` by as many threads as `steps` has interpreters."""
    kept: list[list[float]] = [[] for _ in range(steps.pool.size)]
    start = time.perf_counter()
    threads = [
        threading.Thread(target=_work, args=(steps, data, start + seconds, mine)) for mine in kept
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed, milliseconds = time.perf_counter() - start, np.concatenate(kept) * 1000
    p50, p99 = np.percentile(milliseconds, [50, 99])
    return {"good": len(milliseconds), "seconds": elapsed, "p50": float(p50), "p99": float(p99)}


def main(folder: Path, engine: EngineChoice = "auto") -> None:
    """Answers commands until standard input ends."""
    process.configure_process()
    bundle = open_bundle(folder)
    options = EngineOptions(engine=engine)
    pool = InterpreterPool(bundle.model_path, available_cores(), 1, options=options)
    both = {exact: Steps(bundle, pool, exact=exact) for exact in (False, True)}
    for line in sys.stdin:
        command = json.loads(line)
        steps, data = both[command["exact"]], Path(command["frame"]).read_bytes()
        answer = {**limit(steps, data, command["seconds"]), "label": steps.label(data)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])  # type: ignore[arg-type]
