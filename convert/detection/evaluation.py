"""A detector on annotated frames: average precision, lines for the terminal, report.json and
report.html."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np

from convert.detection.annotations import AnnotatedFrame, Annotations, count_shown
from convert.detection.average_precision import (
    ClassPrecision,
    Found,
    Truth,
    evaluate_boxes,
    match_class,
    mean_precision,
)
from convert.evaluation.metrics import wilson
from convert.evaluation.report import HTML, JSON, template_of
from convert.evaluation.results import processor
from convert.evaluation.verdicts import answer_frames
from convert.terminal import columns
from server.recognition import frame
from server.recognition.answers import Answer
from server.recognition.detection.manifest import DetectionManifest, DetectionValidation
from server.recognition.detection.outputs import overlap
from server.recognition.drawing import Mark, Overlay, draw, to_jpeg
from server.recognition.engines.litert import runtime
from server.recognition.manifest import Recipe
from server.recognition.recognizer import Recognizer
from server.recognition.tasks.detect import detections_of
from server.values.wording import counted

TEMPLATE = Path(__file__).with_name("detector.html")
# Frames on the page, and pixels of their longer side.
PICTURES, PICTURE_SIDE = 9, 440
# Classes in the terminal's table.
ROWS_MAX = 30
# Places in MARK_COLORS of boxes: found and right, found where nothing is, missed, and those in
# frames without annotations. The page's key has the same colours.
RIGHT, FALSE, MISSED, PLAIN = 2, 4, 3, 6


def evaluate_detector(model: Recognizer, annotations: Annotations) -> "DetectorEvaluation":
    """Return a loaded bundle's answers to annotated frames. Raises ConvertError as `answer_frames`
    does."""
    assert isinstance(model.manifest, DetectionManifest)
    frames = count_shown(annotations.frames, model.recipe)
    return DetectorEvaluation(
        model.manifest,
        tuple(label.name for label in model.labels),
        frames,
        answer_frames(model, [each.path for each in frames]),
        annotations,
        model.bundle.model_path.stat().st_size,
    )


@dataclass(frozen=True)
class DetectorEvaluation:
    """A detector's answers to frames. annotations: the objects on them; None if nobody drew any.
    size: of the model in bytes."""

    manifest: DetectionManifest
    labels: tuple[str, ...]
    frames: tuple[AnnotatedFrame, ...]
    answers: tuple[Answer, ...]
    annotations: Annotations | None
    size: int

    @cached_property
    def found(self) -> tuple[tuple[Found, ...], ...]:
        """The objects that the detector found in each frame, as it serves them."""
        return tuple(
            tuple(
                Found(each.class_id, each.box, each.probability)
                for part in answer.parts()
                for each in detections_of(part)
            )
            for answer in self.answers
        )

    @cached_property
    def classes(self) -> tuple[ClassPrecision, ...]:
        """The figures of each label; none without annotations."""
        if self.annotations is None:
            return ()
        truths = [each.objects for each in self.frames]
        return evaluate_boxes(truths, self.found, len(self.labels))

    def details(self) -> dict[str, Any]:
        """Return all figures as plain JSON types."""
        map50, mean = mean_precision(self.classes)
        recipe = self.manifest.detection
        return {
            "format": 1,
            "title": f"{self.manifest.name} {self.manifest.version}",
            "task": "detect",
            "frames": len(self.frames),
            "annotations": self.annotations.kind if self.annotations else None,
            "unknown": dict(self.annotations.unknown) if self.annotations else {},
            "objects": sum(each.objects for each in self.classes),
            "map50": map50,
            "map": mean,
            "convention": recipe.convention,
            "score_threshold": recipe.score_threshold,
            "iou_threshold": recipe.iou_threshold,
            "classes": [self._class(each) for each in self.classes if each.objects or each.false],
            "size": self.size,
            "inference": float(np.median([each.timing["inference"] for each in self.answers])),
            "measured_on": {
                "runtime": runtime(),
                "processor": processor(),
                "cores": os.cpu_count(),
                "threads": 1,
            },
            "per_frame": [
                {
                    # Not the whole path: it is of the machine that converted.
                    "file": f"{item.path.parent.name}/{item.path.name}",
                    "objects": [self._truth(each) for each in item.objects],
                    "detections": [
                        {
                            "label": self.labels[each.label],
                            "probability": each.probability,
                            "box": each.box,
                        }
                        for each in boxes
                    ],
                }
                for item, boxes in zip(self.frames, self.found, strict=True)
            ],
        }

    def _class(self, each: ClassPrecision) -> dict[str, Any]:
        values = {**asdict(each), "label": self.labels[each.label]}
        boxes = each.found + each.false
        values["recall"] = each.found / each.objects if each.objects else None
        values["recall_interval"] = wilson(each.found, each.objects)
        values["precision"] = each.found / boxes if boxes else None
        return values

    def _truth(self, each: Truth) -> dict[str, Any]:
        return {**each._asdict(), "label": self.labels[each.label]}

    def validation(self) -> DetectionValidation:
        """Return the figures for bundle.json."""
        map50, mean = mean_precision(self.classes)
        return DetectionValidation(
            images=len(self.frames),
            objects=sum(each.objects for each in self.classes),
            map50=map50,
            map=mean,
            details=JSON,
        )

    def lines(self) -> list[str]:
        """Return the figures for the terminal."""
        values = self.details()
        least = f"boxes with a score of at least {values['score_threshold']:g}"
        if values["map"] is None:
            return [f"the frames show no object of the model's labels: there is no mAP ({least})"]
        out = [
            f"mAP@0.5 {values['map50']:.4f}, mAP@0.5:0.95 {values['map']:.4f} of"
            f" {counted(values['objects'], 'object')} in"
            f" {counted(values['frames'], 'frame')} ({least})"
        ]
        if unknown := values["unknown"]:
            some = sorted(unknown.items(), key=lambda each: -each[1])[:10]
            listed = ", ".join(f"{name} {count}" for name, count in some)
            more = ", ..." if len(unknown) > 10 else ""
            out.append(f"left out, since the model has no such label: {listed}{more}")
        rows = [("class", "objects", "AP@0.5", "AP@0.5:0.95", "found", "missed", "false")]
        for each in values["classes"][:ROWS_MAX]:
            precision = (
                "-" if each[name] is None else f"{each[name]:.4f}" for name in ("ap50", "ap")
            )
            counts = (str(each[name]) for name in ("found", "missed", "false"))
            rows.append((each["label"], str(each["objects"]), *precision, *counts))
        out += columns(rows)
        if (left_out := len(values["classes"]) - ROWS_MAX) > 0:
            out.append(f"... and {counted(left_out, 'class', 'classes')} more")
        return out

    def files(self) -> dict[str, bytes]:
        """Return the report's files by their path in the bundle."""
        values = self.details()
        text = msgspec.json.format(msgspec.json.encode(values), indent=1)
        shown = [
            {**values["per_frame"][i], "picture": self.picture(i), "faults": self._faults(i)}
            for i in self._shown()
        ]
        page = template_of(TEMPLATE).render(r=values, shown=shown)
        return {JSON: text + b"\n", HTML: page.encode()}

    def _faults(self, index: int) -> tuple[list[Found], list[Found], list[Truth]]:
        """Return a frame's boxes that are right (or do not count), those that show no object, and
        the objects that it missed, at an overlap of 0.5."""
        truths, boxes = self.frames[index].objects, self.found[index]
        right: list[Found] = []
        false: list[Found] = []
        for label in {each.label for each in boxes}:
            mine = [each for each in boxes if each.label == label]
            matches = match_class([each for each in truths if each.label == label], mine)
            ordered = sorted(mine, key=lambda each: -each.probability)
            fine = matches.right[0] | matches.ignored[0]
            # Boxes beyond those that count are neither.
            for each, good in zip(ordered, fine, strict=False):
                (right if good else false).append(each)
        missed = [
            each
            for each in truths
            if not (each.crowd or each.ignored)
            and not any(b.label == each.label and overlap(b.box, each.box) >= 0.5 for b in right)
        ]
        return right, false, missed

    def _shown(self) -> list[int]:
        """Return the frames of the page: those with most faults, or with most objects."""
        if self.annotations is None:
            order = sorted(range(len(self.frames)), key=lambda i: -len(self.found[i]))
        else:
            faults = [
                sum(len(part) for part in self._faults(i)[1:]) for i in range(len(self.frames))
            ]
            order = sorted(range(len(self.frames)), key=lambda i: -faults[i])
        return order[:PICTURES]

    def picture(self, index: int) -> bytes:
        """Return a frame with its boxes as a JPEG."""
        recipe = Recipe(width=PICTURE_SIDE, height=PICTURE_SIDE, resize="letterbox")
        data = self.frames[index].path.read_bytes()
        decoded = frame.decode_frame(data, recipe, frame.Limits())
        size = frame.scaled_size(*decoded.size, recipe)
        small = cv2.resize(decoded.pixels, size, interpolation=cv2.INTER_AREA)
        ratio = [size[i] / decoded.size[i] for i in (0, 1)] * 2
        right, false, missed = self._faults(index)
        if self.annotations is None:
            groups: list[tuple[int, Sequence[Found | Truth]]] = [(PLAIN, self.found[index])]
        else:
            groups = [(MISSED, missed), (FALSE, false), (RIGHT, right)]
        marks = []
        for kind, boxes in groups:
            for each in boxes:
                x, y, width, height = (a * b for a, b in zip(each.box, ratio, strict=True))
                text = self.labels[each.label]
                if isinstance(each, Found):
                    text += f" {each.probability:.0%}"
                marks.append(Mark((x, y, width, height), text, kind))
        return to_jpeg(draw(np.asarray(small, np.uint8), Overlay(marks=tuple(marks))))
