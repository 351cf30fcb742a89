"""`convert evaluate` of a detector: COCO's, YOLO's and Pascal VOC's annotations of the same frames
give the same figures, which are pycocotools'."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from detector_models import constant_detector
from images import encode
from pycocotools_figures import pycocotools_precision

from convert.__main__ import main
from convert.bundle_writer import load
from convert.detection.annotations import count_shown, read_annotations
from convert.detection.average_precision import Found, Truth
from convert.errors import ConvertError
from server.recognition.answers import Options
from server.recognition.manifest import Recipe
from server.values.labels import Label

LABELS = ("bolt", "nut", "washer")
SIZE = 100, 80
# Label, left, top, width, height in pixels of the frame.
OBJECTS: list[list[tuple[str, int, int, int, int]]] = [
    [("bolt", 10, 10, 30, 20), ("nut", 60, 40, 20, 20)],
    [("bolt", 14, 12, 30, 22), ("washer", 0, 0, 10, 10)],
    [],
    [("nut", 58, 40, 24, 20), ("bolt", 70, 10, 10, 10)],
]


def boxes() -> np.ndarray[Any, Any]:
    """A YOLOv8 output in shares: a bolt, a nut, and a bolt that is nowhere."""
    columns = np.zeros((1, 7, 84), np.float32)
    columns[0, :4] = np.linspace(0.05, 0.95, 84)
    for i, (x, y, width, height, label, score) in enumerate(
        [(25, 20, 30, 20, 0, 0.9), (70, 50, 20, 22, 1, 0.8), (50, 70, 20, 10, 0, 0.6)]
    ):
        columns[0, :4, i] = x / SIZE[0], y / SIZE[1], width / SIZE[0], height / SIZE[1]
        columns[0, 4 + label, i] = score
    return columns


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detector")
    (folder / "parts.tflite").write_bytes(constant_detector([boxes()]))
    (folder / "labels.txt").write_text("\n".join(LABELS))
    command = ["detector", str(folder / "parts.tflite"), "--labels", str(folder / "labels.txt")]
    assert main([*command, "--resize", "stretch", "--out", str(folder / "models")]) == 0
    return folder / "models" / "parts" / "1"


def write_frames(folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number}.png" for number in range(len(OBJECTS))]
    for path in paths:
        path.write_bytes(encode(np.full((*SIZE[::-1], 3), 90, np.uint8), "PNG"))
    return paths


def coco_file() -> dict[str, Any]:
    """The objects as COCO writes them, with classes of other numbers, and one that is unused."""
    return {
        "images": [{"id": 7 + i, "file_name": f"{i}.png"} for i in range(len(OBJECTS))],
        "categories": [{"id": 5 * i, "name": x} for i, x in enumerate(("parts", *LABELS[::-1]))],
        "annotations": [
            {
                "id": 1,
                "image_id": 7 + i,
                "category_id": 5 + 5 * LABELS[::-1].index(label),
                "bbox": box,
                "iscrowd": 0,
            }
            for i, objects in enumerate(OBJECTS)
            for label, *box in objects
        ],
    }


def write_coco(folder: Path) -> Path:
    write_frames(folder / "images")
    (folder / "annotations").mkdir()
    (folder / "annotations" / "instances_val.json").write_text(json.dumps(coco_file()))
    return folder


def write_coco_file(folder: Path) -> Path:
    write_frames(folder)
    (folder / "boxes.json").write_text(json.dumps(coco_file()))
    return folder / "boxes.json"


def yolo_text(objects: Any, names: tuple[str, ...]) -> str:
    return "".join(
        f"{names.index(label)} {(x + w / 2) / SIZE[0]} {(y + h / 2) / SIZE[1]} {w / SIZE[0]}"
        f" {h / SIZE[1]}\n"
        for label, x, y, w, h in objects
    )


def write_yolo(folder: Path) -> Path:
    """Ultralytics' folders, with classes in another order; a frame without objects has no file."""
    write_frames(folder / "images")
    (folder / "labels").mkdir()
    names = LABELS[::-1]
    (folder / "data.yaml").write_text(f"nc: 3\nnames: [{', '.join(names)}]\n")
    for number, objects in enumerate(OBJECTS):
        if objects:
            (folder / "labels" / f"{number}.txt").write_text(yolo_text(objects, names))
    return folder


def write_yolo_beside(folder: Path) -> Path:
    """Darknet's files, beside the pictures, in the order of the labels."""
    for path, objects in zip(write_frames(folder), OBJECTS, strict=True):
        path.with_suffix(".txt").write_text(yolo_text(objects, LABELS))
    return folder


def write_voc(folder: Path) -> Path:
    write_frames(folder / "JPEGImages")
    (folder / "Annotations").mkdir()
    for number, objects in enumerate(OBJECTS):
        items = "".join(
            f"<object><name>{label}</name><difficult>0</difficult><bndbox><xmin>{x}</xmin>"
            f"<ymin>{y}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
            for label, x, y, w, h in objects
        )
        (folder / "Annotations" / f"{number}.xml").write_text(f"<annotation>{items}</annotation>")
    return folder


def test_objects_outside_of_the_region_do_not_count(tmp_path: Path) -> None:
    labels = tuple(Label(name) for name in LABELS)
    frames = read_annotations(write_yolo(tmp_path), labels).frames
    shown = count_shown(frames, Recipe(width=32, height=32, region=(0, 0, 0.5, 1)))
    ignored = [[truth.ignored for truth in each.objects] for each in shown]
    assert ignored == [[False, True], [False, False], [], [True, True]]


