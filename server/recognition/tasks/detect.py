"""detect: the objects in a frame, each with its label and its box."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from server.errors import BundleError
from server.recognition.answers import Answer, Options, Prediction
from server.recognition.detection import outputs as reading
from server.recognition.detection.manifest import (
    Box,
    DetectionBaseline,
    DetectionGolden,
    DetectionManifest,
    DetectionPolicy,
)
from server.recognition.detection.merging import merge_tiles
from server.recognition.detection.outputs import Candidates, Layout
from server.recognition.drawing import Mark, Overlay
from server.recognition.interpreter import InterpreterPool
from server.recognition.manifest import Baseline, Bundle, Golden, VerdictPolicy, beyond_frame
from server.recognition.preprocessing import Placement, Tensor
from server.recognition.tasks import TaskName
from server.recognition.tasks.classify import Classify
from server.recognition.tasks.task import (
    DriftSignal,
    NotFiniteError,
    Reader,
    Result,
    SampleWishes,
    TaskMetric,
    Verdict,
    unknown_label,
)
from server.values.wording import counted

# A golden frame's boxes overlap by at least this much with what they should be.
GOLDEN_IOU_MIN = 0.9
# Bins of the drift signal `count`: 0, 1, ... 14 objects, and more.
COUNT_BINS = 16
# Conventions whose models leave no overlapping boxes.
WITHOUT_OVERLAPS = frozenset({"post_process", "nms", "fomo", "class_map"})

# Candidates, or the class of each pixel [h, w].
Values: TypeAlias = Candidates | NDArray[np.int64]


class Detection(msgspec.Struct, frozen=True, omit_defaults=True):
    """One object. probability: 0..1; of a map of classes, the share of the frame that the class
    covers. box: left, top, width and height in pixels of the frame as sent, upright; it may reach
    beyond the frame. id: the label's outside name, or ''."""

    class_id: int
    label: str
    probability: float
    box: Box
    id: str = ""


class DetectionFields(msgspec.Struct, frozen=True):
    """detections: the objects that a detector found, most probable first; absent from other
    models' answers."""

    detections: tuple[Detection, ...] | msgspec.UnsetType = msgspec.UNSET


class Detections(Result, frozen=True):
    """found: all objects, whatever threshold the caller gave for those in `details`. size: width
    and height of the frame that their boxes are in."""

    found: tuple[Detection, ...] = ()
    size: tuple[float, float] = (1, 1)


def detections_of(answer: Answer) -> tuple[Detection, ...]:
    """Returns the objects of a detector's answer, also if a job or the cache kept it."""
    if all(isinstance(each, Detection) for each in answer.details):
        return cast(tuple[Detection, ...], answer.details)
    return msgspec.convert(answer.details, tuple[Detection, ...])


def marks_of(objects: Sequence[Detection]) -> tuple[Mark, ...]:
    """Returns the boxes of objects as they are drawn, the most probable ones last, on top."""
    return tuple(
        Mark(each.box, f"{each.label} {each.probability:.2f}", each.class_id)
        for each in reversed(objects)
    )


def judge(
    found: Sequence[Detection], policy: DetectionPolicy, size: tuple[float, float] = (1, 1)
) -> Verdict:
    """Applies the policy to all objects in its region of a frame of `size`, and to those of at
    least its `min_probability`; if the two disagree, the verdict is `unsure`.

    The rules, by their reason and in their order: `forbidden`, `expected`, `minimum`, `maximum`,
    `no_label`, `not_accepted`; `accept` or `counts` if none of them failed.
    """
    if policy.region is not msgspec.UNSET:
        left, top, width, height = np.multiply(policy.region, (*size, *size))
        found = [
            each
            for each in found
            if left <= each.box[0] + each.box[2] / 2 <= left + width
            and top <= each.box[1] + each.box[3] / 2 <= top + height
        ]
    sure = [each for each in found if each.probability >= policy.min_probability]
    verdict = _apply_rules(sure, policy)
    if verdict.verdict != _apply_rules(found, policy).verdict:
        return Verdict("unsure", "min_probability")
    return verdict


