"""Tiles: a frame in parts, each shown to the model by itself, with one result."""

import base64
import io
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
from images import encode
from PIL import Image
from server_process import ROOT, SHARED
from tiny_models import COLORS, RECIPE, MakeModel, write_bundle

from convert.__main__ import main
from server.errors import BundleError, DeadlineExceededError, InvalidFieldError
from server.recognition import frame
from server.recognition.admission import Admission
from server.recognition.answers import Options
from server.recognition.detection.manifest import DetectionOutputs
from server.recognition.detection.merging import merge_tiles
from server.recognition.detection.outputs import Candidates, overlap
from server.recognition.interpreter import InterpreterPool
from server.recognition.manifest import Recipe, Tiles, read_bundle
from server.recognition.preprocessing import placement
from server.recognition.recognizer import OnStage, Recognizer
from server.recognition.tasks import anomaly
from server.recognition.tensor_model import make_model, run_images

# Box, probability, class.
Found = tuple[tuple[float, float, float, float], float, int]
TILED = msgspec.structs.replace(RECIPE, tiles=Tiles(columns=2, rows=2, overlap=0.25))
FACE = "face_detection_short_range.tflite"


def load(
    folder: Path, clock: Callable[[], float] | None = None, on_stage: OnStage | None = None
) -> Recognizer:
    bundle = read_bundle(folder)
    pool = InterpreterPool(bundle.model_path, 1)
    admission = Admission(1, 1, clock) if clock else Admission(1, 1)
    model = make_model(bundle, pool, admission, frame.Limits(), on_stage)
    assert isinstance(model, Recognizer)
    return model


@pytest.fixture
def write(tiny_model: MakeModel, tmp_path: Path) -> Any:
    """A function from a tiny model and fields of its manifest to the folder of its bundle."""

    def make(kind: str, labels: tuple[str, ...], task: str, recipe: Recipe, **fields: Any) -> Path:
        folder = tmp_path / kind / "1"
        return write_bundle(folder, tiny_model(kind), labels, recipe, task=task, **fields)

    return make


def tiled_finder(write: Any) -> Path:
    cells = DetectionOutputs(convention="fomo", background=0, score_threshold=0.5)
    folder: Path = write("bright_cells", ("dark", "bright"), "detect", TILED, detection=cells)
    return folder


def tiled_surface(write: Any) -> Path:
    folder: Path = write("spots", anomaly.LABELS, "anomaly", TILED)
    return folder


def merged(*tiles: Sequence[Found]) -> list[Found]:
    """Objects of tiles side by side, each of 100 x 100 pixels and 80 pixels on from the one before.
    Boxes are left, top, right, bottom in pixels of the frame."""
    width = 100 + 80 * (len(tiles) - 1)
    parts, places = [], []
    for number, objects in enumerate(tiles):
        recipe = Recipe(width=100, height=100, region=(80 * number / width, 0, 100 / width, 1))
        places.append(placement((width, 100), (width, 100), recipe))
        boxes = np.array([box for box, _, _ in objects], np.float32).reshape(-1, 4)
        parts.append(
            Candidates(
                boxes - np.array([80 * number, 0] * 2, np.float32),
                np.array([score for _, score, _ in objects], np.float32),
                np.array([label for _, _, label in objects], np.int64),
            )
        )
    found = merge_tiles(parts, places, 0.45)
    return [
        (tuple(box), round(score, 3), label)
        for box, score, label in zip(
            found.boxes.round(1).tolist(),
            found.scores.tolist(),
            found.classes.tolist(),
            strict=True,
        )
    ]


def test_object_in_two_tiles_is_one() -> None:
    """Tiles show it whole; the more probable box stays."""
    first, second = ((84, 10, 96, 20), 0.8, 0), ((85, 10, 97, 20), 0.9, 0)
    assert merged([first], [second]) == [second]


def test_part_of_an_object_joins_its_whole_box() -> None:
    whole, part = ((60, 10, 95, 50), 0.7, 0), ((81, 12, 95, 50), 0.9, 0)
    assert merged([whole], [part]) == [((60, 10, 95, 50), 0.9, 0)]


def test_object_larger_than_a_tile_is_put_together() -> None:
    first, last = ((20, 10, 100, 50), 0.7, 0), ((160, 9, 200, 50), 0.9, 0)
    middle = ((78, 11, 182, 51), 0.8, 0)
    assert merged([first], [middle], [last]) == [((20, 9, 200, 51), 0.9, 0)]


def test_objects_of_other_labels_or_places_stay() -> None:
    one, below = ((70, 10, 100, 30), 0.9, 0), ((80, 60, 95, 80), 0.8, 0)
    other = ((80, 10, 95, 30), 0.7, 1)
    assert merged([one], [below, other]) == [one, below, other]


def test_objects_inside_one_another_stay_unless_cut() -> None:
    large, small = ((60, 10, 96, 90), 0.9, 0), ((86, 40, 92, 50), 0.8, 0)
    assert merged([large], [small]) == [large, small]


