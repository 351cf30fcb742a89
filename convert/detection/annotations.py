"""Objects that people drew on frames: COCO's JSON, YOLO's text files, Pascal VOC's XML files."""

import ast
import json
import math
import os
import re
import xml.etree.ElementTree as ElementTree  # nosec B405 # see _read_voc
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from convert.data.dataset import PICTURES, images
from convert.data.labels import similar_classes
from convert.detection.average_precision import Truth
from convert.errors import DatasetError
from server.errors import LinesideError
from server.recognition.detection.manifest import Box
from server.recognition.frame import Limits, read_header, shown_part
from server.recognition.images.views import regions
from server.recognition.manifest import Recipe
from server.values import validation
from server.values.labels import Label
from server.values.validation import InvalidValueError

# Files that name YOLO's classes, in their order.
YOLO_NAMES = ("data.yaml", "dataset.yaml", "data.yml", "classes.txt", "obj.names")
# Files that list the objects of no picture.
NO_OBJECTS = frozenset({"classes.txt", "labels.txt", "readme.txt", "train.txt", "val.txt"})


@dataclass(frozen=True, slots=True)
class AnnotatedFrame:
    """A picture and the objects on it."""

    path: Path
    objects: tuple[Truth, ...]


@dataclass(frozen=True, slots=True)
class Annotations:
    """Annotated frames. kind: of the annotations, for people. unknown: how many objects are of
    each class that is none of the model's labels; they are left out."""

    kind: str
    frames: tuple[AnnotatedFrame, ...]
    unknown: Mapping[str, int]


class CocoImage(msgspec.Struct):
    """One of a COCO file's images."""

    id: int
    file_name: str


class CocoAnnotation(msgspec.Struct):
    """One of a COCO file's objects. bbox: left, top, width and height in pixels."""

    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    iscrowd: int = 0


class CocoCategory(msgspec.Struct):
    """One of a COCO file's classes."""

    id: int
    name: str


class CocoFile(msgspec.Struct):
    """The parts of a COCO file that are read (cocodataset.org/#format-data)."""

    images: list[CocoImage]
    annotations: list[CocoAnnotation]
    categories: list[CocoCategory]


# A class by its name, or by its line in labels.txt.
Class = str | int
# A picture, and its objects with their classes.
Drawn = tuple[Path, list[tuple[Class, Truth]]]


def find_annotations(path: Path, labels: Sequence[Label]) -> Annotations | None:
    """Read a COCO file, or the annotations in a folder; None for a folder that has none.

    Raises ConvertError for annotations of two kinds, and for what can't be read.
    """
    if path.is_file():
        return _annotations("COCO", _read_coco(path, path.parent), labels, path)
    paths = images(path)
    pictures = [file for file in paths if file.suffix.lower() in PICTURES]
    names = {file.stem for file in pictures}
    kinds = {
        "COCO": [file for file in paths if file.suffix.lower() == ".json" and _is_coco(file)],
        "Pascal VOC": [file for file in paths if file.suffix.lower() == ".xml"],
        "YOLO": [file for file in paths if _is_yolo(file, names)],
    }
    kinds = {kind: files for kind, files in kinds.items() if files}
    if not kinds:
        return None
    if len(kinds) > 1 or len(kinds.get("COCO", ())) > 1:
        named = ", ".join(f"{kind}'s {files[0].relative_to(path)}" for kind, files in kinds.items())
        some = " (and more such files)" if len(kinds) == 1 else ""
        raise DatasetError(
            f"{path} has several annotations, {named}{some}: name the JSON file to use, or leave"
            " the annotations of one kind in the folder"
        )
    [(kind, files)] = kinds.items()
    if kind == "COCO":
        drawn = _read_coco(files[0], path)
    elif kind == "Pascal VOC":
        drawn = list(_read_voc(files, pictures))
    else:
        drawn = list(_read_yolo(files, pictures, _yolo_names(path)))
    return _annotations(kind, drawn, labels, path)