def _apply_rules(found: Sequence[Detection], policy: DetectionPolicy) -> Verdict:
    counts = Counter(each.label for each in found)
    if any(counts[label] for label in policy.forbidden):
        return Verdict("fail", "forbidden")
    if any(counts[label] != count for label, count in policy.expected.items()):
        return Verdict("fail", "expected")
    if any(counts[label] < count for label, count in policy.minimum.items()):
        return Verdict("fail", "minimum")
    if any(counts[label] > count for label, count in policy.maximum.items()):
        return Verdict("fail", "maximum")
    if not policy.accept:
        return Verdict("pass", "counts")
    if not found:
        return Verdict("unsure", "no_label")
    if set(counts) <= set(policy.accept):
        return Verdict("pass", "accept")
    return Verdict("fail", "not_accepted")


class DetectionReader(Reader[Values]):
    """Reads the objects from a model's outputs by the convention that the bundle names."""

    def __init__(self, bundle: Bundle, pool: InterpreterPool) -> None:
        super().__init__(bundle, pool)
        manifest = cast(DetectionManifest, bundle.manifest)
        self.recipe = manifest.detection
        taken = manifest.recipe
        size = (taken.width, taken.height) if taken else (1, 1)
        specs = _output_specs(bundle, pool)
        self.layout = Layout(self.recipe, size, specs, len(bundle.labels))
        self._anchors = reading.make_anchors(self.recipe.anchors, size)
        _check_shapes(bundle, self.layout, len(self._anchors))
        self._read = self._reader()

    def _reader(self) -> Callable[[Sequence[Tensor]], Values | None]:
        layout = self.layout
        if self.recipe.convention == "blazeface":
            return lambda outputs: reading.read_blazeface(outputs, layout, self._anchors)
        if self.recipe.convention == "class_map":
            return lambda outputs: reading.read_class_map(outputs[0], layout.specs[0])
        read = {
            "post_process": reading.read_post_process,
            "yolov5": reading.read_yolov5,
            "yolov8": reading.read_yolov8,
            "nms": reading.read_nms,
            "fomo": reading.read_fomo,
        }[self.recipe.convention]
        return lambda outputs: read(outputs, layout)

    def decode(self, outputs: Sequence[Tensor]) -> Values:
        """Returns the boxes that reach the score threshold, or the map of classes."""
        values = self._read([outputs[place] for place in self.recipe.outputs])
        if values is None:
            raise NotFiniteError
        numbers = values[:2] if isinstance(values, Candidates) else ()
        if not all(np.isfinite(part).all() for part in numbers):
            raise NotFiniteError
        return values

    def tiles_fault(self) -> str:
        """Says that a map of classes has no boxes to merge."""
        if self.recipe.convention == "class_map":
            return "a map of classes is of a frame as a whole: recipe.tiles suits other detectors"
        return ""

    def merge(
        self, parts: Sequence[Values], placements: Sequence[Placement]
    ) -> tuple[Values, Placement]:
        """Returns the objects of all tiles, each once, and a placement of the frame in itself."""
        each = [self._without_overlaps(cast(Candidates, part)) for part in parts]
        size = placements[0].size
        whole = Placement(size, (1.0, 1.0), (0.0, 0.0), (0.0, 0.0, *size))
        return merge_tiles(each, placements, self.recipe.iou_threshold), whole

    def result(
        self, values: Values, options: Options, placement: Placement | None = None
    ) -> Detections:
        """Returns the objects, most probable first; without a `placement`, their boxes are in
        pixels of the model's input. The labels for the answer are theirs, each once."""
        found = self._detections(values, placement)
        shown = tuple(each for each in found if each.probability >= options.threshold)
        labels: dict[int, Prediction] = {}
        for each in shown:
            if each.class_id not in labels:
                labels[each.class_id] = _prediction(each)
        best = _prediction(found[0]) if found else None
        size = placement.size if placement else self.layout.size
        return Detections(best, tuple(labels.values())[: options.top_k], shown, found, size)

    def _detections(self, values: Values, placement: Placement | None) -> tuple[Detection, ...]:
        recipe, labels = self.recipe, self.bundle.labels
        if not isinstance(values, Candidates):
            part = placement.visible if placement else (0.0, 0.0, *self.layout.size)
            values = reading.objects_in_map(values, part, self.layout)
        lines = values.classes + recipe.class_offset
        named = (lines >= 0) & (lines < len(labels))
        if recipe.background is not None:
            named &= lines != recipe.background
        values = Candidates(values.boxes[named], values.scores[named], lines[named])
        values = self._without_overlaps(values)
        boxes = values.boxes if placement is None else placement.to_frame(values.boxes)
        rows = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).round(2)
        return tuple(
            Detection(
                line, labels[line].name, min(1.0, max(0.0, score)), tuple(row), labels[line].id
            )
            for row, score, line in zip(
                rows.tolist(), values.scores.tolist(), values.classes.tolist(), strict=True
            )
        )

    def _without_overlaps(self, values: Candidates) -> Candidates:
        recipe = self.recipe
        if recipe.convention in WITHOUT_OVERLAPS:
            return reading.most_probable(values, recipe.max_detections)
        return reading.suppress_overlaps(values, recipe.iou_threshold, recipe.max_detections)

    def verdict(self, result: Result) -> Verdict | None:
        """Judges a frame by all its objects."""
        if self.policy is None:
            return None
        objects = cast(Detections, result)
        return judge(objects.found, self.policy, objects.size)

    def golden_fault(
        self, golden: Golden, values: Values, placement: Placement | None = None
    ) -> str:
        """Compares labels, probabilities and boxes. An object so near to the score threshold that
        another processor may miss it is neither demanded nor a fault."""
        wanted = cast(DetectionGolden, golden)
        found = list(self._detections(values, placement))
        for each in wanted.detections:
            best = max(
                (other for other in found if other.label == each.label),
                key=lambda other: reading.overlap(each.box, other.box),
                default=None,
            )
            if best is None or reading.overlap(each.box, best.box) < GOLDEN_IOU_MIN:
                return f"should show {each.label} at {_where(each.box)}, which this model misses"
            if abs(best.probability - each.probability) > golden.tolerance:
                return (
                    f"should show {each.label} at {_where(each.box)} with {each.probability:.3f}"
                    f" but this model says {best.probability:.3f}"
                )
            found.remove(best)
        surely = self.recipe.score_threshold + golden.tolerance
        for extra in found:
            if extra.probability > surely:
                return (
                    f"shows no {extra.label} at {_where(extra.box)}, where this model finds one at"
                    f" {extra.probability:.3f}"
                )
        return ""


