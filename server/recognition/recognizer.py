"""One frame's way through a loaded model: the steps in order, a stage timer around each."""

import math
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from server.errors import BundleError, LinesideError, ModelOutputError
from server.recognition import frame, results
from server.recognition.admission import Admission
from server.recognition.answers import Answer, Options
from server.recognition.interpreter import Interpreter, InterpreterPool
from server.recognition.manifest import LABELS, Bundle, Recipe
from server.recognition.preprocessing import (
    Tensor,
    apply_table,
    mean_grey,
    scaling_table,
    to_input_pixels,
)
from server.recognition.reader_guard import ReaderGuard, Sender
from server.recognition.results import Probabilities
from server.system.files import IMAGE_MAX, read_plain_file
from server.values.wording import counted

STAGES = ("decode", "preprocess", "wait", "inference")
OnStage = Callable[[str, float], None]


class Stage:
    """One stage being timed, as a context manager; contextlib's would take three times as long."""

    __slots__ = ("_name", "_start", "_timer")

    def __init__(self, timer: "StageTimer", name: str) -> None:
        self._timer, self._name = timer, name

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._timer.add(self._name, time.perf_counter() - self._start)


class StageTimer:
    """Seconds spent in each stage of one frame; each is also told to `on_stage` as it ends.
    `brightness` and `warnings` are the `Answer`'s, once they are known."""

    def __init__(self, on_stage: OnStage | None = None) -> None:
        self._on_stage = on_stage
        self._start = time.perf_counter()
        self.seconds: dict[str, float] = {}
        self.brightness: float | None = None
        self.warnings: tuple[frame.ImageWarning, ...] = ()

    def stage(self, name: str) -> Stage:
        """What times a `with` block as the stage `name`."""
        return Stage(self, name)

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        if self._on_stage is not None:
            self._on_stage(name, seconds)

    def total(self) -> dict[str, float]:
        """Returns the stages so far, and `total` seconds since this timer was made."""
        return {**self.seconds, "total": time.perf_counter() - self._start}


class Recognizer:
    """A verified bundle with its interpreters; `admission` is shared by all models of a server.

    Raises BundleError where recipe, labels and model do not belong together.
    """

    def __init__(
        self,
        bundle: Bundle,
        pool: InterpreterPool,
        admission: Admission,
        limits: frame.Limits,
        on_stage: OnStage | None = None,
        guard: ReaderGuard | None = None,
    ) -> None:
        """guard: what stands around the readers of images other than JPEG."""
        self.bundle, self.pool, self.admission, self.limits = bundle, pool, admission, limits
        self.manifest, self.labels = bundle.manifest, bundle.labels
        self.on_stage, self._guard = on_stage, guard
        self.recipe = check_compatibility(bundle, pool)
        self._table = scaling_table(self.recipe, pool.inputs[0])
        self._watched = self.manifest.baseline is not None

    def recognize(self, data: bytes, options: Options, request_id: str = "") -> Answer:
        """Returns an image file's bytes -> its answer. request_id: of the request that it came
        with, for who looks into a crash.

        Errors are those of `Admission.run` and `frame.decode`, and ModelOutputError for an output
        that is not finite; whichever is raised, no slot and no interpreter stays lent.
        """
        timer = StageTimer(self.on_stage)
        sender = Sender(options.camera, request_id, options.deadline)

        def work(waited: float) -> Probabilities:
            timer.add("wait", waited)
            probabilities = self._probabilities(data, timer, options.deadline, sender)
            if not np.isfinite(probabilities).all():
                raise ModelOutputError(
                    f"the output of version {self.manifest.version} of {self.manifest.name} for"
                    " this frame is not finite: no label can be read from it"
                )
            return probabilities

        probabilities = self.admission.run(
            work, options.deadline, options.camera, latest_only=options.latest_only
        )
        return make_answer(self.bundle, probabilities, options, timer)

    def _probabilities(
        self,
        data: bytes,
        timer: StageTimer,
        deadline: float = math.inf,
        sender: Sender | None = None,
        limits: frame.Limits | None = None,
    ) -> Probabilities:
        output = self.output(data, timer, deadline, sender, limits)
        return results.to_probabilities(output, self.pool.outputs[0], self.manifest)

    def output(
        self,
        data: bytes,
        timer: StageTimer,
        deadline: float = math.inf,
        sender: Sender | None = None,
        limits: frame.Limits | None = None,
    ) -> Tensor:
        """Returns an image file's bytes -> the model's output as it is, [1, ..., classes]. sender:
        whose frame it is; None for one of the bundle's own, which no guard stands around. limits:
        those of this image, if they are others than for all.

        The caller holds a slot of `admission`. Errors are those of `frame.decode`, and
        DeadlineExceededError for an image that took longer to decode than until `deadline`.
        """
        guard = partial(self._guard.reading, sender=sender) if self._guard and sender else None
        with timer.stage("decode"):
            decoded = frame.decode_frame(data, self.recipe, limits or self.limits, guard)
        timer.warnings = decoded.warnings
        # How long an image takes to decode is its sender's choice, and no estimate foresees it.
        self.admission.check_in_time(deadline)
        with timer.stage("preprocess"):
            pixels = to_input_pixels(decoded.pixels, self.recipe)
            if self._watched:
                timer.brightness = mean_grey(pixels)
            tensor = apply_table(pixels, self._table)
        alone = self.admission.alone
        with self.pool.lease(alone=alone) as interpreter, timer.stage("inference"):
            return interpreter.run([tensor])[0]

    def warm_up(self) -> None:
        """Runs each interpreter once on an empty input, so that the first frame pays no first-use
        cost of the kernels. Raises BundleError where the output is not finite."""
        spec = self.pool.inputs[0]
        empty = np.zeros([1, *spec.shape[1:]], spec.dtype)

        def run(interpreter: Interpreter) -> None:
            output = interpreter.run([empty])[0]
            # Infinite logits make numpy warn; what comes of them is looked at here.
            with np.errstate(invalid="ignore"):
                read = results.to_probabilities(output, self.pool.outputs[0], self.manifest)
            if not np.isfinite(read).all():
                raise BundleError(
                    f"{self.bundle.folder}: the model's output for an empty image is not finite"
                )

        self.pool.each(run)

    def check_golden(self) -> None:
        """Raises BundleError naming the first golden frame that this model gets wrong.

        The frames need no admission: a busy server is no reason to refuse a version. They are read
        as `convert` read them, whatever cameras may send here.
        """
        limits = frame.Limits(self.limits.max_pixels, self.limits.max_side)
        for golden in self.manifest.golden:
            path = self.bundle.folder / golden.file
            try:
                data = read_plain_file(path, IMAGE_MAX)
                with np.errstate(invalid="ignore"):
                    probabilities = self._probabilities(data, StageTimer(), limits=limits)
            except (OSError, LinesideError) as error:
                raise BundleError(f"golden frame {path} can't be used: {error}") from None
            if not np.isfinite(probabilities).all():
                raise BundleError(f"golden frame {path}: the model's output is not finite")
            best = results.top_k(probabilities, self.labels, 1, -math.inf)[0]
            off = abs(best.probability - golden.probability)
            if best.label != golden.label or off > golden.tolerance:
                raise BundleError(
                    f"golden frame {path} should be {golden.label} at {golden.probability:.3f}"
                    f" but this model says {best.label} at {best.probability:.3f}"
                )


