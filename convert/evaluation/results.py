"""The result of an evaluation: the summary for bundle.json and the details for report.json."""

import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from convert.data.dataset import LabelledFrame
from convert.evaluation import metrics
from convert.evaluation.metrics import Indices, Probabilities
from convert.evaluation.verdicts import VerdictProof
from convert.folder_check import result as folder_result
from convert.folder_check.result import FolderCheck
from convert.quantization.tune import Latency
from convert.search import trail as search_trail
from convert.search.trail import Trail
from server.recognition.engines.litert import runtime
from server.recognition.manifest import Calibration, ClassReport, Familiarity, Recipe, Report
from server.recognition.tasks.classify import FAMILIAR
from server.values.labels import Label

# Beyond these a matrix of mostly zeros would be most of bundle.json, which every start reads.
MAX_CLASSES_IN_SUMMARY = 100
WORST = 10
HISTOGRAM_BINS = 40


@dataclass(frozen=True, slots=True)
class ModelResult:
    """One of the compared models: its answers, float32 [frames, classes], size in bytes and
    latency; `mode` is its quantisation."""

    mode: str
    probabilities: Probabilities
    size: int
    latency: Latency | None


@dataclass(frozen=True, slots=True)
class FamiliarityResult:
    """The familiarity of frames. settings: how the model's output was made. values: 0..1,
    unfamiliar below 0.5, float32 [frames]."""

    settings: Familiarity
    values: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Crossed:
    """A cross-validation of the training: every frame judged by a float model that never saw it.

    folds: how many. epoch: of fine-tuning, the one that the folds chose for the training on all
    frames. grouped: nearly the same frames were kept in one fold. top1, recalls: `metrics.rate` of
    all frames and of each class's. logits: of those models, [frames, classes].
    """

    folds: int
    epoch: int
    grouped: bool
    top1: dict[str, Any]
    recalls: Sequence[dict[str, Any]]
    logits: NDArray[np.float32]

    def details(self, labels: Sequence[Label]) -> dict[str, Any]:
        """Return all but the logits as plain JSON types."""
        return {
            "folds": self.folds,
            "epoch": self.epoch,
            "grouped": self.grouped,
            "top1": self.top1,
            "classes": [
                {"label": name, **recall}
                for name, recall in zip(class_names(labels), self.recalls, strict=True)
            ],
        }


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A model, and the float model it came from if there is one, on the same labelled frames.

    recipe: that the frames were fed by, for showing them. brightness: mean grey level 0..255 of
    each frame's input, [frames]. chose_epoch: the frames chose the epoch of the training that the
    model is of, so that they flatter it. fair_top1: the `metrics.rate` of the float model's right
    answers if each half is judged by the epoch that the other chooses. familiarity: None if the
    model can't say. verdicts: None without a policy. calibration: how the probabilities of both
    models were calibrated, or None. folder: the check of the frames that the model was trained and
    validated on, or None. crossed: the cross-validation of the training, or None. learned: the
    model learned from the frames, so that they say nothing of its accuracy. search: what was
    tried before this model was chosen, or None.
    """

    title: str
    labels: tuple[Label, ...]
    frames: tuple[LabelledFrame, ...]
    recipe: Recipe
    brightness: NDArray[np.float64]
    result: ModelResult
    reference: ModelResult | None = None
    chose_epoch: bool = False
    familiarity: FamiliarityResult | None = None
    verdicts: VerdictProof | None = None
    calibration: Calibration | None = None
    folder: FolderCheck | None = None
    search: Trail | None = None
    fair_top1: dict[str, Any] | None = None
    crossed: Crossed | None = None
    learned: bool = False

    @property
    def truth(self) -> Indices:
        """Return the true class of each frame, [frames]."""
        return np.array([item.label for item in self.frames], np.intp)

    def hits(self, side: ModelResult, k: int = 1) -> int:
        """Return frames whose true class is among the side's first k."""
        return int((metrics.ranks(side.probabilities, self.truth) < k).sum())


def accuracy_drop(proof: Evaluation) -> float:
    """Return percentage points of top-1 lost against the float model; negative if it gained."""
    if proof.reference is None:
        return 0.0
    lost = proof.hits(proof.reference) - proof.hits(proof.result)
    return 100 * lost / len(proof.frames)


