"""Pictures of the simulated line as JPEG files: single frames, and folders of them."""

import ctypes
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from camera_client.frames import Frame

from line_camera.parts import CLASSES, Picture, render
from line_camera.surface import KINDS, render_surface


def keep_memory() -> None:
    """Tell glibc to keep freed buffers: giving them back doubles the time of every picture."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, mmap_threshold = -1, -3
    mallopt(trim_threshold, 256 * 2**20)
    mallopt(mmap_threshold, 64 * 2**20)


def encode(picture: Picture, rng: np.random.Generator, quality: int) -> bytes:
    """Encode an RGB picture as JPEG, with a random quality near the given one, 1 to 100."""
    drawn = int(np.clip(round(rng.normal(quality, 4.0)), max(quality - 12, 1), 100))
    _, encoded = cv2.imencode(
        ".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, drawn]
    )
    return encoded.tobytes()


def write(folder: Path, per_class: int, seed: int, width: int, height: int, quality: int) -> int:
    """Write FOLDER/CLASS/CLASS_00001.jpg and so on; returns how many pictures were written.

    A picture depends on the seed, its class and its number only, not on how many are written.
    Raises OSError when the folder cannot be written.
    """
    for index, kind in enumerate(CLASSES):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for number in range(1, per_class + 1):
            rng = np.random.default_rng([seed, index, number])
            body = encode(render(kind, rng, width, height), rng, quality)
            (folder / kind / f"{kind}_{number:05d}.jpg").write_bytes(body)
    return per_class * len(CLASSES)


def write_surfaces(
    folder: Path, kinds: Sequence[str], per_class: int, seed: int, masks: Path | None
) -> int:
    """Write FOLDER/KIND/KIND_00001.jpg and so on, and MASKS/KIND/KIND_00001.png of defects, white
    on the defect; returns how many pictures were written. Raises OSError as `write` does."""
    for kind in kinds:
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for number in range(1, per_class + 1):
            rng = np.random.default_rng([seed, KINDS.index(kind), number])
            picture, mask = render_surface(kind, rng)
            name = f"{kind}_{number:05d}"
            (folder / kind / f"{name}.jpg").write_bytes(encode(picture, rng, 90))
            if masks is not None and kind != "good":
                (masks / kind).mkdir(parents=True, exist_ok=True)
                _, encoded = cv2.imencode(".png", mask.astype(np.uint8) * 255)
                (masks / kind / f"{name}.png").write_bytes(encoded.tobytes())
    return per_class * len(kinds)


def frames(count: int, seed: int, width: int, height: int, quality: int) -> list[Frame]:
    """Return `count` frames, their classes drawn with equal probability."""
    made = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        kind = CLASSES[int(rng.integers(len(CLASSES)))]
        body = encode(render(kind, rng, width, height), rng, quality)
        made.append(Frame(body, 0.0, f"{seed}-{number + 1:05d}", kind))
    return made
