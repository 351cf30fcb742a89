"""One frame's way through a loaded model: the steps in order, each timed as a stage."""

import math
import time
from collections.abc import Callable
from functools import partial
from statistics import fmean
from typing import Any, NamedTuple, cast

import msgspec
import numpy as np

from server.errors import BundleError, LinesideError, ModelOutputError
from server.recognition import frame
from server.recognition.admission import Admission
from server.recognition.answers import Answer, Options, of_regions
from server.recognition.drawing import draw, to_jpeg
from server.recognition.engines.engine import Session
from server.recognition.images.measurement import Measurement, measure
from server.recognition.images.pixels import Pixels
from server.recognition.images.views import regions, tiles
from server.recognition.interpreter import InterpreterPool
from server.recognition.manifest import Bundle, DevicePolicy, Golden, Recipe
from server.recognition.preprocessing import (
    Placement,
    Tensor,
    TensorSpec,
    apply_table,
    mean_grey,
    placement,
    scaling_table,
    to_input_pixels,
)
from server.recognition.reader_guard import ReaderGuard, Sender
from server.recognition.tasks.task import NotFiniteError, Reader, find_task, overlay_of
from server.system.files import IMAGE_MAX, read_plain_file
from server.values.labels import Label

STAGES = ("decode", "preprocess", "wait", "inference")
OnStage = Callable[[str, float], None]
# Golden checks in a row after which a model that serves answers no more frames.
GOLDEN_MISSES_MAX = 3


class Stage:
    """Times a `with` block as one stage; contextlib's would take three times as long."""

    __slots__ = ("_name", "_start", "_timer")

    def __init__(self, timer: "StageTimer", name: str) -> None:
        self._timer = timer
        self._name = name

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._timer.add(self._name, time.perf_counter() - self._start)


class StageTimer:
    """Seconds of each stage of one frame; `on_stage` is called with each as it ends. `brightness`,
    `warnings` and `measured` are the `Answer`'s, `placement` the frame's, once they are known."""

    def __init__(self, on_stage: OnStage | None = None) -> None:
        self._on_stage = on_stage
        self._start = time.perf_counter()
        self.seconds: dict[str, float] = {}
        self.brightness: float | None = None
        self.warnings: tuple[frame.ImageWarning, ...] = ()
        self.placement: Placement | None = None
        self.measured: Measurement | None = None

    def stage(self, name: str) -> Stage:
        """Returns a context that is timed as the stage `name`."""
        return Stage(self, name)

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        if self._on_stage is not None:
            self._on_stage(name, seconds)

    def total(self) -> dict[str, float]:
        """Returns the stages so far, and `total` seconds since this timer was made."""
        return {**self.seconds, "total": time.perf_counter() - self._start}


class Seen(NamedTuple):
    """The answer of a model to a frame or a region of it: the values of `Reader.decode`, and the
    placement that they are in."""

    values: Any
    placement: Placement | None


class LoadedModel:
    """A verified bundle with its interpreters, and the reader that its task has for their outputs.
    `admission` is shared by all models of a server.

    Raises BundleError if the task can't read this model's outputs, or judge by its policy.
    """

    def __init__(
        self,
        bundle: Bundle,
        pool: InterpreterPool,
        admission: Admission,
        on_stage: OnStage | None = None,
    ) -> None:
        self.bundle = bundle
        self.pool = pool
        self.admission = admission
        self.on_stage = on_stage
        self.manifest = bundle.manifest
        self.labels = bundle.labels
        self.task = find_task(bundle.manifest.task)
        self.reader = self.task.make_reader(bundle, pool)
        policy = bundle.manifest.verdict
        if policy and (fault := self.task.policy_fault(policy, bundle, "verdict")):
            raise BundleError(f"{bundle.folder}: {fault}")
        self.device_policy: DevicePolicy | None = None
        # Golden checks in a row that this model missed while it served, and the last one's fault.
        self.golden_misses = 0
        self.golden_fault = ""

    @property
    def unfit(self) -> str:
        """Return why this model may not answer now; empty if it may."""
        if self.golden_misses < GOLDEN_MISSES_MAX:
            return ""
        return (
            f"version {self.manifest.version} of {self.manifest.name} missed its golden check"
            f" {self.golden_misses} times in a row: {self.golden_fault}"
        )

    @property
    def scored_labels(self) -> tuple[Label, ...]:
        """The labels, if the model's first output holds a score for each of them, else none."""
        return self.labels if self.task.scores_labels else ()

    def use_policy(self, device: DevicePolicy | None) -> None:
        """Judges by the policy of `device` from the next frame on; by the bundle's if it is
        None."""
        self.device_policy = device
        self.reader = (
            self.reader.with_policy(device.policy, device.source)
            if device
            else self.reader.with_policy(self.manifest.verdict)
        )

    def make_answer(
        self,
        seen: Seen,
        options: Options,
        timer: StageTimer,
        reader: Reader[Any] | None = None,
    ) -> Answer:
        """Makes the answer from `seen`; judges by the policy of `reader`, if it is given, else by
        the one in force."""
        reader = reader or self.reader
        result = reader.result(seen.values, options, seen.placement)
        verdict = reader.verdict(result)
        return Answer(
            self.manifest.name,
            self.manifest.version,
            result.best,
            result.predictions,
            verdict.verdict if verdict else None,
            timer.total(),
            timer.brightness,
            timer.warnings,
            verdict.reason if verdict else None,
            self.manifest.task,
            result.details,
            reader.policy_source if verdict else None,
            measured=timer.measured,
        )


