"""anomaly: how unlike the good frames a frame is, and where, from a model that learned from good
frames alone."""

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import cv2
import msgspec
import numpy as np
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

from server.errors import BundleError
from server.recognition.answers import Answer, Options, Prediction
from server.recognition.drawing import Box, HeatMap, Mark, Overlay
from server.recognition.interpreter import InterpreterPool
from server.recognition.manifest import (
    Bundle,
    Golden,
    Manifest,
    Share,
    VerdictPolicy,
    VerdictReport,
)
from server.recognition.preprocessing import Placement, Tensor, dequantize
from server.recognition.tasks import TaskName
from server.recognition.tasks.classify import Classify
from server.recognition.tasks.task import (
    SHARES,
    NotFiniteError,
    Reader,
    Result,
    SampleWishes,
    TaskMetric,
    Verdict,
)

GOOD, ANOMALY = "good", "anomaly"
LABELS = (GOOD, ANOMALY)
SCORE, MAP = "score", "map"
# The model's own scale: `convert` puts the threshold there.
THRESHOLD = 0.5
# The map is so many times larger where regions are looked for: a box is finer than a place. Odd, so
# that each place's own value is among those between places.
MAGNIFICATION = 5
MAX_REGIONS = 20
# Places of all tiles of a frame; the magnified map then has 26 MB.
MERGED_PLACES_MAX = 512 * 512
# Of the marks of regions: red on a frame.
REGION_KIND = 4


class AnomalySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The making of an anomaly bundle, and its figures on frames.

    false_rejects: share of good frames that the threshold was chosen to reject. learned_from: good
    frames. held_back_rejected: share of good frames above the threshold, each by statistics of the
    others. auroc, pixel_auroc, good_rejected, bad_caught, verdict: on validation frames, None
    without.
    details: names a file of the bundle that holds everything else.
    """

    false_rejects: Share
    learned_from: int
    held_back_rejected: Share
    auroc: Share | None = None
    auroc_interval: tuple[Share, Share] | None = None
    pixel_auroc: Share | None = None
    good_rejected: Share | None = None
    bad_caught: Share | None = None
    verdict: VerdictReport | None = None
    details: str | None = None


class AnomalyPolicy(VerdictPolicy, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The policy that turns an anomaly score into a verdict.

    accept: `good` alone.
    threshold: score above which a frame is an anomaly. The probability of `anomaly` is 0.5 there,
        and in a straight line 0 and 1 at the scores 0 and 1.
    min_probability: below it the verdict is `unsure`: a band about the threshold.
    """

    accept: tuple[str, ...] = (GOOD,)
    threshold: Annotated[float, msgspec.Meta(gt=0, lt=1)] = THRESHOLD