def sentence(proof: Evaluation) -> str:
    """Return the proof in one line for the terminal."""
    n, hits = len(proof.frames), proof.hits(proof.result)
    low, high = metrics.wilson(hits, n)
    out = f"top-1 {hits / n:.2%} ({low:.1%} to {high:.1%}) of {n} frames"
    if proof.learned:
        out = f"top-1 {hits / n:.2%} of the {n} frames that it learned from"
    if proof.reference is None:
        return out
    same = int((_predicted(proof.reference) == _predicted(proof.result)).sum())
    out += f", float32 {proof.hits(proof.reference) / n:.2%}; same answer on {same}"
    ratio = _latency_ratio(proof)
    if ratio is not None and proof.result.latency is not None:
        out += f"; {proof.result.latency.median * 1e3:.2f} ms, {ratio:.3f} of float32's"
    return out


def class_table(proof: Evaluation) -> str:
    """Return frames, precision and recall of each class that occurs, as lines of text."""
    classes = _side(proof, proof.result)["classes"]
    width = max(len(c["label"]) for c in classes)
    lines = [f"{'class':{width}}  frames  precision  recall"]
    for c in classes:
        precision = f"{c['precision']:.1%}" if c["predicted"] else "-"
        recall = f"{c['recall']:.1%}" if c["images"] else "-"
        lines.append(f"{c['label']:{width}}  {c['images']:6}  {precision:>9}  {recall:>6}")
    return "\n".join(lines)


def class_names(labels: Sequence[Label]) -> tuple[str, ...]:
    """Return the labels' names, with the id if several share one (ImageNet has two «crane»)."""
    names = [label.name for label in labels]
    return tuple(
        f"{label.name} ({label.id or i})" if names.count(label.name) > 1 else label.name
        for i, label in enumerate(labels)
    )


def summary(proof: Evaluation, details: str | None) -> Report:
    """Return the report for bundle.json; `details` names the file of the bundle with the rest.

    Classes without frames are left out, and `confusion` is empty beyond MAX_CLASSES_IN_SUMMARY.
    Of frames that the model learned from, the accuracies are those of the cross-validation's float
    models, which never saw them, and there is no verdict.
    """
    n, result = len(proof.frames), proof.result
    reference = proof.reference or result
    named, hits, hits_float = _predicted(result), proof.hits(result), proof.hits(reference)
    if proof.learned and proof.crossed:
        named = np.asarray(proof.crossed.logits.argmax(axis=1), named.dtype)
        hits = hits_float = int(proof.crossed.top1["count"])
    matrix = metrics.confusion(proof.truth, named, len(proof.labels))
    precision, recall = metrics.precision_recall(matrix)
    images = matrix.sum(axis=1)
    return Report(
        images=n,
        top1=hits / n,
        top1_float=hits_float / n,
        interval=metrics.wilson(hits, n),
        classes={
            name: ClassReport(
                images=int(images[i]), precision=float(precision[i]), recall=float(recall[i])
            )
            for i, name in enumerate(class_names(proof.labels))
            if images[i]
        },
        confusion=tuple(tuple(int(v) for v in row) for row in matrix)
        if len(proof.labels) <= MAX_CLASSES_IN_SUMMARY
        else (),
        size_ratio=result.size / reference.size if proof.reference else None,
        latency_ratio=_latency_ratio(proof),
        agreement=float((_predicted(reference) == _predicted(result)).mean())
        if proof.reference
        else None,
        verdict=proof.verdicts.summary() if proof.verdicts and not proof.learned else None,
        calibration=proof.calibration,
        details=details,
    )


def details(proof: Evaluation) -> dict[str, Any]:
    """Everything that was found, as plain JSON types; sizes in bytes, latencies in seconds,
    accuracies as shares. `confusion` lists [true, predicted, frames] for what occurred."""
    sides = {"result": proof.result}
    if proof.reference:
        sides["float"] = proof.reference
    return {
        "format": 1,
        "title": proof.title,
        "mode": proof.result.mode,
        "frames": len(proof.frames),
        "chose_epoch": proof.chose_epoch,
        "fair_top1": proof.fair_top1,
        "crossed": proof.crossed.details(proof.labels) if proof.crossed else None,
        "learned": proof.learned,
        "accept": list(proof.verdicts.policy.accept) if proof.verdicts else [],
        "verdict": proof.verdicts.details() if proof.verdicts else None,
        "familiarity": _familiarity(proof.familiarity),
        "calibration": msgspec.to_builtins(proof.calibration),
        "folder": folder_result.details(proof.folder) if proof.folder else None,
        "search": search_trail.details(proof.search) if proof.search else None,
        "labels": list(class_names(proof.labels)),
        "measured_on": {
            "runtime": runtime(),
            "processor": processor(),
            "cores": os.cpu_count(),
            "threads": 1,
        },
        "models": {name: _side(proof, side) for name, side in sides.items()},
        "ratios": {
            "size": proof.result.size / proof.reference.size if proof.reference else None,
            "latency": _latency_ratio(proof),
        },
        "agreement": _agreement(proof),
        "per_frame": list(_per_frame(proof)),
        "most_different": [int(i) for i in most_different(proof)],
    }


