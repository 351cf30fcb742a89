"""Report the behaviour of an anomaly model: lines for the terminal, figures for bundle.json, and
report.json and report.html."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from convert.anomaly.evaluation import (
    PIXEL_SIDE,
    Alternative,
    Auroc,
    image_auroc,
    pixel_auroc,
    roc,
    share_above,
)
from convert.anomaly.statistics import Floats
from convert.data.dataset import Dataset
from convert.data.frames import decoded
from convert.errors import ConvertError
from convert.evaluation.report import HTML, JSON, template_of
from convert.evaluation.results import processor
from convert.evaluation.verdicts import PICTURES_MAX, VerdictProof
from convert.quantization.tune import Latency
from server.recognition.drawing import LONGER_SIDE_MIN, HeatMap, Overlay, draw, to_jpeg
from server.recognition.engines.litert import runtime
from server.recognition.frame import shown_part
from server.recognition.manifest import Recipe
from server.recognition.preprocessing import to_input_pixels

TEMPLATE = Path(__file__).with_name("anomaly.html")
HISTOGRAM_BINS = 40
WORST = 8


def is_bad(validation: Dataset, good_class: str) -> NDArray[np.bool_]:
    """True for each frame that is not of the class of good ones."""
    return np.array([validation.classes[f.label] != good_class for f in validation.frames], bool)


@dataclass(frozen=True)
class AnomalyEvaluation:
    """Scores 0..1 of which the threshold is 0.5.

    held: of good frames by statistics of the others, in float, [frames]. scores, maps: of the
    validation's frames by the model as it serves, [frames] and [frames, side, side].
    """

    validation: Dataset | None
    good_class: str
    masks: Path | None
    held: Floats
    scores: Floats
    maps: Floats
    latency: Latency
    size: int
    false_rejects: float
    unsure: float
    recipe: Recipe

    @cached_property
    def bad(self) -> NDArray[np.bool_]:
        """True for each validation frame that is not good."""
        return is_bad(self.validation, self.good_class) if self.validation else np.empty(0, bool)

    def pixels(self) -> Auroc | None:
        """AUROC of pixels; None without masks. Raises ConvertError for a mask that is missing."""
        if self.masks is None or self.validation is None:
            return None
        masks = np.zeros((len(self.maps), PIXEL_SIDE, PIXEL_SIDE), bool)
        for i in np.flatnonzero(self.bad):
            masks[i] = self._mask(int(i))
        return pixel_auroc(self.maps, masks)

    def _mask(self, index: int) -> NDArray[np.bool_]:
        assert self.masks is not None
        assert self.validation is not None
        item = self.validation.frames[index]
        folder = self.masks / self.validation.classes[item.label]
        file = next((p for p in sorted(folder.glob("*")) if p.stem == item.path.stem), None)
        if file is None:
            raise ConvertError(f"{folder} has no mask of {item.path.name}")
        grey = decoded(file, self.recipe)[..., 0]
        left, top, width, height = shown_part(self.recipe, grey.shape[1], grey.shape[0])
        grey = grey[top : top + height, left : left + width]
        size = (PIXEL_SIDE, PIXEL_SIDE)
        return np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_NEAREST) > 127, bool)


def details(
    outcome: AnomalyEvaluation,
    title: str,
    learned_from: int,
    curve: Sequence[Alternative],
    mixed: Alternative | None,
    verdicts: VerdictProof | None,
) -> dict[str, Any]:
    """Everything that was found, as plain JSON types. Raises ConvertError as `pixels` does."""
    good, bad = outcome.scores[~outcome.bad], outcome.scores[outcome.bad]
    pixels = outcome.pixels()
    both = len(good) > 0 and len(bad) > 0
    return {
        "format": 1,
        "title": title,
        "task": "anomaly",
        "learned_from": learned_from,
        "false_rejects_stated": outcome.false_rejects,
        "unsure": outcome.unsure,
        "size": outcome.size,
        "latency": asdict(outcome.latency),
        "measured_on": {
            "runtime": runtime(),
            "processor": processor(),
            "cores": os.cpu_count(),
            "threads": 1,
        },
        "held_back": share_above(outcome.held, 0.5),
        "good": share_above(good, 0.5),
        "bad": share_above(bad, 0.5),
        "auroc": asdict(image_auroc(good, bad)) if both else None,
        "pixel_auroc": asdict(pixels) if pixels else None,
        "roc": roc(good, bad) if both else [],
        "classes": list(_classes(outcome)),
        "histograms": {
            name: np.histogram(scores, HISTOGRAM_BINS, (0, 1))[0].tolist()
            for name, scores in (("held_back", outcome.held), ("good", good), ("bad", bad))
        },
        "curve": [asdict(each) for each in curve],
        "contaminated": asdict(mixed) if mixed else None,
        "per_frame": [
            {
                # Not the whole path: it is of the machine that converted, and the report travels.
                "file": f"{item.path.parent.name}/{item.path.name}",
                "bad": bool(outcome.bad[i]),
                "score": float(outcome.scores[i]),
            }
            for i, item in enumerate(outcome.validation.frames if outcome.validation else ())
        ],
        "verdict": verdicts.details() if verdicts else None,
        "wrong": int(_wrong(outcome).sum()),
        "worst": [int(i) for i in worst(outcome)],
    }


def _classes(outcome: AnomalyEvaluation) -> Any:
    if outcome.validation is None:
        return
    labels = np.array([item.label for item in outcome.validation.frames])
    good = outcome.scores[~outcome.bad]
    for number, name in enumerate(outcome.validation.classes):
        mine = outcome.scores[labels == number]
        apart = name != outcome.good_class and len(mine) > 0 and len(good) > 0
        yield {
            "label": name,
            **share_above(mine, 0.5),
            "auroc": image_auroc(good, mine).value if apart else None,
        }


def worst(outcome: AnomalyEvaluation) -> NDArray[np.intp]:
    """Validation frames on the wrong side of the threshold, those furthest off first, PICTURES_MAX
    at most; then the nearest to it, if these are fewer than WORST."""
    count = min(PICTURES_MAX, max(WORST, int(_wrong(outcome).sum())))
    off = np.where(outcome.bad, 0.5 - outcome.scores, outcome.scores - 0.5)
    return np.asarray(np.argsort(-off, kind="stable")[:count], np.intp)


def _wrong(outcome: AnomalyEvaluation) -> NDArray[np.bool_]:
    """True for each validation frame on the wrong side of the threshold."""
    return np.asarray((outcome.scores > 0.5) != outcome.bad, bool)


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """The figures for bundle.json, by the names of `AnomalySettings`."""
    return {
        "held_back_rejected": found["held_back"]["share"],
        "auroc": found["auroc"]["value"] if found["auroc"] else None,
        "auroc_interval": found["auroc"]["interval"] if found["auroc"] else None,
        "pixel_auroc": found["pixel_auroc"]["value"] if found["pixel_auroc"] else None,
        "good_rejected": found["good"]["share"],
        "bad_caught": found["bad"]["share"],
        "details": JSON,
    }


def lines(found: dict[str, Any]) -> list[str]:
    """Return the lines for the terminal."""
    out = [_sentence("good frames held back in turns", "called anomalies", found["held_back"])]
    if found["good"]["frames"]:
        out.append(_sentence("good validation frames", "called anomalies", found["good"]))
    if found["bad"]["frames"]:
        out.append(_sentence("bad validation frames", "caught", found["bad"]))
    for name, key in (("frames", "auroc"), ("pixels", "pixel_auroc")):
        if found[key]:
            low, high = found[key]["interval"]
            out.append(f"AUROC of {name} {found[key]['value']:.4f} ({low:.3f} to {high:.3f})")
    if not found["bad"]["frames"]:
        out.append("no --validate with bad frames: how many of them are caught is not known")
    for each in found["curve"]:
        auroc = f", AUROC {each['auroc']:.3f}" if each["auroc"] is not None else ""
        rejected = each["false_rejects"]
        share = f", {rejected:.1%} of other good ones rejected" if rejected is not None else ""
        out.append(f"with {each['frames']} good frames{auroc}{share}")
    if found["contaminated"]:
        each = found["contaminated"]
        auroc = f": AUROC {each['auroc']:.3f}" if each["auroc"] is not None else ""
        out.append(f"with {each['bad']} bad frames among the {each['frames']} to learn from{auroc}")
    latency = found["latency"]["median"] * 1e3
    out.append(f"{latency:.2f} ms a frame on one thread, {found['size'] / 1e6:.2f} MB")
    return out


def _sentence(frames: str, what: str, found: dict[str, Any]) -> str:
    low, high = found["interval"]
    return (
        f"{found['above']} of {found['frames']} {frames} {what}: {found['share']:.2%}"
        f" ({low:.1%} to {high:.1%})"
    )


def files(outcome: AnomalyEvaluation, found: dict[str, Any]) -> dict[str, bytes]:
    """The report's files by their path in the bundle."""
    text = msgspec.json.format(msgspec.json.encode(found), indent=1)
    return {JSON: text + b"\n", HTML: page(outcome, found).encode()}


def page(outcome: AnomalyEvaluation, found: dict[str, Any]) -> str:
    """One HTML page that needs nothing beside it: styles and pictures are in it."""
    template = template_of(TEMPLATE)
    pictures = [{**found["per_frame"][i], "picture": picture(outcome, i)} for i in found["worst"]]
    return template.render(r=found, worst=pictures)


def picture(outcome: AnomalyEvaluation, index: int) -> bytes:
    """A frame beside itself with its heat map, as a JPEG."""
    assert outcome.validation is not None
    recipe = outcome.recipe
    pixels = to_input_pixels(decoded(outcome.validation.frames[index].path, recipe), recipe)
    size = (LONGER_SIDE_MIN, LONGER_SIDE_MIN)
    frame = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR), np.uint8)
    drawn = draw(frame, Overlay(heats=(HeatMap(outcome.maps[index], 0.5),)))
    return to_jpeg(np.hstack([frame, drawn]))
