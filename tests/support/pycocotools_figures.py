"""Average precision as pycocotools computes it."""

import contextlib
import io

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from convert.detection.average_precision import Found, Truth


def pycocotools_precision(
    truths: list[list[Truth]], found: list[list[Found]], labels: int
) -> tuple[list[float], dict[int, tuple[float, float]]]:
    """mAP@0.5 and mAP@0.5:0.95, and both of each class; -1 without an object.

    pycocotools ignores what is a crowd or too large, so that an ignored object gets such an area.
    """
    annotations = [
        {
            "id": 0,
            "image_id": number,
            "category_id": truth.label,
            "bbox": list(truth.box),
            "area": 1e11 if truth.ignored else truth.box[2] * truth.box[3],
            "iscrowd": int(truth.crowd),
        }
        for number, frame in enumerate(truths)
        for truth in frame
    ]
    for number, each in enumerate(annotations, 1):
        each["id"] = number
    results = [
        {
            "image_id": number,
            "category_id": each.label,
            "bbox": list(each.box),
            "score": each.probability,
        }
        for number, frame in enumerate(found)
        for each in frame
    ]
    coco = COCO()
    coco.dataset = {
        "images": [{"id": number} for number in range(len(truths))],
        "annotations": annotations,
        "categories": [{"id": label, "name": str(label)} for label in range(labels)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # overlaps, recalls, classes, areas, boxes.
    precision = evaluation.eval["precision"][:, :, :, 0, 2]
    return (
        [evaluation.stats[1], evaluation.stats[0]],
        {
            label: (precision[0, :, label].mean(), precision[:, :, label].mean())
            for label in range(labels)
        },
    )