def _side(proof: Evaluation, side: ModelResult) -> dict[str, Any]:
    n, classes = len(proof.frames), len(proof.labels)
    matrix = metrics.confusion(proof.truth, _predicted(side), classes)
    precision, recall = metrics.precision_recall(matrix)
    bins = metrics.reliability(side.probabilities, proof.truth)
    shown = np.flatnonzero(matrix.sum(axis=0) + matrix.sum(axis=1))
    out: dict[str, Any] = {
        "mode": side.mode,
        "size": side.size,
        "latency": asdict(side.latency) if side.latency else None,
        "classes": [
            {
                "label": class_names(proof.labels)[i],
                "images": int(matrix[i].sum()),
                "predicted": int(matrix[:, i].sum()),
                "precision": float(precision[i]),
                "recall": float(recall[i]),
            }
            for i in shown
        ],
        "confusion": [
            [int(true), int(predicted), int(matrix[true, predicted])]
            for true, predicted in np.argwhere(matrix)
        ],
        "calibration": {
            "expected_error": metrics.calibration_error(
                metrics.reliability(side.probabilities, proof.truth, metrics.ERROR_BINS)
            ),
            "bins": [asdict(b) for b in bins],
        },
    }
    for k in (1, 5):
        hits = proof.hits(side, k)
        out[f"top{k}"] = {"hits": hits, "share": hits / n, "interval": metrics.wilson(hits, n)}
    return out


def _familiarity(result: FamiliarityResult | None) -> dict[str, Any] | None:
    if result is None:
        return None
    counts, _ = np.histogram(result.values, HISTOGRAM_BINS, (0, 1))
    unfamiliar = int((result.values < FAMILIAR).sum())
    return {
        **msgspec.to_builtins(result.settings),
        "histogram": counts.tolist(),
        "unfamiliar": metrics.rate(unfamiliar, len(result.values)),
    }


def _agreement(proof: Evaluation) -> dict[str, Any] | None:
    if proof.reference is None:
        return None
    first, second = proof.reference.probabilities, proof.result.probabilities
    same = int((first.argmax(axis=1) == second.argmax(axis=1)).sum())
    moved = np.abs(first.astype(np.float64) - second).max(axis=1)
    return {
        "same_top1": same,
        "share": same / len(proof.frames),
        "largest_difference": float(moved.max()),
        "mean_largest_difference": float(moved.mean()),
    }


def _per_frame(proof: Evaluation) -> Iterator[dict[str, Any]]:
    names = class_names(proof.labels)
    for i, item in enumerate(proof.frames):
        out: dict[str, Any] = {
            # Not the whole path: it is of the machine that converted, and the report travels.
            "file": f"{item.path.parent.name}/{item.path.name}",
            "true": names[item.label],
        }
        sides = {"float": proof.reference, "result": proof.result}
        for name, side in sides.items():
            if side is not None:
                best = int(side.probabilities[i].argmax())
                out[name] = {
                    "label": names[best],
                    "probability": float(side.probabilities[i, best]),
                    "right": best == item.label,
                }
        if proof.reference is not None:
            both = proof.reference.probabilities[i : i + 1], proof.result.probabilities[i : i + 1]
            out["distance"] = float(metrics.distance(*both)[0])
            out["same_class"] = float(both[1][0, both[0][0].argmax()])
        yield out


def most_different(proof: Evaluation) -> Indices:
    """At most WORST frames on which the models differ: another top-1 first, then by the distance
    of their probabilities. Empty without a float model."""
    if proof.reference is None:
        return np.empty(0, np.intp)
    other = _predicted(proof.reference) != _predicted(proof.result)
    apart = metrics.distance(proof.reference.probabilities, proof.result.probabilities)
    return np.lexsort((-apart, ~other))[:WORST]


def processor() -> str:
    """Return the processor's name as Linux gives it, or the architecture."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.machine()


def _predicted(side: ModelResult) -> Indices:
    return np.asarray(side.probabilities.argmax(axis=1), np.intp)


def _latency_ratio(proof: Evaluation) -> float | None:
    ours, theirs = proof.result.latency, proof.reference.latency if proof.reference else None
    return ours.median / theirs.median if ours and theirs else None
