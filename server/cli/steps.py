"""The steps of a frame, each to be timed by itself, and the frames to time them with."""

import statistics
import threading
import time
from collections.abc import Sequence

import cv2
import msgspec
import numpy as np

from server.errors import BundleError
from server.recognition import frame
from server.recognition.engines.engine import EngineOptions, Session
from server.recognition.images.views import views
from server.recognition.interpreter import InterpreterPool
from server.recognition.manifest import Bundle
from server.recognition.preprocessing import apply_table, scaling_table, to_input_pixels

# Sides of the frames that are made of a sample, in pixels.
SIZES = {"720p": (1280, 720), "1080p": (1920, 1080)}
JPEG_QUALITY = 90


class Stage(msgspec.Struct, frozen=True):
    """Milliseconds of one stage of one frame on one thread."""

    median: float
    p90: float


class Throughput(msgspec.Struct, frozen=True):
    """Frames a second, all threads busy with decoding, preprocessing and inference."""

    interpreters: int
    threads: int
    fps: float


def stage_of(seconds: list[float]) -> Stage:
    """Return the milliseconds of a stage that took these `seconds`, two or more."""
    p90 = statistics.quantiles(seconds, n=10)[8]
    return Stage(round(statistics.median(seconds) * 1000, 3), round(p90 * 1000, 3))


Frames = dict[str, bytes]


def find_frames(bundle: Bundle) -> Frames:
    """Return a JPEG of the bundle's samples or golden frames, and larger ones made of it, by name.

    Raises BundleError if the bundle has none that can be read, or takes no images.
    """
    if bundle.manifest.recipe is None:
        raise BundleError(f"{bundle.folder} takes numbers, not images: there is no frame to time")
    paths = sorted((bundle.folder / "samples").glob("*"))
    paths += [bundle.folder / golden.file for golden in bundle.manifest.golden]
    for path in paths:
        pixels = cv2.imread(str(path))
        if pixels is not None:
            return {"sample": path.read_bytes()} | {
                name: _encoded(np.asarray(cv2.resize(pixels, size), np.uint8))
                for name, size in SIZES.items()
            }
    raise BundleError(f"{bundle.folder} has no frame in samples/ or golden/ to measure with")


def _encoded(pixels: frame.Pixels) -> bytes:
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()


class Steps:
    """One bundle's steps of a frame, each to be timed by itself."""

    def __init__(
        self, bundle: Bundle, limits: frame.Limits, options: EngineOptions, size: int = 1
    ) -> None:
        """size: interpreters of `pool`, of one thread each. Raise BundleError for a model that
        takes no images."""
        if bundle.manifest.recipe is None:
            raise BundleError(
                f"{bundle.folder} takes numbers, not images: there is no frame to time"
            )
        self.bundle = bundle
        self.recipe = bundle.manifest.recipe
        self._limits = limits
        self._options = options
        self.pool = InterpreterPool(bundle.model_path, size, options=options)
        self._table = scaling_table(self.recipe, self.pool.inputs[0])
        self._views = views(self.recipe)

    def prepared(self, data: bytes, took: dict[str, list[float]] | None = None) -> list[np.ndarray]:
        """Return the model's input for each view of an image file; append the seconds of both
        stages to `took`."""
        start = time.perf_counter()
        pixels = frame.decode(data, self.recipe, self._limits)
        decoded = time.perf_counter()
        tensors = [
            apply_table(to_input_pixels(pixels, view), self._table, view.layout)
            for view in self._views
        ]
        if took is not None:
            took["decode"].append(decoded - start)
            took["preprocess"].append(time.perf_counter() - decoded)
        return tensors

    def run(self, interpreter: Session, tensors: Sequence[np.ndarray]) -> None:
        """Run the model on each view."""
        for tensor in tensors:
            interpreter.run([tensor])

    def stages(self, data: bytes, seconds: float) -> dict[str, Stage]:
        """Measure each stage of `data` on one thread, over and over for `seconds`."""
        took: dict[str, list[float]] = {"decode": [], "preprocess": [], "inference": []}
        with self.pool.lease() as interpreter:
            self.run(interpreter, self.prepared(data))
            until = time.perf_counter() + seconds
            while time.perf_counter() < until or len(took["inference"]) < 3:
                tensors = self.prepared(data, took)
                start = time.perf_counter()
                self.run(interpreter, tensors)
                took["inference"].append(time.perf_counter() - start)
        return {name: stage_of(values) for name, values in took.items()}

    def throughput(self, data: bytes, size: int, threads: int, seconds: float) -> Throughput:
        """Measure `size` threads, each with an interpreter of `threads` threads, for `seconds`."""
        pool = InterpreterPool(self.bundle.model_path, size, threads, options=self._options)
        pool.each(lambda interpreter: self.run(interpreter, self.prepared(data)))
        done, start = [0] * size, time.perf_counter()

        def work(number: int) -> None:
            with pool.lease() as interpreter:
                while time.perf_counter() < start + seconds or not done[number]:
                    self.run(interpreter, self.prepared(data))
                    done[number] += 1

        workers = [threading.Thread(target=work, args=(number,)) for number in range(size)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return Throughput(size, threads, sum(done) / (time.perf_counter() - start))
