"""Frames a second through one interpreter resized to batches, beside as many through the pool.

    python scripts/bench/batching.py [--bundle FOLDER] [--rounds N]

Both use all cores: the batch by an interpreter of as many threads as cores, the single frames by
an interpreter of one thread a core. Rounds are interleaved; the median of their ratios counts.
"""

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[0:1] = [str(ROOT), str(ROOT / "scripts")]

from ai_edge_litert.interpreter import Interpreter  # noqa: E402

from server.system import process  # noqa: E402
from server.system.resources import available_cores  # noqa: E402

BATCHES = (2, 4, 8)


def batched(model: bytes, size: int, threads: int) -> Callable[[], None]:
    """One call infers `size` frames at once."""
    interpreter = Interpreter(model_content=model, num_threads=threads)
    given = interpreter.get_input_details()[0]
    interpreter.resize_tensor_input(given["index"], [size, *given["shape"][1:]])
    interpreter.allocate_tensors()
    frames = np.random.default_rng(0).random([size, *given["shape"][1:]], np.float32)
    answer = interpreter.get_output_details()[0]["index"]

    def run() -> None:
        interpreter.set_tensor(given["index"], frames.astype(given["dtype"]))
        interpreter.invoke()
        interpreter.get_tensor(answer)

    return run


def frames_a_second(runs: list[Callable[[], None]], size: int, seconds: float) -> float:
    """Frames a second of `size` frames a call, each of `runs` in a thread of its own."""
    done = [0] * len(runs)
    until = time.perf_counter() + seconds

    def work(place: int) -> None:
        while time.perf_counter() < until:
            runs[place]()
            done[place] += size

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(runs))]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / (time.perf_counter() - start)


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=ROOT / "models" / "parts" / "1")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0)
    args = parser.parse_args()
    process.configure_process()
    model, cores = (args.bundle / "model.tflite").read_bytes(), available_cores()
    pool = [batched(model, 1, 1) for _ in range(cores)]
    batches = {size: batched(model, size, cores) for size in BATCHES}
    speeds: dict[int, list[float]] = {size: [] for size in BATCHES}
    ratios: dict[int, list[float]] = {size: [] for size in BATCHES}
    singles = []
    for _ in range(args.rounds):
        single = frames_a_second(pool, 1, args.seconds)
        singles.append(single)
        for size, run in batches.items():
            speeds[size].append(frames_a_second([run], size, args.seconds))
            ratios[size].append(speeds[size][-1] / single)
    print("| batch | frames/s | over the pool |\n|---|---|---|")
    print(f"| pool of {cores} | {statistics.median(singles):.0f} | 1 |")
    for size in BATCHES:
        print(
            f"| {size} | {statistics.median(speeds[size]):.0f}"
            f" | {statistics.median(ratios[size]):.2f} |"
        )


if __name__ == "__main__":
    main()