class AnomalyManifest(Manifest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """bundle.json of an anomaly model; labels.txt holds good and anomaly."""

    verdict: AnomalyPolicy | None = None
    anomaly: AnomalySettings | None = None


class Region(msgspec.Struct, frozen=True):
    """A part of the frame above the threshold. box: left, top, width and height in pixels of the
    frame as sent, upright. score: the highest in it, from the threshold to 1."""

    box: tuple[int, int, int, int]
    score: float


class AnomalyDetails(msgspec.Struct, frozen=True):
    """score, threshold: 0..1; the frame is an anomaly above the threshold. regions: the highest
    score first. heatmap: an 8-bit grey PNG of scores, 0 to 255 for 0 to 1, base64. heatmap_box: of
    the whole of it in pixels of the frame as sent, upright; it may reach beyond the frame, or cover
    a part of it. None if that is not known."""

    score: float
    threshold: float
    regions: tuple[Region, ...]
    heatmap: str
    heatmap_box: Box | None = None


class AnomalyAnswer(msgspec.Struct, frozen=True):
    """`score` and `threshold` in 0..1, and the regions above it in pixels of the frame as sent:
    none if the frame is unlike good ones as a whole and no place stands out."""

    score: float
    threshold: float
    regions: tuple[Region, ...]


class AnomalyFields(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of the answer. heatmap: a grey PNG of scores as base64, 255 for 1, if asked for.
    heatmap_box: left, top, width and height of all of it in pixels of the frame as sent."""

    anomaly: AnomalyAnswer | UnsetType = UNSET
    heatmap: Annotated[str, msgspec.Meta(extra_json_schema={"format": "byte"})] | UnsetType = UNSET
    heatmap_box: Box | UnsetType = UNSET


class AnomalyValues(msgspec.Struct, frozen=True):
    """score: 0..1. map: scores of places, float32 [height, width]."""

    score: float
    map: NDArray[np.float32]


class AnomalyReader(Reader[AnomalyValues]):
    """Reads the outputs that a signature names `score` [1] and `map` [1, height, width, 1]."""

    def __init__(self, bundle: Bundle, pool: InterpreterPool) -> None:
        """Raises BundleError unless the model has these outputs, and labels.txt these labels."""
        super().__init__(bundle, pool)
        names = [spec.signature for spec in pool.outputs]
        if sorted(names) != sorted((SCORE, MAP)):
            raise BundleError(
                f"{bundle.folder}: an anomaly model has the outputs {SCORE} and {MAP}; this one has"
                f" {', '.join(name or 'one without a name' for name in names)}"
            )
        self._score, self._map = names.index(SCORE), names.index(MAP)
        shape = pool.outputs[self._map].shape
        if len(shape) != 4 or shape[0] != 1 or shape[3] != 1 or min(shape) < 1:
            raise BundleError(
                f"{bundle.folder}: the output {MAP} is {list(shape)}; it should be [1, height,"
                " width, 1]"
            )
        if tuple(label.name for label in bundle.labels) != LABELS:
            raise BundleError(
                f"{bundle.folder}: the labels of an anomaly model are {' and '.join(LABELS)}"
            )

    def decode(self, outputs: Sequence[Tensor]) -> AnomalyValues:
        """Raises NotFiniteError."""
        score, places = (
            dequantize(outputs[i], self.pool.outputs[i]) for i in (self._score, self._map)
        )
        if not (np.isfinite(score).all() and np.isfinite(places).all()):
            raise NotFiniteError
        value = min(1.0, max(0.0, float(score.reshape(-1)[0])))
        return AnomalyValues(value, places[0, :, :, 0])

    def tiles_fault(self) -> str:
        """Says that the merged map would be too large."""
        recipe = self.bundle.manifest.recipe
        assert recipe is not None
        tiles, shape = recipe.tiles, self.pool.outputs[self._map].shape
        if tiles and math.prod(shape) * tiles.columns * tiles.rows > MERGED_PLACES_MAX:
            return (
                f"the maps of {tiles.columns} x {tiles.rows} tiles have {shape[2]} x {shape[1]}"
                f" places each; at most {MERGED_PLACES_MAX} are merged"
            )
        return ""

    def merge(
        self, parts: Sequence[AnomalyValues], placements: Sequence[Placement]
    ) -> tuple[AnomalyValues, Placement]:
        """Returns the highest score, and a map of the whole part of the frame that tiles show, in
        which each place has the highest score that a tile gives it."""
        recipe = self.bundle.manifest.recipe
        assert recipe is not None
        inside = np.array([recipe.width, recipe.height])
        shown = np.stack([place.part for place in placements])
        corner = shown[:, :2].min(axis=0)
        size = shown[:, 2:].max(axis=0) - corner
        per_pixel = np.array(parts[0].map.shape[::-1]) / inside
        # No place of the merged map is larger than one of a tile, so that none of those is skipped.
        scale = np.array([place.scale for place in placements]).max(axis=0)
        columns, rows = np.ceil(size * scale * per_pixel - 0.01).astype(int).tolist()
        merged = np.zeros((rows, columns), np.float32)
        centres = [
            corner[i] + (np.arange(count) + 0.5) * size[i] / count
            for i, count in enumerate((columns, rows))
        ]
        for part, place, edges in zip(parts, placements, shown, strict=True):
            own, theirs = [], []
            for i in (0, 1):
                here = np.flatnonzero((edges[i] <= centres[i]) & (centres[i] < edges[i + 2]))
                inputs = centres[i][here] * place.scale[i] + place.offset[i]
                own.append(here)
                places = np.floor(inputs * per_pixel[i]).astype(int)
                theirs.append(places.clip(0, part.map.shape[1 - i] - 1))
            tile, at = part.map[np.ix_(*theirs[::-1])], np.ix_(*own[::-1])
            merged[at] = np.maximum(merged[at], tile)
        ratio = inside / size
        whole = Placement(
            placements[0].size,
            tuple(ratio.tolist()),
            tuple((-corner * ratio).tolist()),
            (0.0, 0.0, *inside.tolist()),
        )
        return AnomalyValues(max(part.score for part in parts), merged), whole

    def result(
        self, values: AnomalyValues, options: Options, placement: Placement | None = None
    ) -> Result:
        """Returns the two labels, the likelier one first, and the regions; without a `placement`,
        their boxes are in pixels of the model's input."""
        threshold = self.policy.threshold if self.policy else THRESHOLD
        if values.score > threshold:
            anomaly = 0.5 + 0.5 * (values.score - threshold) / (1 - threshold)
        else:
            anomaly = 0.5 * values.score / threshold
        both = (Prediction(0, GOOD, 1 - anomaly), Prediction(1, ANOMALY, anomaly))
        first = sorted(both, key=lambda each: -each.probability)[: options.top_k]
        shown = tuple(each for each in first if each.probability >= options.threshold)
        height, width = values.map.shape
        large = cv2.resize(values.map, (width * MAGNIFICATION, height * MAGNIFICATION))
        details = AnomalyDetails(
            round(values.score, 6),
            threshold,
            self._regions(large, threshold, placement) if values.score > threshold else (),
            _grey_png(large),
            self._input_box(placement) if placement else None,
        )
        return Result(first[0], shown, details)

    def verdict(self, result: Result) -> Verdict | None:
        """Judges by the score: `anomaly` above the threshold, `no_anomaly` below it, and
        `near_threshold` within the policy's band about it, which is unsure."""
        if self.policy is None:
            return None
        if not result.predictions or result.best is None:
            return Verdict("unsure", "no_label")
        if result.best.probability < self.policy.min_probability:
            return Verdict("unsure", "near_threshold")
        if result.best.label == ANOMALY:
            return Verdict("fail", "anomaly")
        return Verdict("pass", "no_anomaly")

    def golden_fault(
        self, golden: Golden, values: AnomalyValues, placement: Placement | None = None
    ) -> str:
        """Compares the side of the threshold, and the label's probability."""
        label = ANOMALY if values.score > THRESHOLD else GOOD
        probability = values.score if golden.label == ANOMALY else 1 - values.score
        off = abs(probability - golden.probability)
        if label == golden.label and off <= golden.tolerance:
            return ""
        return (
            f"should be {golden.label} at {golden.probability:.3f}"
            f" but this model's anomaly score is {values.score:.3f}"
        )

    def _input_box(self, placement: Placement) -> Box:
        """The place of the model's whole input in the frame."""
        recipe = self.bundle.manifest.recipe
        assert recipe is not None
        corners = placement.to_frame(np.array([[0, 0, recipe.width, recipe.height]], np.float32))
        left, top, right, bottom = corners[0].round(2).tolist()
        return left, top, right - left, bottom - top

    def _regions(
        self, scores: NDArray[Any], threshold: float, placement: Placement | None
    ) -> tuple[Region, ...]:
        """Connected parts above the threshold, at most MAX_REGIONS, the highest score first."""
        above = (scores > threshold).astype(np.uint8)
        count, marks, parts, _ = cv2.connectedComponentsWithStats(above, connectivity=8)
        recipe = self.bundle.manifest.recipe
        assert recipe is not None
        height, width = recipe.height, recipe.width
        boxes = parts[1:count, :4].astype(np.float32)
        boxes[:, 2:] += boxes[:, :2]
        boxes *= np.array([width / scores.shape[1], height / scores.shape[0]] * 2, np.float32)
        limits = (width, height) if placement is None else placement.size
        edges = boxes if placement is None else placement.to_frame(boxes)
        edges = np.clip(np.rint(edges), 0, limits * 2).astype(int)
        found = [
            Region(
                (left, top, max(1, right - left), max(1, bottom - top)),
                round(float(scores[marks == number].max()), 6),
            )
            for number, (left, top, right, bottom) in enumerate(edges.tolist(), 1)
        ]
        return tuple(sorted(found, key=lambda region: -region.score)[:MAX_REGIONS])


def _grey_png(scores: NDArray[Any]) -> str:
    levels = np.clip(np.rint(scores * 255), 0, 255).astype(np.uint8)
    _, data = cv2.imencode(".png", levels)
    return base64.b64encode(data.tobytes()).decode()


class Anomaly(Classify):
    """Frames that are good or not; the labels and their probabilities follow from the score."""

    name: TaskName = "anomaly"
    scores_labels = False
    manifest_type = AnomalyManifest
    policy_type = AnomalyPolicy
    answer_type = AnomalyFields
    metrics = (
        *Classify.metrics,
        TaskMetric("anomaly_score", "Anomaly scores; the threshold is 0.5", buckets=SHARES),
    )
    sample_reasons = ("label", "threshold", "uncertain")

    def make_reader(self, bundle: Bundle, pool: InterpreterPool) -> Any:
        """Raises BundleError as AnomalyReader does."""
        return AnomalyReader(bundle, pool)

    def policy_fault(self, policy: AnomalyPolicy, bundle: Bundle, name: str) -> str:
        """Says which field does not suit an anomaly model."""
        if set(policy.accept) != {GOOD}:
            return f'{name}.accept should be ["{GOOD}"]: the score decides about an anomaly'
        return super().policy_fault(policy, bundle, name)

    def answer_fields(self, answer: Answer) -> Mapping[str, Any]:
        """Returns score, threshold and regions, and the heat map."""
        details = _details(answer)
        shown = AnomalyAnswer(details.score, details.threshold, details.regions)
        box = details.heatmap_box or UNSET
        return {"anomaly": shown, "heatmap": details.heatmap, "heatmap_box": box}

    def overlay(self, answer: Answer) -> Overlay:
        """Returns the scores as a heat map, the regions, and the frame's score."""
        details = _details(answer)
        grey = np.frombuffer(base64.b64decode(details.heatmap), np.uint8)
        levels = cv2.imdecode(grey, cv2.IMREAD_GRAYSCALE)
        scores = np.asarray(levels, np.float32) / np.float32(255)
        return Overlay(
            lines=(f"anomaly score {details.score:.2f}",),
            marks=tuple(
                Mark(each.box, f"{each.score:.2f}", REGION_KIND) for each in details.regions
            ),
            heats=(HeatMap(scores, details.threshold, details.heatmap_box),),
        )

    def observe(self, answer: Answer) -> Iterator[tuple[str, tuple[str, ...], float]]:
        """Counts the label, and the score."""
        yield from super().observe(answer)
        yield "anomaly_score", (), _details(answer).score

    def sample_reason(
        self, answer: Answer, wishes: SampleWishes, policy: VerdictPolicy | None
    ) -> str | None:
        """Goes by the label, and by how near the score is to the threshold."""
        if answer.label in wishes.labels:
            return "label"
        details = _details(answer)
        if wishes.margin and abs(details.score - details.threshold) <= wishes.margin:
            return "threshold"
        return "uncertain" if answer.probability < wishes.below else None


def _details(answer: Answer) -> AnomalyDetails:
    """The details of an answer, which jobs and the cache keep as plain values."""
    if isinstance(answer.details, AnomalyDetails):
        return answer.details
    return msgspec.convert(answer.details, AnomalyDetails)


TASK = Anomaly()
