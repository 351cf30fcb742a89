"""Fuzzes files of labels: COCO's JSON, YOLO's text files, Pascal VOC's XML, lists of pictures."""

import tempfile
from pathlib import Path

from convert.data.dataset import read_dataset
from convert.detection.annotations import read_annotations
from convert.errors import ConvertError
from fuzz.image_kinds import KINDS
from fuzz.target import Target, promise
from server.values.labels import Label

LABELS = (Label("bolt"), Label("nut"), Label("washer", "w1"))
COCO = b"""{"images": [{"id": 1, "file_name": "a.jpg", "width": 61, "height": 46}],
"annotations": [{"image_id": 1, "category_id": 7, "bbox": [1, 2, 30.5, 20], "iscrowd": 0}],
"categories": [{"id": 7, "name": "nut"}]}"""
VOC = b"""<?xml version="1.0"?>
<!DOCTYPE annotation [<!ENTITY e "nut">]>
<annotation><filename>a.jpg</filename><object><name>&e;</name><difficult>0</difficult>
<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>20</ymax></bndbox></object></annotation>"""
YOLO = b"1 0.5 0.5 0.25 0.25\n0 0.1 0.1 0.2 0.1 0.2 0.2 0.1 0.2\n"
NAMES = b"names: ['bolt', 'nut', 'washer']\nnc: 3\n"
LINES = b"train: a\nnames:\n  0: bolt\n  1: nut\n  2: washer\n"
WORDS = (
    *(
        b'"images"',
        b'"annotations"',
        b'"categories"',
        b'"bbox"',
        b'"' + b"x" * 300 + b'"',
        b"a.jpg",
    ),
    *(
        b"<object>",
        b"</object>",
        b"<!ENTITY a '&e;&e;&e;'>",
        b"&e;",
        b"<bndbox>",
        b'encoding="utf-16"',
    ),
    *(
        b"names: [",
        b"names:\n",
        b"- ",
        b"{[]: 1}",
        b"names: {",
        b"]",
        b"}",
        b"-" * 4000,
        b"1e-9",
        b"1e999",
    ),
)


class _Annotated:
    """A folder of one picture with the annotations `file`, of which an input has the content."""

    def __init__(self, file: str, **others: bytes) -> None:
        self._folder = Path(tempfile.mkdtemp())
        (self._folder / "a.jpg").write_bytes(KINDS["JPEG"]["plain"])
        for name, content in others.items():
            (self._folder / name.replace("_", ".")).write_bytes(content)
        self._file = self._folder / file

    def run(self, data: bytes) -> None:
        self._file.write_bytes(data)
        for frame in read_annotations(self._folder, LABELS).frames:
            for each in frame.objects:
                promise(0 <= each.label < len(LABELS), f"the label {each.label}")

    def list(self, data: bytes) -> None:
        """The input as a list of pictures."""
        self._file.write_bytes(data)
        dataset = read_dataset(self._file)
        promise(all(0 <= each.label < len(dataset.classes) for each in dataset.frames), "a label")


def targets() -> tuple[Target, ...]:
    listed = b'path,label\r\na.jpg,nut\r\n"b,c.jpg",bolt\r\n'
    refusals = (ConvertError,)
    return (
        Target("coco", _Annotated("a.json").run, (COCO,), WORDS, refusals),
        Target("voc", _Annotated("a.xml").run, (VOC,), WORDS, refusals),
        Target("yolo", _Annotated("a.txt").run, (YOLO,), WORDS, refusals),
        Target(
            "yolo-names", _Annotated("data.yaml", a_txt=YOLO).run, (NAMES, LINES), WORDS, refusals
        ),
        Target(
            "dataset-list", _Annotated("list.csv").list, (listed,), (b'"', b"\r\n", b","), refusals
        ),
    )