def read_annotations(path: Path, labels: Sequence[Label]) -> Annotations:
    """Read annotated frames. Raises ConvertError as `find_annotations` does, and if there are no
    annotations."""
    found = find_annotations(path, labels)
    if found is None:
        raise DatasetError(
            f"{path} has no annotations of objects: give a COCO JSON file, or a folder with one, or"
            " with YOLO's .txt or Pascal VOC's .xml files beside its pictures or in folders of"
            " their own"
        )
    return found


def count_shown(frames: Sequence[AnnotatedFrame], recipe: Recipe) -> tuple[AnnotatedFrame, ...]:
    """Return the frames such that objects with their centre outside of the recipe's regions, which
    the model is not shown, do not count. Raises ConvertError for a picture that can't be read."""
    if recipe.region is None and not recipe.regions:
        return tuple(frames)
    return tuple(
        AnnotatedFrame(
            each.path,
            tuple(
                truth._replace(
                    ignored=truth.ignored or not any(_is_in(truth.box, part) for part in parts)
                )
                for truth in each.objects
            ),
        )
        for each in frames
        for parts in [[shown_part(part, *_size(each.path)) for part in regions(recipe)]]
    )


def _is_in(box: Box, part: tuple[float, float, float, float]) -> bool:
    x, y = box[0] + box[2] / 2, box[1] + box[3] / 2
    return part[0] <= x <= part[0] + part[2] and part[1] <= y <= part[1] + part[3]


def _annotations(
    kind: str, drawn: Sequence[Drawn], labels: Sequence[Label], path: Path
) -> Annotations:
    """Give each object the line of its class in labels.txt."""
    places = {label.id: line for line, label in enumerate(labels) if label.id}
    places |= {label.name: line for line, label in enumerate(labels)}
    unknown: Counter[str] = Counter()
    frames = []
    for file, objects in drawn:
        mine = []
        for name, truth in objects:
            line = places.get(name) if isinstance(name, str) else name
            if line is None or line >= len(labels):
                unknown[str(name)] += 1
            else:
                mine.append(truth._replace(label=line))
        frames.append(AnnotatedFrame(file, tuple(mine)))
    if not frames:
        raise DatasetError(f"{path} has no annotated pictures")
    for name in unknown:
        for label in labels:
            if any(True for _ in similar_classes({name: 1, label.name: 1})):
                raise DatasetError(
                    f"{path} has the class {name}, which is not one of the model's labels; is it"
                    f" meant to be {label.name}?"
                )
    if unknown and not any(frame.objects for frame in frames):
        raise DatasetError(
            f"none of the classes in {path} is one of the model's labels: it has"
            f" {', '.join(list(unknown)[:10])}, the model {', '.join(x.name for x in labels[:10])}"
        )
    return Annotations(kind, tuple(frames), dict(unknown))