def _prediction(each: Detection) -> Prediction:
    return Prediction(each.class_id, each.label, each.probability, each.id)


def _where(box: Box) -> str:
    return "[" + ", ".join(f"{number:.0f}" for number in box) + "]"


def _output_specs(bundle: Bundle, pool: InterpreterPool) -> tuple[Any, ...]:
    recipe = cast(DetectionManifest, bundle.manifest).detection
    wanted = {"post_process": 4, "blazeface": 2}.get(recipe.convention, 1)
    places = recipe.outputs
    if len(places) != wanted or len(set(places)) != wanted:
        raise BundleError(
            f"{bundle.folder}: {recipe.convention} reads {counted(wanted, 'output')}, and"
            f" detection.outputs names {', '.join(map(str, places))}"
        )
    if max(places) >= len(pool.outputs):
        raise BundleError(
            f"{bundle.folder}: detection.outputs names the output {max(places)}, but the model has"
            f" {len(pool.outputs)}, counted from 0"
        )
    return tuple(pool.outputs[place] for place in places)


def _check_shapes(bundle: Bundle, layout: Layout, anchors: int) -> None:
    """Raises BundleError if the outputs do not have the convention's shapes."""
    recipe, labels = layout.recipe, layout.labels
    shapes = [spec.shape for spec in layout.specs]
    first, boxes = shapes[0], shapes[0][1] if len(shapes[0]) > 1 else 0
    if recipe.convention == "post_process":
        fits = first == (1, boxes, 4) and all(math.prod(s) == boxes for s in shapes[1:3])
        fits = fits and math.prod(shapes[3]) == 1
    elif recipe.convention == "blazeface":
        fits = len(first) == 3 and first[2] >= 4 and math.prod(shapes[1]) == boxes
        if fits and anchors != boxes:
            raise BundleError(
                f"{bundle.folder}: detection.anchors makes {anchors} anchors, but the model has"
                f" {boxes} boxes"
            )
    elif recipe.convention == "nms":
        fits = len(first) == 3 and first[2] == 6
    elif recipe.convention == "class_map":
        fits = len(first) in (3, 4)
    elif recipe.convention == "fomo":
        fits = len(first) == 4 and first[3] > 1
    else:
        try:
            reading.boxes_by_row(first, recipe, labels)
            fits = True
        except ValueError:
            fits = False
    if not fits or any(size < 1 for shape in shapes for size in shape) or first[0] != 1:
        raise BundleError(
            f"{bundle.folder}: with {counted(labels, 'label')} the outputs"
            f" {', '.join(str(list(shape)) for shape in shapes)} are not those of"
            f" {recipe.convention}"
        )