@pytest.mark.parametrize(
    "write", [write_coco, write_coco_file, write_yolo, write_yolo_beside, write_voc]
)
def test_evaluate_gives_pycocotools_figures(
    bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    write: Callable[[Path], Path],
) -> None:
    frames = write(tmp_path / "frames")
    assert main(["evaluate", str(bundle), str(frames), "--report", str(tmp_path / "report")]) == 0
    assert "mAP@0.5 " in capsys.readouterr().out
    report = msgspec.json.decode((tmp_path / "report" / "report.json").read_bytes())
    model, picture = load(bundle), encode(np.full((*SIZE[::-1], 3), 90, np.uint8), "PNG")
    found = [
        Found(each.class_id, each.box, each.probability)
        for each in model.recognize(picture, Options()).details
    ]
    assert len(found) == 3
    truths = [
        [Truth(LABELS.index(label), (x, y, w, h)) for label, x, y, w, h in objects]
        for objects in OBJECTS
    ]
    means, by_class = pycocotools_precision(truths, [found] * len(OBJECTS), len(LABELS))
    assert [report["map50"], report["map"]] == pytest.approx(means, abs=1e-6)
    for each in report["classes"]:
        expected = by_class[LABELS.index(each["label"])]
        assert [each["ap50"], each["ap"]] == pytest.approx(expected, abs=1e-6)
    assert 0 < report["map"] < report["map50"] < 1
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("data:image/jpeg") == len(OBJECTS)


def test_annotated_validation_frames_are_judged(tmp_path: Path, bundle: Path) -> None:
    """The bundle of `convert detector --validate` has the figures and a report."""
    frames = write_voc(tmp_path / "frames")
    command = ["detector", str(bundle.parents[2] / "parts.tflite"), "--validate", str(frames)]
    command += ["--labels", str(bundle / "labels.txt"), "--out", str(tmp_path / "models")]
    assert main([*command, "--resize", "stretch"]) == 0
    folder = tmp_path / "models" / "parts" / "1"
    manifest: Any = load(folder).manifest
    report = msgspec.json.decode((folder / "report.json").read_bytes())
    assert manifest.validation.map50 == report["map50"] > 0.3
    assert (manifest.validation.images, manifest.validation.objects) == (4, 6)
    assert "report.html" in manifest.sha256


def test_crowds_and_difficult_objects_are_not_missed(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "coco")
    content = coco_file()
    content["annotations"][0]["iscrowd"] = 1
    (folder / "annotations" / "instances_val.json").write_text(json.dumps(content))
    labels = [Label(name) for name in LABELS]
    assert read_annotations(folder, labels).frames[0].objects[0].crowd
    folder = write_voc(tmp_path / "voc")
    file = folder / "Annotations" / "0.xml"
    file.write_text(file.read_text().replace("difficult>0<", "difficult>1<", 1))
    assert read_annotations(folder, labels).frames[0].objects[0].ignored


def test_unknown_classes_are_left_out(bundle: Path, tmp_path: Path, capsys: Any) -> None:
    folder = write_coco(tmp_path)
    content = coco_file()
    content["categories"][1]["name"] = "gasket"
    (folder / "annotations" / "instances_val.json").write_text(json.dumps(content))
    assert main(["evaluate", str(bundle), str(folder)]) == 0
    assert "no such label: gasket 1" in capsys.readouterr().out


def break_yolo(folder: Path) -> None:
    (folder / "labels" / "0.txt").write_text("0 0.5 0.5 0.2\n")


def break_picture(folder: Path) -> None:
    (folder / "images" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\nrest")


def drop_picture(folder: Path) -> None:
    (folder / "images" / "1.png").unlink()


def add_kind(folder: Path) -> None:
    (folder / "labels" / "0.xml").write_text("<annotation/>")


def use_pixels(folder: Path) -> None:
    (folder / "labels" / "0.txt").write_text("0 50 50 20 20\n")


def rename_class(folder: Path) -> None:
    (folder / "data.yaml").write_text("names:\n  0: washer\n  1: nut\n  2: Bolt\n")


def add_class(folder: Path) -> None:
    (folder / "labels" / "0.txt").write_text("3 0.5 0.5 0.2 0.2\n")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (break_yolo, "0.txt, line 1 is not a class and four shares"),
        (break_picture, "0.png: "),
        (drop_picture, "1.txt has no picture of its name"),
        (add_kind, "has several annotations"),
        (use_pixels, "numbers that are no shares"),
        (rename_class, "is it meant to be bolt?"),
        (add_class, "has the class 3; 3 have names"),
    ],
)
def test_damaged_annotations_are_refused(
    tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    folder = write_yolo(tmp_path)
    damage(folder)
    with pytest.raises(ConvertError, match=words.replace("?", r"\?")):
        read_annotations(folder, [Label(name) for name in LABELS])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "no COCO file"),
        ("{", "it is no JSON"),
        ('{"images": [{"id": 1}], "annotations": [], "categories": []}', "file_name"),
        (
            '{"images": [], "annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1,'
            ' 1]}], "categories": []}',
            "names the image of an id",
        ),
        ('{"images": [{"id": 1, "file_name": "x.png"}], "annotations": [], "categories": []}',
         "x.png is not there"),
    ],
)  # fmt: skip
def test_damaged_coco_file_is_refused(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ConvertError, match=words):
        read_annotations(tmp_path / "a.json", [Label("bolt")])


def test_frames_without_annotations_are_refused(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_frames(tmp_path)
    assert main(["evaluate", str(bundle), str(tmp_path)]) == 1
    assert "has no annotations of objects" in capsys.readouterr().err


def test_compare_refuses_a_detector(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(bundle)]) == 1
    assert "parts/1 has the task detect" in capsys.readouterr().err