def _text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DatasetError(f"{file} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DatasetError(f"{file} is no text in UTF-8") from None


def _size(file: Path) -> tuple[int, int]:
    """Return width and height of an upright picture."""
    try:
        header = read_header(file.read_bytes(), Limits())
    except OSError as error:
        raise DatasetError(f"{file} can't be read: {error.strerror}") from None
    except LinesideError as error:
        raise DatasetError(f"{file}: {error.message}") from None
    size = header.width, header.height
    return size[::-1] if header.transposed else size


def _box(values: Sequence[float], where: str) -> Truth:
    """Return an object of a box (x, y, width, height). Raises DatasetError unless it is one."""
    x, y, width, height = values
    if not all(map(math.isfinite, values)) or width < 0 or height < 0:
        raise DatasetError(f"{where}: [{x:g}, {y:g}, {width:g}, {height:g}] is no box")
    return Truth(0, (x, y, width, height))


def _is_coco(file: Path) -> bool:
    text = _text(file)
    return all(f'"{key}"' in text for key in ("images", "annotations", "categories"))


def _read_coco(file: Path, folder: Path) -> list[Drawn]:
    try:
        coco = validation.convert(json.loads(_text(file)), CocoFile)
    except (ValueError, RecursionError) as error:
        why = str(error) if isinstance(error, InvalidValueError) else "it is no JSON"
        raise DatasetError(f"{file} is no COCO file of objects: {why}") from None
    names = {each.id: each.name for each in coco.categories}
    by_image: dict[int, list[tuple[Class, Truth]]] = {each.id: [] for each in coco.images}
    for number, each in enumerate(coco.annotations, 1):
        where = f"{file}, annotation {number}"
        if each.image_id not in by_image or each.category_id not in names:
            what = "image" if each.image_id not in by_image else "category"
            raise DatasetError(f"{where} names the {what} of an id that the file does not have")
        truth = _box(each.bbox, where)._replace(crowd=bool(each.iscrowd))
        by_image[each.image_id].append((names[each.category_id], truth))
    # COCO's order of images decides between boxes of the same probability.
    ordered = sorted(coco.images, key=lambda each: each.id)
    return [(_coco_picture(each, file, folder), by_image[each.id]) for each in ordered]


def _coco_picture(image: CocoImage, file: Path, folder: Path) -> Path:
    """Return the picture, named relative to the file's folder, the given one, or one in it."""
    name = Path(image.file_name)
    for place in (file.parent, folder, folder / "images", file.parent.parent / "images"):
        # Also for a name that no file can have.
        if os.path.isfile(place / name):
            return place / name
    hits = [each for each in folder.rglob("*") if each.name == name.name]
    if len(hits) != 1:
        what = "is not there" if not hits else "may be one of several"
        raise DatasetError(f"{file}: the picture {image.file_name} {what}")
    return hits[0]


def _pairs(files: Sequence[Path], pictures: Sequence[Path]) -> Iterator[tuple[Path, Path | None]]:
    """Yield each picture with its annotation file, which has its name but for the suffix: beside
    it, or the only one of this name."""
    by_name: dict[str, list[Path]] = {}
    for file in files:
        by_name.setdefault(file.stem, []).append(file)
    free = set(files)
    for picture in pictures:
        mine = by_name.get(picture.stem, [])
        if len(mine) > 1:
            # `train/images/1.jpg` has `train/labels/1.txt`.
            mine = [
                each for each in mine
                if each.parent in (picture.parent, *picture.parent.parent.iterdir())
            ]  # fmt: skip
        if len(mine) > 1:
            raise DatasetError(f"{picture} has two annotations, {mine[0]} and {mine[1]}")
        free.difference_update(mine)
        yield picture, mine[0] if mine else None
    if free:
        raise DatasetError(f"{min(free)} has no picture of its name")


def _read_voc(files: Sequence[Path], pictures: Sequence[Path]) -> Iterator[Drawn]:
    """Read Pascal VOC's files; what is marked as difficult is ignored."""
    for picture, file in _pairs(files, pictures):
        if file is None:
            continue
        try:
            # expat bounds what entities expand to, and asks for none from elsewhere.
            root = ElementTree.fromstring(_text(file))  # nosec B314
        except (ElementTree.ParseError, ValueError):
            raise DatasetError(f"{file} is no XML") from None
        objects: list[tuple[Class, Truth]] = []
        for number, each in enumerate(root.iter("object"), 1):
            where = f"{file}, object {number}"
            try:
                sides = [float(each.findtext(f"bndbox/{side}", "")) for side in _VOC_SIDES]
            except ValueError:
                raise DatasetError(f"{where} has no bndbox of four numbers") from None
            truth = _box((*sides[:2], sides[2] - sides[0], sides[3] - sides[1]), where)
            difficult = each.findtext("difficult", "0").strip() == "1"
            objects.append((each.findtext("name", "").strip(), truth._replace(ignored=difficult)))
        yield picture, objects


# Numbers of classes that a file without names may have.
_CLASSES_MAX = 1_000_000
_VOC_SIDES = ("xmin", "ymin", "xmax", "ymax")


def _is_yolo(file: Path, pictures: Collection[str]) -> bool:
    """Return whether a file is one of YOLO's: it is called as a picture, or holds boxes."""
    if file.suffix.lower() != ".txt" or file.name.lower() in NO_OBJECTS:
        return False
    first = _text(file).strip().partition("\n")[0].split()
    return file.stem in pictures or (len(first) >= 5 and all(map(_is_number, first)))


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", text) is not None


def _read_yolo(
    files: Sequence[Path], pictures: Sequence[Path], names: Sequence[str]
) -> Iterator[Drawn]:
    """Read YOLO's files, a line an object: its class, and the centre, width and height of its box
    (or the corners of its outline), as shares of the picture. A picture without one shows nothing.
    names: of the classes; without them, a class is a line of labels.txt."""
    for picture, file in _pairs(files, pictures):
        objects: list[tuple[Class, Truth]] = []
        size = _size(picture) if file else (0, 0)
        for number, line in enumerate(_text(file).splitlines() if file else (), 1):
            words, where = line.split(), f"{file}, line {number}"
            if not words:
                continue
            outline = len(words) > 6 and len(words) % 2
            if not all(map(_is_number, words)) or not (len(words) == 5 or outline):
                raise DatasetError(
                    f"{where} is not a class and four shares of the picture (centre and size)"
                )
            shares = [float(word) for word in words[1:]]
            if outline:
                left, top = min(shares[::2]), min(shares[1::2])
                wide, high = max(shares[::2]) - left, max(shares[1::2]) - top
            else:
                wide, high = shares[2:]
                left, top = shares[0] - wide / 2, shares[1] - high / 2
            if max(shares) > 2:
                raise DatasetError(f"{where} has numbers that are no shares of the picture")
            box = (left * size[0], top * size[1], wide * size[0], high * size[1])
            found = float(words[0])
            if not 0 <= found < (len(names) or _CLASSES_MAX):
                known = f"{len(names)} have names" if names else "classes count from 0"
                raise DatasetError(f"{where} has the class {found:g}; {known}")
            place = int(found)
            objects.append((names[place] if names else place, _box(box, where)))
        yield picture, objects


def _yolo_names(folder: Path) -> tuple[str, ...]:
    """Return the classes' names by data.yaml or classes.txt; () without such a file."""
    for file in (place / name for place in (folder, folder.parent) for name in YOLO_NAMES):
        if not file.is_file():
            continue
        text = _text(file)
        if file.suffix not in (".yaml", ".yml"):
            return tuple(line.strip() for line in text.splitlines() if line.strip())
        if names := _names_in_yaml(text):
            return names
        raise DatasetError(f"{file} has no `names:` that can be read: a list, or numbered lines")
    return ()


def _names_in_yaml(text: str) -> tuple[str, ...]:
    """Return the value of `names:`: a list or a dictionary in brackets, or lines of `- NAME` or
    `NUMBER: NAME`."""
    # Only the first one, so that the time does not grow by the square of their number.
    match = re.search(r"^names:[ \t]*(?=[\[{])", text, re.MULTILINE)
    whole = re.compile(r"[^\]}]*[\]}]").match(text, match.end()) if match else None
    if whole:
        try:
            value: Any = ast.literal_eval(whole[0])
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            bare = whole[0].strip("[]{} \n").split(",")
            value = [each.partition(":")[2] or each for each in bare]
        names = value.values() if isinstance(value, dict) else value
        return tuple(str(name).strip(" \n'\"") for name in names)
    match = re.search(r"^names:[ \t]*\n((?:[ \t]*(?:-|\d+:)[ \t]+.*\n?)+)", text, re.MULTILINE)
    lines = match[1].splitlines() if match else ()
    return tuple(re.sub(r"^[ \t]*(-|\d+:)[ \t]+", "", line).strip(" '\"") for line in lines)
