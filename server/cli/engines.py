"""Of several installed engines that can run a model, finds the quickest on this device."""

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import msgspec
import numpy as np

from server.cli.steps import Steps
from server.config.settings import Settings
from server.errors import BundleError
from server.recognition.admission import Admission
from server.recognition.engines.engine import installed
from server.recognition.manifest import Bundle, EngineName
from server.recognition.preprocessing import Tensor
from server.recognition.tensor_model import make_model
from server.store.bundles.engine_choice import EngineFigures, KeptChoice, keep_choice
from server.system.files import IMAGE_MAX, read_plain_file
from server.system.resources import available_cores

# Turns of each engine; they alternate, so that what else the machine does falls on all alike.
ROUNDS = 7
# Another engine than the usual one is worth it if it gives this factor of inferences a second.
WORTHWHILE_GAIN = 1.05
# Largest difference of outputs that count as the same, as a share of the largest output.
DIFFERENCE_MAX = 0.02

Say = Callable[[str], object]


class Candidate:
    """An engine with the bundle's model."""

    def __init__(self, bundle: Bundle, settings: Settings, engine: EngineName) -> None:
        """Raise BundleError if it can't run the model, or gets a golden frame wrong."""
        options = msgspec.structs.replace(settings.engine_options, engine=engine)
        limits = settings.image_limits
        self.name = engine
        self.steps = Steps(bundle, limits, options, available_cores())
        make_model(bundle, self.steps.pool, Admission(1, 1), limits)
        self.alone: list[float] = []
        self.together: list[float] = []

    def outputs(self, frames: Sequence[bytes]) -> list[Tensor]:
        """Return the model's outputs for each view of each image file."""
        with self.steps.pool.lease() as session:
            return [
                output
                for data in frames
                for tensor in self.steps.prepared(data)
                for output in session.run([tensor])
            ]

    def measure(self, tensors: Sequence[Tensor], seconds: float) -> None:
        """Run one interpreter for a third of `seconds`, then all at the same time."""
        self._burst(tensors, seconds / 3, 1, self.alone)
        self._burst(tensors, seconds * 2 / 3, self.steps.pool.size, self.together)

    def _burst(
        self, tensors: Sequence[Tensor], seconds: float, size: int, rates: list[float]
    ) -> None:
        done, start = [0] * size, time.perf_counter()

        def work(number: int) -> None:
            with self.steps.pool.lease() as session:
                while time.perf_counter() < start + seconds or not done[number]:
                    self.steps.run(session, tensors)
                    done[number] += 1

        threads = [threading.Thread(target=work, args=(number,)) for number in range(size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rates.append(sum(done) / (time.perf_counter() - start))


def difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Return the largest difference of two engines' outputs, each as a share of the output's
    largest value, which counts as 1 if it is less."""
    shares = [0.0]
    for one, other in zip(ours, theirs, strict=True):
        a, b = one.astype(np.float64), other.astype(np.float64)
        shares.append(float(np.abs(a - b).max(initial=0) / max(1.0, np.abs(a).max(initial=0))))
    return max(shares)


def choose_engine(
    bundle: Bundle, settings: Settings, sample: bytes, seconds: float, say: Say
) -> None:
    """Measure the engines that can run the model, in turns, and keep the choice for `bundle`;
    `say` the figures. Nothing happens if there is one engine, or if settings or bundle name one.

    sample: an image file. The usual engine stays if no other one is quicker by WORTHWHILE_GAIN and
    answers the same. Raises BundleError if the usual one can't run the model.
    """
    names = installed(bundle.model_path)
    if len(names) < 2 or {settings.engine, bundle.manifest.engine} != {"auto"}:
        return
    candidates = [Candidate(bundle, settings, names[0])]
    for name in names[1:]:
        try:
            candidates.append(Candidate(bundle, settings, name))
        except BundleError as error:
            say(f"{name} is left out: {error}")
    if len(candidates) < 2:
        return
    golden = [bundle.folder / each.file for each in bundle.manifest.golden]
    frames = [sample, *(read_plain_file(path, IMAGE_MAX) for path in golden)]
    usual = candidates[0].outputs(frames)
    differences = [difference(usual, each.outputs(frames)) for each in candidates]
    tensors = candidates[0].steps.prepared(sample)
    for _ in range(ROUNDS):
        for each in candidates:
            each.measure(tensors, seconds / ROUNDS)
    figures = tuple(
        EngineFigures(
            each.name,
            each.steps.pool.engine.runtime,
            round(statistics.median(each.together), 1),
            round(1000 / statistics.median(each.alone), 3),
            round(apart, 6),
        )
        for each, apart in zip(candidates, differences, strict=True)
    )
    for row in figures:
        say(
            f"{row.runtime}: {row.ms:.2f} ms alone, {row.fps:.1f}/s on"
            f" {available_cores()} cores, outputs differ by {row.difference:.4f}"
        )
    _keep(bundle, best_engine(figures), figures, say)


def best_engine(figures: Sequence[EngineFigures]) -> EngineName:
    """Return the quickest engine of those that answer as the first, which is the usual one and
    stays if the gain is small."""
    usual = figures[0]
    good = [each for each in figures if each.difference <= DIFFERENCE_MAX]
    best = max(good, key=lambda each: each.fps)
    return best.engine if best.fps >= usual.fps * WORTHWHILE_GAIN else usual.engine


def _keep(bundle: Bundle, best: EngineName, figures: tuple[EngineFigures, ...], say: Say) -> None:
    at = datetime.now(UTC).isoformat(timespec="seconds")
    name = f"{bundle.manifest.name}/{bundle.manifest.version}"
    try:
        path = keep_choice(bundle, KeptChoice(best, bundle.model_sha256(), at, figures))
        say(f"{best} is to run {name} here, from its next load on: wrote {path}")
    except OSError as error:
        say(f"the choice can't be kept ({error.strerror}): set engine to {best} for it")
