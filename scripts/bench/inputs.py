"""Prepares what is served and posted: the bundle, laid out as a models folder, and the frames."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SHARED_FRAMES = ROOT.parent / "shared" / "frames"
SIZES = {"720p": (1280, 720), "1080p": (1920, 1080)}

# The project's generator runs in a process of its own, since it needs numpy and OpenCV.
RENDER = """
import sys, cv2, numpy as np
from line_camera.parts import render
path, width, height = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
picture = render("good", np.random.default_rng(1), width, height)
cv2.imwrite(path, picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
"""


@dataclass(frozen=True)
class Model:
    """A bundle to serve. `models` is a folder that holds it alone; `recipe` its bundle.json's."""

    bundle: Path
    models: Path
    recipe: dict[str, Any]


def lay_out(bundle: Path, folder: Path, *, exact: bool) -> Model:
    """Copies a bundle (models/NAME/VERSION) into `folder`, as the only one there.

    `exact` changes its recipe to decode every pixel and resize by area, and takes the golden
    frames away, whose probabilities belong to the recipe as it was. Raises FileNotFoundError
    where there is no bundle.json.
    """
    manifest = json.loads((bundle / "bundle.json").read_text())
    target = folder / manifest["name"] / str(manifest["version"])
    shutil.copytree(bundle, target)
    if exact:
        manifest["recipe"] |= {"decode": "exact", "interpolation": "area"}
        manifest.pop("golden", None)
        (target / "bundle.json").write_text(json.dumps(manifest))
    return Model(target, folder, manifest["recipe"])


def find_frames(folder: Path, python: Path) -> dict[str, Path]:
    """A JPEG by size (`720p`, `1080p`): the cat of ../shared/frames where that is, else a part
    that the project's generator draws into `folder`."""
    frames = {size: SHARED_FRAMES / f"cat_{size}.jpg" for size in SIZES}
    if all(path.is_file() for path in frames.values()):
        return frames
    for size, sides in SIZES.items():
        frames[size] = folder / f"part_{size}.jpg"
        arguments = [str(frames[size]), *map(str, sides)]
        subprocess.run([str(python), "-c", RENDER, *arguments], cwd=ROOT / "scripts", check=True)
    return frames
