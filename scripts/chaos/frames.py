"""The frames that clients send, with the answer that is right for each."""

import random
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

# The folder of samples of the bundle that is served; each file is named by its label.
SAMPLES = Path("models/parts/1/samples")
GOOD_LABEL = "good"
DAMAGED, UNKNOWN = "damaged", "unknown"


class Frame(NamedTuple):
    """A frame by its name, with its bytes. label: the right one; empty if none is right."""

    name: str
    data: bytes
    label: str


class Expected(NamedTuple):
    """The right answer to a frame by its name. label, verdict: empty if any is right, but `pass` is
    right only if it is named. refused: no answer is right."""

    label: str
    verdict: str
    refused: bool


def expected(name: str) -> Expected:
    """Return the right answer to the frame called `name`."""
    if name == DAMAGED:
        return Expected("", "", True)
    if name == UNKNOWN:
        return Expected("", "", False)
    return Expected(name, "pass" if name == GOOD_LABEL else "fail", False)


def read_frames(root: Path) -> dict[str, Frame]:
    """Return the samples of the shipped bundle, a JPEG that breaks off, and a picture of noise."""
    frames = {
        path.stem: Frame(path.stem, path.read_bytes(), path.stem)
        for path in sorted((root / SAMPLES).glob("*.jpg"))
    }
    good = frames[GOOD_LABEL].data
    frames[DAMAGED] = Frame(DAMAGED, good[: len(good) * 2 // 3], "")
    noise = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)
    frames[UNKNOWN] = Frame(UNKNOWN, cv2.imencode(".jpg", noise)[1].tobytes(), "")
    return frames


def draw(frames: dict[str, Frame], rng: random.Random) -> Frame:
    """Return one of the frames: one of ten is damaged or unknown."""
    odd = rng.random()
    if odd < 0.05:
        return frames[DAMAGED]
    if odd < 0.1:
        return frames[UNKNOWN]
    return frames[rng.choice(sorted(frames.keys() - {DAMAGED, UNKNOWN}))]