class Detect(Classify):
    """Frames of several things, each with a label and a place."""

    name: TaskName = "detect"
    scores_labels = False
    manifest_type = DetectionManifest
    policy_type = DetectionPolicy
    answer_type = DetectionFields
    metrics = (TaskMetric("detections_total", "Objects by their label", ("label",)),)
    drift_signals = ("class", "confidence", "count")

    def make_reader(self, bundle: Bundle, pool: InterpreterPool) -> DetectionReader:  # type: ignore[override]
        """Raises BundleError unless the outputs have the shapes of the bundle's convention."""
        return DetectionReader(bundle, pool)

    def policy_fault(self, policy: DetectionPolicy, bundle: Bundle, name: str) -> str:
        """Says which field names an unknown label, that no frame or any frame would pass, or that
        the region is not in the frame."""
        if not policy.named:
            return f"{name} has no rule, so that any frame would pass"
        for field in ("expected", "minimum", "maximum", "forbidden"):
            if fault := unknown_label(f"{name}.{field}", getattr(policy, field), bundle):
                return fault
        if policy.region is not msgspec.UNSET and beyond_frame(policy.region):
            return f"{name}.region reaches beyond the frame, where a share is more than 1"
        for label in policy.named:
            least = max(policy.minimum.get(label, 0), policy.expected.get(label, 0))
            most = min(policy.maximum.get(label, least), policy.expected.get(label, least))
            if least > (0 if label in policy.forbidden else most):
                return f"{name} contradicts itself about {label}: no frame would pass"
        return super().policy_fault(policy, bundle, name)

    def answer_fields(self, answer: Answer) -> Mapping[str, Any]:
        """Returns the objects."""
        return {"detections": detections_of(answer)}

    def overlay(self, answer: Answer) -> Overlay:
        """Returns a box for each object, in the colour of its label, and how many there are."""
        objects = detections_of(answer)
        return Overlay(lines=(counted(len(objects), "object"),), marks=marks_of(objects))

    def observe(self, answer: Answer) -> Iterator[tuple[str, tuple[str, ...], float]]:
        """Counts the objects of each label."""
        for label, count in Counter(each.label for each in detections_of(answer)).items():
            yield "detections_total", (label,), count

    def sample_reason(
        self, answer: Answer, wishes: SampleWishes, policy: VerdictPolicy | None
    ) -> str | None:
        """Goes by the label of any object, and by the probability of the surest one."""
        if any(each.label in wishes.labels for each in detections_of(answer)):
            return "label"
        return super().sample_reason(answer, wishes, policy)

    def read_baseline(self, baseline: Baseline) -> dict[str, DriftSignal]:
        """Returns the mix and the confidence of the surest objects, and how many there are."""
        signals = super().read_baseline(baseline)
        count = cast(DetectionBaseline, baseline).count
        if len(count) == COUNT_BINS:
            signals["count"] = DriftSignal(
                count, lambda answer: min(len(detections_of(answer)), COUNT_BINS - 1)
            )
        return signals


TASK = Detect()
