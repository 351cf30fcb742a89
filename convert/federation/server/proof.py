"""Both models judged on frames that the sites held back, from the counts that the sites sent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.errors import ConvertError, GateError
from convert.evaluation import metrics
from convert.evaluation.results import MAX_CLASSES_IN_SUMMARY
from server.recognition.manifest import ClassReport, Report

Matrix = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SiteProof:
    """A site's held-back frames by true class (row) and predicted class (column), int64 [classes,
    classes], as the bundle's model and the float model name them; `same`: frames with one answer
    from both."""

    name: str
    result: Matrix
    reference: Matrix
    same: int

    @property
    def frames(self) -> int:
        """Return how many frames were judged."""
        return int(self.result.sum())


def read_proof(name: str, classes: int, values: Mapping[str, Any]) -> SiteProof:
    """Return what a site sent: `result` and `reference`, each a list row by row, and `same`.

    Raises ConvertError for counts that contradict each other.
    """
    try:
        result, reference = (
            np.array(values[side], np.int64).reshape(classes, classes)
            for side in ("result", "reference")
        )
        proof = SiteProof(name, result, reference, int(values["same"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ConvertError(f"{name} sent no usable counts: {error!r}") from None
    rows_differ = (result.sum(axis=1) != reference.sum(axis=1)).any()
    if min(result.min(), reference.min()) < 0 or rows_differ or not 0 <= proof.same <= proof.frames:
        raise ConvertError(f"{name} sent counts that contradict each other")
    return proof


def report(sites: Sequence[SiteProof], classes: Sequence[str], size_ratio: float) -> Report:
    """Return the report for bundle.json over the frames of all sites."""
    matrix = _total([site.result for site in sites])
    reference = _total([site.reference for site in sites])
    frames, hits = int(matrix.sum()), int(np.trace(matrix))
    precision, recall = metrics.precision_recall(matrix)
    images = matrix.sum(axis=1)
    return Report(
        images=frames,
        top1=hits / frames,
        top1_float=int(np.trace(reference)) / frames,
        interval=metrics.wilson(hits, frames),
        classes={
            name: ClassReport(
                images=int(images[i]), precision=float(precision[i]), recall=float(recall[i])
            )
            for i, name in enumerate(classes)
            if images[i]
        },
        confusion=tuple(tuple(int(v) for v in row) for row in matrix)
        if len(classes) <= MAX_CLASSES_IN_SUMMARY
        else (),
        size_ratio=size_ratio,
        agreement=sum(site.same for site in sites) / frames,
    )


def details(sites: Sequence[SiteProof], classes: Sequence[str]) -> dict[str, Any]:
    """Return every site's counts as plain JSON types, for federation.json."""
    return {
        "format": 1,
        "labels": list(classes),
        "sites": [
            {
                "name": site.name,
                "frames": site.frames,
                "top1": metrics.rate(int(np.trace(site.result)), site.frames),
                "top1_float": metrics.rate(int(np.trace(site.reference)), site.frames),
                "same": site.same,
                "confusion": site.result.tolist(),
            }
            for site in sites
        ],
    }


def mean_of_means(
    sites: Sequence[tuple[int, Mapping[int, NDArray[np.float64]]]],
) -> dict[int, NDArray[np.float64]]:
    """Return the mean inputs of operators over the frames of all sites, from (frames, means) of
    each. Raises ConvertError for means of other operators or channels, or not finite."""
    shapes = [{place: mean.shape for place, mean in means.items()} for _, means in sites]
    finite = all(np.isfinite(mean).all() for _, means in sites for mean in means.values())
    frames = sum(count for count, _ in sites)
    if any(each != shapes[0] for each in shapes) or not finite or frames < 1:
        raise ConvertError("the sites sent means that don't belong to one model")
    return {
        place: np.asarray(sum(count * means[place] for count, means in sites) / frames)
        for place in shapes[0]
    }


def check_drop(found: Report, mode: str, allowed: float) -> None:
    """Raise GateError if the model lost more than `allowed` percentage points of top-1."""
    drop = 100 * (found.top1_float - found.top1)
    # As in `pipeline.check_accuracy`: shares don't add up exactly in binary.
    if drop > allowed + 1e-6:
        raise GateError(
            f"no bundle was written: the {mode} model is right on {drop:.2f} points fewer of the"
            f" sites' {found.images} held-back frames than the float model, more than"
            f" --max-accuracy-drop {allowed:g}"
        )


def _total(matrices: Sequence[Matrix]) -> Matrix:
    return np.asarray(np.sum(matrices, axis=0), np.int64)
