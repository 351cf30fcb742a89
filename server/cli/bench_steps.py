"""What each step of a frame takes in this process, and how many frames interpreters get through."""

import statistics
import threading
import time

import cv2
import msgspec
import numpy as np

from server.errors import BundleError
from server.recognition import frame
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
    """The milliseconds of a stage that took each of these `seconds`; at least two."""
    p90 = statistics.quantiles(seconds, n=10)[8]
    return Stage(round(statistics.median(seconds) * 1000, 3), round(p90 * 1000, 3))


Frames = dict[str, bytes]


def find_frames(bundle: Bundle) -> Frames:
    """A JPEG of the bundle's samples or golden frames, and larger ones made of it, by name.

    Raises BundleError where the bundle has none that can be read.
    """
    shown = sorted((bundle.folder / "samples").glob("*"))
    shown += [bundle.folder / golden.file for golden in bundle.manifest.golden]
    for path in shown:
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

    def __init__(self, bundle: Bundle, limits: frame.Limits) -> None:
        """Raises BundleError for a model that takes no images."""
        if bundle.manifest.recipe is None:
            raise BundleError(
                f"{bundle.folder} takes numbers, not images: there is no frame to time"
            )
        self.bundle, self.recipe, self._limits = bundle, bundle.manifest.recipe, limits
        self.pool = InterpreterPool(bundle.model_path, 1)
        self._table = scaling_table(self.recipe, self.pool.inputs[0])

    def prepared(self, data: bytes, took: dict[str, list[float]] | None = None) -> np.ndarray:
        """An image file -> the model's input; seconds of both stages are added to `took`."""
        start = time.perf_counter()
        pixels = frame.decode(data, self.recipe, self._limits)
        decoded = time.perf_counter()
        tensor = apply_table(to_input_pixels(pixels, self.recipe), self._table)
        if took is not None:
            took["decode"].append(decoded - start)
            took["preprocess"].append(time.perf_counter() - decoded)
        return tensor

    def stages(self, data: bytes, seconds: float) -> dict[str, Stage]:
        """Each stage of `data` on one thread, over and over for `seconds`."""
        took: dict[str, list[float]] = {"decode": [], "preprocess": [], "inference": []}
        with self.pool.lease() as interpreter:
            interpreter.run([self.prepared(data)])
            until = time.perf_counter() + seconds
            while time.perf_counter() < until or len(took["inference"]) < 3:
                tensor = self.prepared(data, took)
                start = time.perf_counter()
                interpreter.run([tensor])
                took["inference"].append(time.perf_counter() - start)
        return {name: stage_of(values) for name, values in took.items()}

    def throughput(self, data: bytes, size: int, threads: int, seconds: float) -> Throughput:
        """`size` threads, each with an interpreter of `threads` threads, for `seconds`."""
        pool = InterpreterPool(self.bundle.model_path, size, threads)
        pool.each(lambda interpreter: interpreter.run([self.prepared(data)]))
        done, start = [0] * size, time.perf_counter()

        def work(number: int) -> None:
            with pool.lease() as interpreter:
                while time.perf_counter() < start + seconds or not done[number]:
                    interpreter.run([self.prepared(data)])
                    done[number] += 1

        workers = [threading.Thread(target=work, args=(number,)) for number in range(size)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return Throughput(size, threads, sum(done) / (time.perf_counter() - start))