def test_tiles_without_objects_have_none() -> None:
    assert merged([], []) == []


@pytest.mark.parametrize("at", [(10, 10), (70, 30), (115, 60)])
def test_map_of_tiles_is_one_of_the_frame(write: Any, at: tuple[int, int]) -> None:
    """The region, the heat map and the score are those of the bright spot."""
    pixels = np.zeros((80, 160, 3), np.uint8)
    pixels[at[1] : at[1] + 16, at[0] : at[0] + 32] = 230
    answer = load(tiled_surface(write)).recognize(encode(pixels, "PNG"), Options())
    [region] = answer.details.regions
    assert answer.details.score == region.score > 0.5
    # A place is of 23 x 11 pixels.
    assert region.box[:2] == pytest.approx(at, abs=24)
    assert np.add(region.box[:2], region.box[2:]) == pytest.approx((at[0] + 32, at[1] + 16), abs=24)
    assert answer.details.heatmap_box == (0, 0, 160, 80)
    heat = cv2.imdecode(np.frombuffer(base64.b64decode(answer.details.heatmap), np.uint8), 0)
    assert heat is not None
    y, x = np.unravel_index(heat.argmax(), heat.shape)
    assert x / heat.shape[1] * 160 == pytest.approx(at[0] + 16, abs=24)
    assert y / heat.shape[0] * 80 == pytest.approx(at[1] + 8, abs=12)


def test_models_without_merging_have_no_tiles(write: Any) -> None:
    with pytest.raises(BundleError, match="task classify answers a frame as a whole"):
        load(write("colors", COLORS, "classify", TILED))
    maps = DetectionOutputs(convention="class_map", background=0)
    with pytest.raises(BundleError, match="a map of classes is of a frame as a whole"):
        load(write("bright_map", ("dark", "bright"), "detect", TILED, detection=maps))


def test_raw_outputs_of_tiles_are_refused(write: Any) -> None:
    model = load(tiled_finder(write))
    with pytest.raises(InvalidFieldError, match="is shown 4 views of a frame") as refused:
        run_images(model, [encode(np.zeros((64, 64, 3), np.uint8))], Options())
    assert refused.value.status == 400


def test_stages_of_tiles_are_observed_once(write: Any) -> None:
    stages: list[str] = []
    model = load(tiled_finder(write), on_stage=lambda name, _: stages.append(name))
    answer = model.recognize(encode(np.zeros((64, 64, 3), np.uint8)), Options())
    assert stages == ["wait", "decode", "preprocess", "inference"]
    assert set(answer.timing) == {*stages, "total"}


def test_deadline_is_checked_between_tiles(write: Any) -> None:
    """By a clock that goes on by a second each time that it is read."""
    seconds = iter(range(1000))
    model = load(tiled_finder(write), clock=lambda: float(next(seconds)))
    data, late = encode(np.zeros((64, 64, 3), np.uint8)), set()
    for left in range(30):
        try:
            model.recognize(data, Options(deadline=next(seconds) + left))
        except DeadlineExceededError as error:
            late.add(error.message.partition("while ")[2])
    assert "4 views were looked at" in late
    assert model.admission.busy == 0


@pytest.mark.skipif(not (SHARED / "models" / FACE).exists(), reason=f"../shared lacks {FACE}")
def test_small_faces_are_found_in_tiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real detector finds no face in a frame as a whole, and all of them by the guide's commands;
    the last one's bundle has a golden frame of each region."""
    person = Image.open(SHARED / "frames" / "grace_hopper.bmp").convert("RGB").resize((154, 180))
    hall, faces = Image.new("RGB", (1920, 1080), (90, 110, 130)), []
    for x, y in ((1500, 600), (620, 440), (60, 60)):
        hall.paste(person, (x, y))
        faces.append((x + 50.4, y + 43.5, 59.1, 59.1))
    file = io.BytesIO()
    hall.save(file, "JPEG", quality=92)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "hall.jpg").write_bytes(file.getvalue())
    (tmp_path / "face.txt").write_text("face")
    shutil.copy(SHARED / "models" / FACE, tmp_path / "face.tflite")
    guide = (ROOT / "docs" / "guide.md").read_text("utf-8")
    tiled, halves = (
        command.split()
        for command in re.findall(
            r"^\$ python -m convert (detector face.tf.*)$", guide, re.MULTILINE
        )
    )
    whole = tiled[: tiled.index("--tiles")]
    for number, (arguments, counts) in enumerate(((whole, [0]), (tiled, [3]), (halves, [2, 1])), 1):
        assert main([*arguments, "--out", "models"]) == 0
        found = load(tmp_path / "models" / "face" / str(number))
        parts = found.recognize(file.getvalue(), Options()).parts()
        objects = [each for part in parts for each in part.details]
        assert [len(part.details) for part in parts] == counts
        assert len(objects) in (0, len(faces))
        assert all(max(overlap(each.box, face) for face in faces) > 0.6 for each in objects)
    assert "15 views of a frame" in capsys.readouterr().out
    assert {golden.region for golden in found.manifest.golden} == {"left", "right"}
