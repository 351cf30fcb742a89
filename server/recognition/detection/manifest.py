"""The parts of bundle.json that only a detector has."""

from typing import Annotated, Literal, TypeAlias

import msgspec

from server.recognition.manifest import (
    Baseline,
    Golden,
    Manifest,
    Region,
    Share,
    VerdictPolicy,
)

Convention: TypeAlias = Literal[
    "post_process", "yolov5", "yolov8", "nms", "fomo", "blazeface", "class_map"
]
Count = Annotated[int, msgspec.Meta(ge=0, le=1000)]
# x, y, width, height in pixels.
Box: TypeAlias = tuple[float, float, float, float]


class DetectionOutputs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The reading of a detector's outputs.

    convention: one of these layouts, N boxes of C classes:
        `post_process`: boxes [1, N, 4], classes [1, N], scores [1, N], count [1], as the operator
            TFLite_Detection_PostProcess makes them.
        `yolov5`: [1, N, 5 + C], each row a box, its objectness, and a score for each class.
        `yolov8`: [1, 4 + C, N], each column a box and a score for each class.
        `nms`: [1, N, 6], each row a box, its score and its class, without overlapping boxes.
        `fomo`: [1, h, w, classes], a score for each cell; neighbouring cells are one object.
        `blazeface`: offsets from anchors [1, N, 4 or more] and logits [1, N, 1].
        `class_map`: the class of each pixel [1, h, w], or its scores [1, h, w, classes]; an
            object is all of a class, its probability the share of the frame that it covers.
    outputs: places, from 0, of these tensors among the model's outputs.
    box_format: `xywh` is centre and size, `xyxy` and `yxyx` are two corners.
    box_unit: `pixels` of the model's input, or `share` of its width and height.
    activation: what makes scores of the outputs; `none` if they are scores already.
    score_scale: score * score_scale is in 0..1; 0.01 for percent.
    score: of `yolov5`, what a box's score is: objectness times its best class's, or the objectness
        alone.
    class_offset: class of the model + class_offset is the line in labels.txt, from 0; classes
        outside of labels.txt are not reported.
    background: the line in labels.txt, from 0, of what is no object.
    anchors: of `blazeface`: (stride in pixels, anchors a cell) of each of its grids, in order.
    score_threshold: boxes of a lower score are no objects.
    iou_threshold: of two boxes of one class that overlap by more than this, only the more probable
        one is an object; `post_process` and `nms` have none left.
    max_detections: objects that are reported at most, the most probable first.
    """

    convention: Convention
    outputs: Annotated[
        tuple[Annotated[int, msgspec.Meta(ge=0)], ...], msgspec.Meta(min_length=1, max_length=4)
    ] = (0,)
    box_format: Literal["xywh", "xyxy", "yxyx"] = "xywh"
    box_unit: Literal["pixels", "share"] = "pixels"
    activation: Literal["none", "sigmoid", "softmax"] = "none"
    score_scale: Annotated[float, msgspec.Meta(gt=0, le=1000)] = 1.0
    score: Literal["product", "objectness"] = "product"
    class_offset: Annotated[int, msgspec.Meta(ge=-1, le=1)] = 0
    background: Annotated[int, msgspec.Meta(ge=0)] | None = None
    anchors: tuple[
        tuple[
            Annotated[int, msgspec.Meta(ge=1, le=512)], Annotated[int, msgspec.Meta(ge=1, le=64)]
        ],
        ...,
    ] = ()
    score_threshold: Share = 0.25
    iou_threshold: Share = 0.45
    max_detections: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100


class DetectionPolicy(VerdictPolicy, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The policy that turns the objects in a frame into a verdict about the part.

    accept: if not empty, an object of any other label fails, and a frame needs an object to pass.
    expected, minimum, maximum: how many objects of a label a part has: exactly, at least, at most.
    forbidden: labels of which one object fails.
    min_probability: if an object of a lower probability decides, the verdict is `unsure`.
    region: left, top, width and height in shares of the frame as sent, upright; an object with the
        centre of its box outside is in the answer, and does not count for the verdict.
    """

    accept: tuple[str, ...] = ()
    expected: dict[str, Count] = msgspec.field(default_factory=dict)
    minimum: dict[str, Count] = msgspec.field(default_factory=dict)
    maximum: dict[str, Count] = msgspec.field(default_factory=dict)
    forbidden: tuple[str, ...] = ()
    region: Region | msgspec.UnsetType = msgspec.UNSET

    @property
    def named(self) -> tuple[str, ...]:
        """All labels that the policy names."""
        return (*self.accept, *self.expected, *self.minimum, *self.maximum, *self.forbidden)


class GoldenObject(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An object that a golden frame shows. box: in pixels of the frame, upright."""

    label: str
    probability: Share
    box: Box


class DetectionGolden(Golden, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A golden frame and all that it shows; `label` and `probability` are the surest object's."""

    detections: Annotated[tuple[GoldenObject, ...], msgspec.Meta(min_length=1)]


class DetectionBaseline(Baseline, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """classes and confidence are of the surest object in each frame, '' for a frame without one.
    count: shares of frames with 0, 1, ... 14 objects, and with more."""

    count: tuple[float, ...] = ()


class DetectionValidation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The figures of a detector on frames, by the boxes that it answers.

    images, objects: frames, and annotated objects on them. map50, map: mean average precision 0..1
    at an overlap of 0.5, and the mean of those at 0.5 to 0.95; None without annotations. details:
    names a file of the bundle that holds everything else.
    """

    images: int
    objects: int
    map50: Share | None = None
    map: Share | None = None
    details: str | None = None


class DetectionManifest(Manifest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """bundle.json of a detector."""

    detection: DetectionOutputs
    validation: DetectionValidation | None = None
    verdict: DetectionPolicy | None = None
    baseline: DetectionBaseline | None = None
    golden: tuple[DetectionGolden, ...] = ()