def make_answer(
    bundle: Bundle, probabilities: Probabilities, options: Options, timer: StageTimer
) -> Answer:
    """Returns the answer that `probabilities`, float32 [labels], amount to."""
    manifest, labels = bundle.manifest, bundle.labels
    first = results.top_k(probabilities, labels, options.top_k, -math.inf)
    best = first[0]
    shown = tuple(each for each in first if each.probability >= options.threshold)
    return Answer(
        manifest.name,
        manifest.version,
        best,
        shown,
        # A frame without a label is no good part, whatever its best guess was.
        results.apply_verdict_policy(best if shown else None, manifest.verdict),
        timer.total(),
        timer.brightness,
        timer.warnings,
    )


def check_compatibility(bundle: Bundle, pool: InterpreterPool) -> Recipe:
    """Returns the bundle's recipe, checked against the model's tensors and the labels.

    Raises BundleError with the two sides that disagree.
    """
    recipe, where = bundle.manifest.recipe, bundle.folder
    if recipe is None:
        raise BundleError(f"{where}: no recipe says how an image is fed to this model")
    if len(pool.inputs) != 1 or len(pool.outputs) != 1:
        raise BundleError(
            f"{where}: a classifier has one input and one output; this model has"
            f" {len(pool.inputs)} and {len(pool.outputs)}"
        )
    shape, want = pool.inputs[0].shape[1:], (recipe.height, recipe.width, recipe.channels)
    if shape != want or pool.inputs[0].dtype != recipe.dtype:
        raise BundleError(
            f"{where}: the recipe makes {recipe.dtype} {list(want)} but the model takes"
            f" {pool.inputs[0].dtype} {list(shape)} (height, width, channels): set the recipe's"
            " dtype, height, width and color to that"
        )
    classes = math.prod(pool.outputs[0].shape[1:] or pool.outputs[0].shape)
    if not bundle.labels:
        raise BundleError(
            f"{where} has no {LABELS}, which names the model's {classes} outputs in their order,"
            " one label a line"
        )
    if classes != len(bundle.labels):
        raise BundleError(
            f"{where}: labels.txt has {counted(len(bundle.labels), 'label')} but the model answers"
            f" {classes}"
        )
    return recipe