class Recognizer(LoadedModel):
    """A model that takes images.

    Raises BundleError if recipe, labels and model do not belong together.
    """

    def __init__(
        self,
        bundle: Bundle,
        pool: InterpreterPool,
        admission: Admission,
        limits: frame.Limits,
        on_stage: OnStage | None = None,
        guard: ReaderGuard | None = None,
        *,
        measures: bool = False,
    ) -> None:
        """guard: makes contexts around the readers of images. measures: answers have the
        statistics by which the health of a picture is judged."""
        self.recipe = _need_recipe(bundle)
        super().__init__(bundle, pool, admission, on_stage)
        self.limits = limits
        self.measures = measures
        self._guard = guard
        self._image = _check_recipe(bundle, self.recipe, pool.inputs)
        self._table = scaling_table(self.recipe, self._image)
        self._zeros = [
            None
            if spec is self._image
            else np.full(np.abs(spec.shape), spec.zero_point, spec.dtype)
            for spec in pool.inputs
        ]
        self._watched = self.manifest.baseline is not None
        self._names = tuple(each.name for each in self.recipe.regions)
        self._regions = tuple(tiles(part) for part in regions(self.recipe))
        self.views = tuple(view for part in self._regions for view in part)
        if len(self._regions[0]) > 1 and (fault := self.reader.tiles_fault()):
            raise BundleError(f"{bundle.folder}: {fault}")
        for golden in self.manifest.golden:
            if golden.region not in (self._names or ("",)):
                raise BundleError(
                    f"{bundle.folder}: {golden.file} is of the region {golden.region!r}, which the"
                    " recipe lacks"
                )

    def recognize(
        self,
        data: bytes,
        options: Options,
        request_id: str = "",
        reader: Reader[Any] | None = None,
    ) -> Answer:
        """Answers an image file's bytes. request_id: of the request that it came with, for records
        of a crash. reader: as in `make_answer`.

        Errors are those of `Admission.run` and `frame.decode`, and ModelOutputError for an output
        that is not finite; whichever is raised, no slot and no interpreter stays lent.
        """
        timer = StageTimer(self.on_stage)
        sender = Sender(options.camera, request_id, options.deadline)

        def work(waited: float) -> tuple[Seen, ...]:
            timer.add("wait", waited)
            try:
                return self.read(data, timer, options.deadline, sender)
            except NotFiniteError:
                raise ModelOutputError(
                    f"the output of version {self.manifest.version} of {self.manifest.name} for"
                    " this frame is not finite: no label can be read from it"
                ) from None

        seen = self.admission.run(
            work, options.deadline, options.camera, latest_only=options.latest_only
        )
        # A verdict that comes too late may be taken for that of another part.
        self.admission.check_in_time(options.deadline, "the model ran")
        return self.answer_of(seen, options, timer, reader)

    def answer_of(
        self,
        seen: tuple[Seen, ...],
        options: Options,
        timer: StageTimer,
        reader: Reader[Any] | None = None,
    ) -> Answer:
        """Makes the answer to a frame from what `read` returned. reader: as in `make_answer`."""
        if not self._names:
            return self.make_answer(seen[0], options, timer, reader)
        answers = [self.make_answer(each, options, timer, reader) for each in seen]
        size = cast(Placement, seen[0].placement).size
        boxes = [frame.shown_part(part, *size) for part in regions(self.recipe)]
        return of_regions(answers, self._names, boxes)

    def read(
        self,
        data: bytes,
        timer: StageTimer,
        deadline: float = math.inf,
        sender: Sender | None = None,
        limits: frame.Limits | None = None,
    ) -> tuple[Seen, ...]:
        """Runs the model on an image file's bytes, and returns what it says of each region, the
        values of tiles merged.

        sender: of the frame; None for one of the bundle's own, which needs no guard. limits: those
        of this image, if they are others than for all. The caller holds a slot of `admission`.
        Errors are those of `frame.decode`, NotFiniteError, and DeadlineExceededError for an image
        that takes longer than until `deadline`.
        """
        decoded = self._decode(data, timer, deadline, sender, limits)
        if len(self.views) == 1:
            values = self.reader.decode(self._run(decoded, self.views[0], timer))
            return (Seen(values, timer.placement),)
        # The stages of all views are observed as one. An interpreter is lent for each view alone:
        # nothing is resized meanwhile, and the input of one view is in memory at a time.
        seen, greys, whole = [], list[float](), StageTimer()
        for region in self._regions:
            parts, places = [], []
            for view in region:
                self.admission.check_in_time(deadline, f"{len(self.views)} views were looked at")
                parts.append(self.reader.decode(self._run(decoded, view, whole)))
                places.append(cast(Placement, whole.placement))
                greys += [] if whole.brightness is None else [whole.brightness]
            merged = self.reader.merge(parts, places) if len(parts) > 1 else (parts[0], places[0])
            seen.append(Seen(*merged))
        for name, seconds in whole.seconds.items():
            timer.add(name, seconds)
        timer.brightness = fmean(greys) if greys else None
        return tuple(seen)

    def outputs(
        self, data: bytes, timer: StageTimer, deadline: float, sender: Sender
    ) -> tuple[Tensor, ...]:
        """Runs a model of one view on an image file's bytes, and returns its outputs as they are.
        Arguments and errors are those of `read`."""
        return self._run(self._decode(data, timer, deadline, sender), self.views[0], timer)

    def _decode(
        self,
        data: bytes,
        timer: StageTimer,
        deadline: float,
        sender: Sender | None,
        limits: frame.Limits | None = None,
    ) -> frame.Frame:
        guard = partial(self._guard.reading, sender=sender) if self._guard and sender else None
        with timer.stage("decode"):
            decoded = frame.decode_frame(data, self.recipe, limits or self.limits, guard)
            if self.measures:
                timer.measured = measure(decoded.pixels, decoded.size)
        timer.warnings = decoded.warnings
        # The sender's choice of image decides how long decoding takes, so no estimate foresees it.
        self.admission.check_in_time(deadline, "the image was decoded")
        return decoded

    def _run(self, decoded: frame.Frame, view: Recipe, timer: StageTimer) -> tuple[Tensor, ...]:
        """Runs the model on a view of a frame; `timer` gets the view's placement."""
        height, width = decoded.pixels.shape[:2]
        timer.placement = placement(decoded.size, (width, height), view)
        with timer.stage("preprocess"):
            pixels = to_input_pixels(decoded.pixels, view)
            if self._watched:
                timer.brightness = mean_grey(pixels)
            tensor = apply_table(pixels, self._table, self.recipe.layout)
        alone = self.admission.alone
        with self.pool.lease(alone=alone) as interpreter, timer.stage("inference"):
            return interpreter.run(self._inputs(tensor))

    def shown(self, data: bytes, sender: Sender) -> tuple[Pixels, Placement]:
        """Returns what a model of one view is shown of an image file's bytes, as the pixels of
        `to_input_pixels`, and its place in the frame. The caller holds a slot of `admission`.
        Errors are those of `frame.decode`, and DeadlineExceededError."""
        decoded = self._decode(data, StageTimer(), sender.deadline, sender)
        height, width = decoded.pixels.shape[:2]
        view = self.views[0]
        return to_input_pixels(decoded.pixels, view), placement(decoded.size, (width, height), view)

    def run_pixels(self, pixels: Pixels) -> tuple[Tensor, ...]:
        """Runs the model on what `shown` returned, or on pixels like that. The caller holds a slot
        of `admission`."""
        tensor = apply_table(pixels, self._table, self.recipe.layout)
        with self.pool.lease(alone=self.admission.alone) as interpreter:
            return interpreter.run(self._inputs(tensor))

    def drawn(self, data: bytes, answer: Answer, options: Options, request_id: str = "") -> bytes:
        """Returns an image file's frame, upright and at full size, with its `answer` drawn on it,
        as a JPEG file. The caller needs no slot. Errors are those of `frame.decode`."""
        sender = Sender(options.camera, request_id, options.deadline)
        guard = partial(self._guard.reading, sender=sender) if self._guard else None
        whole = msgspec.structs.replace(self.recipe, decode="exact")
        pixels = frame.decode(data, whole, self.limits, guard)
        overlay = msgspec.structs.replace(
            overlay_of(answer),
            verdict=answer.verdict,
            verdict_reason=answer.verdict_reason,
        )
        return to_jpeg(draw(pixels, overlay))

    def _inputs(self, image: Tensor) -> list[Tensor]:
        """Returns the model's inputs in its order: the image, and zeros for the others."""
        return [image if zeros is None else zeros for zeros in self._zeros]

    def warm_up(self) -> None:
        """Runs each interpreter once on an empty input, so that the first frame pays no first-use
        cost of the kernels. Raises BundleError if the output is not finite."""
        spec = self._image
        empty = self._inputs(np.zeros([1, *spec.shape[1:]], spec.dtype))

        def run(interpreter: Session) -> None:
            outputs = interpreter.run(empty)
            try:
                # Infinite logits make numpy warn; decode raises for their result.
                with np.errstate(invalid="ignore"):
                    self.reader.decode(outputs)
            except NotFiniteError:
                raise BundleError(
                    f"{self.bundle.folder}: the model's output for an empty image is not finite"
                ) from None

        self.pool.each(run)

    def check_golden(self) -> None:
        """Raises BundleError naming the first golden frame that this model gets wrong.

        The frames need no admission: a busy server is no reason to refuse a version. They are read
        as `convert` read them, whatever cameras may send here.
        """
        for golden in self.manifest.golden:
            self.check_golden_frame(golden)

    def check_golden_frame(self, golden: Golden) -> None:
        """Read one golden frame from the disk and recognize it. Raises BundleError if it can't be
        used or this model gets it wrong."""
        limits = frame.Limits(self.limits.max_pixels, self.limits.max_side)
        path = self.bundle.folder / golden.file
        try:
            data = read_plain_file(path, IMAGE_MAX)
            timer = StageTimer()
            with np.errstate(invalid="ignore"):
                seen = self.read(data, timer, limits=limits)
        except (OSError, LinesideError) as error:
            raise BundleError(f"golden frame {path} can't be used: {error}") from None
        except NotFiniteError:
            raise BundleError(f"golden frame {path}: the model's output is not finite") from None
        values, place = seen[self._names.index(golden.region) if self._names else 0]
        if fault := self.reader.golden_fault(golden, values, place):
            raise BundleError(f"golden frame {path} {fault}")


