"""Boxes come back in the frame's own pixels, whatever was done to it on the way to the model."""

import io
import itertools
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from tiny_models import RECIPE, SIDE, MakeModel, write_bundle

from server.recognition import frame
from server.recognition.admission import Admission
from server.recognition.answers import Options
from server.recognition.detection.manifest import DetectionOutputs
from server.recognition.interpreter import InterpreterPool
from server.recognition.manifest import Tiles, read_bundle
from server.recognition.recognizer import Recognizer
from server.recognition.tensor_model import make_model

RESIZES = ("stretch", "letterbox", "crop")
DECODES = ("scaled", "exact")
LAYOUTS = ("nhwc", "nchw")
REGIONS = (None, (0.1, 0.2, 0.7, 0.6))
TILES = (None, Tiles(columns=3, rows=2, overlap=0.25))
# EXIF's tag 0x0112.
ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def finders(
    tiny_model: MakeModel, tmp_path_factory: pytest.TempPathFactory
) -> dict[Any, Recognizer]:
    """Models that find the bright part of a frame, by (resize, decode, layout, region, tiles)."""
    models = tmp_path_factory.mktemp("finders")
    found: dict[Any, Recognizer] = {}
    for fields in itertools.product(RESIZES, DECODES, LAYOUTS, REGIONS, TILES):
        resize, decode, layout, region, tiles = fields
        if tiles and (resize == "crop" or layout == "nchw"):
            continue
        kind = "bright_cells" if tiles else "bright_map"
        folder: Path = write_bundle(
            models / str(len(found)) / "1",
            tiny_model(kind if layout == "nhwc" else f"nchw_{kind}"),
            labels=("dark", "bright"),
            recipe=msgspec.structs.replace(
                RECIPE,
                resize=resize,
                decode=decode,
                layout=layout,
                region=region,
                tiles=tiles,
                pad=0,
            ),
            task="detect",
            detection=DetectionOutputs(
                convention="fomo" if tiles else "class_map", background=0, score_threshold=0.001
            ),
        )
        bundle = read_bundle(folder)
        pool = InterpreterPool(bundle.model_path, 1)
        model = make_model(bundle, pool, Admission(1, 1), frame.Limits())
        assert isinstance(model, Recognizer)
        found[fields] = model
    return found


@settings(max_examples=300)
@given(
    width=st.integers(40, 700),
    height=st.integers(40, 700),
    left=st.floats(0, 0.6),
    top=st.floats(0, 0.6),
    across=st.floats(0.2, 0.4),
    down=st.floats(0.2, 0.4),
    orientation=st.integers(1, 8),
    resize=st.sampled_from(RESIZES),
    decode=st.sampled_from(DECODES),
    layout=st.sampled_from(LAYOUTS),
    region=st.sampled_from(REGIONS),
    tiles=st.sampled_from(TILES),
    kind=st.sampled_from(["JPEG", "PNG"]),
)
def test_boxes_are_in_the_frames_own_pixels(
    finders: dict[Any, Recognizer],
    width: int,
    height: int,
    left: float,
    top: float,
    across: float,
    down: float,
    orientation: int,
    resize: str,
    decode: str,
    layout: str,
    region: tuple[float, float, float, float] | None,
    tiles: Tiles | None,
    kind: str,
) -> None:
    """To one and a half pixels of the model's input, which is all that this model can tell."""
    stored = np.zeros((height, width, 3), np.uint8)
    x, y = round(left * width), round(top * height)
    stored[y : y + round(down * height), x : x + round(across * width)] = 255
    picture = Image.fromarray(stored)
    exif = picture.getexif()
    exif[ORIENTATION] = orientation
    file = io.BytesIO()
    picture.save(file, kind, exif=exif.tobytes(), **({"quality": 95} if kind == "JPEG" else {}))
    file.seek(0)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(file)))[..., 0] > 127
    high, wide = upright.shape
    shares = region or (0, 0, 1, 1)
    shown = wide * shares[2], high * shares[3]
    middle = [(wide, high)[i] * (shares[i] + shares[i + 2] / 2) for i in (0, 1)]
    sides = (min(shown),) * 2 if resize == "crop" else shown
    seen = [middle[i % 2] + (-1, 1)[i // 2] * sides[i % 2] / 2 for i in range(4)]
    rows, columns = np.flatnonzero(upright.any(axis=1)), np.flatnonzero(upright.any(axis=0))
    want = (
        max(float(columns[0]), seen[0]),
        max(float(rows[0]), seen[1]),
        min(columns[-1] + 1.0, seen[2]),
        min(rows[-1] + 1.0, seen[3]),
    )
    tiles = None if resize == "crop" or layout == "nchw" else tiles
    if tiles:
        shown = shown[0] / (1 + 0.75 * 2), shown[1] / (1 + 0.75)
    pixel = {
        "stretch": (shown[0] / SIDE, shown[1] / SIDE),
        "letterbox": (max(shown) / SIDE,) * 2,
        "crop": (min(shown) / SIDE,) * 2,
    }[resize]
    if want[2] - want[0] < 3 * pixel[0] or want[3] - want[1] < 3 * pixel[1]:
        return  # too little of it is seen
    answer = finders[resize, decode, layout, region, tiles].recognize(file.getvalue(), Options())
    [one] = answer.details
    got = one.box[0], one.box[1], one.box[0] + one.box[2], one.box[1] + one.box[3]
    for i in range(4):
        assert abs(got[i] - want[i]) <= 1.5 * pixel[i % 2] + 1, (got, want)
