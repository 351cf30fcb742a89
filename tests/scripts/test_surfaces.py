"""The generator of surfaces, and that the shipped bundle tells good ones from others."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
from server_process import ROOT, LiveServer, live_server

SCRIPTS = ROOT / "scripts"
KINDS = ("good", "scratch", "dent", "stain", "foreign_body")


@pytest.fixture(scope="module")
def camera() -> Iterator[ModuleType]:
    """scripts/camera.py, with its folder on the path as it is when the script is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield importlib.import_module("camera")
        for name in [each for each in sys.modules if each.startswith(("camera", "line_camera"))]:
            del sys.modules[name]


@pytest.fixture(scope="module")
def surfaces(camera: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures of each kind, and the masks of defects."""
    folder = tmp_path_factory.mktemp("surfaces")
    masks = ["--masks", str(folder / "masks")]
    options = ["--per-class", "2", "--seed", "77", *masks]
    assert camera.main(["surfaces", str(folder / "frames"), *options]) == 0
    return folder


def test_masks_lie_where_a_kind_differs(camera: ModuleType) -> None:
    """The same seed without its defect is another picture, but only a defect has a mask."""
    surface = importlib.import_module("line_camera.surface")
    assert surface.KINDS == KINDS
    for kind in KINDS:
        for seed in range(8):
            picture, mask = surface.render_surface(kind, np.random.default_rng(seed))
            assert picture.shape == (320, 320, 3)
            assert picture.dtype == np.uint8
            assert picture.std() > 1
            assert mask.any() == (kind != "good")
            again, _ = surface.render_surface(kind, np.random.default_rng(seed))
            assert np.array_equal(picture, again)


def test_surfaces_are_written_with_their_masks(surfaces: Path) -> None:
    files = {str(path.relative_to(surfaces)) for path in surfaces.rglob("*.*")}
    numbers = (1, 2)
    assert files == {f"frames/{k}/{k}_{n:05d}.jpg" for k in KINDS for n in numbers} | {
        f"masks/{k}/{k}_{n:05d}.png" for k in KINDS[1:] for n in numbers
    }


def test_shipped_surface_bundle_finds_what_is_wrong(surfaces: Path, server: LiveServer) -> None:
    """It judges frames that were never written before; a region lies on each defect."""
    for kind in KINDS:
        for path in sorted((surfaces / "frames" / kind).iterdir()):
            answer = server.recognize(path.read_bytes(), model="surface").json()
            # One that is near the threshold is unsure.
            assert answer["verdict"] != ("fail" if kind == "good" else "pass"), path.name
            if kind == "good":
                continue
            mask = cv2.imread(str(surfaces / "masks" / kind / f"{path.stem}.png"), 0)
            assert mask is not None
            boxes = [region["box"] for region in answer["anomaly"]["regions"]]
            assert any(mask[y : y + h, x : x + w].any() for x, y, w, h in boxes), path.name


def test_second_shipped_model_is_not_the_default(sample: bytes) -> None:
    """It is loaded on first use only, so it takes no memory from those who never ask for it."""
    with live_server(models=ROOT / "models") as server:
        assert server.recognize(sample).json()["model"] == "parts"
        assert server.sample("lineside_model_memory_bytes", model="parts") > 0
        assert server.sample("lineside_model_memory_bytes", model="surface") == 0