def _need_recipe(bundle: Bundle) -> Recipe:
    recipe = bundle.manifest.recipe
    if recipe is None:
        raise BundleError(f"{bundle.folder}: no recipe says how an image is fed to this model")
    return recipe


def _check_recipe(bundle: Bundle, recipe: Recipe, inputs: tuple[TensorSpec, ...]) -> TensorSpec:
    """Returns the input that takes the image. Raises BundleError if the recipe does not make it,
    or says nothing of another input."""
    unknown = set(recipe.zero_inputs) - {spec.name for spec in inputs}
    images = [spec for spec in inputs if spec.name not in recipe.zero_inputs]
    if unknown or len(images) != 1:
        raise BundleError(
            f"{bundle.folder}: the model takes {', '.join(spec.name for spec in inputs)}: the"
            " recipe's zero_inputs names all of them but the image"
        )
    [spec] = images
    shape = spec.shape[1:]
    if shape != recipe.shape or spec.dtype != recipe.dtype:
        order = "channels, height, width" if recipe.layout == "nchw" else "height, width, channels"
        raise BundleError(
            f"{bundle.folder}: the recipe makes {recipe.dtype} {list(recipe.shape)} ({order}) but"
            f" the model takes {spec.dtype} {list(shape)}: set the recipe's dtype, height, width,"
            " color and layout to that"
        )
    return spec
