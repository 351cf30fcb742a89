"""Painted defects: good frames with an area that is changed, to learn from how a defect looks.

No defect is known when an anomaly model is made. Any change that ends within the frame stands for
one, as in CutPaste (Li et al., 2021, arXiv:2104.04015) and DRAEM (Zavrtanik et al., 2021,
arXiv:2108.07610). A picture is float32 [side, side, 3], 0 to 255; an area is bool [side, side].
"""

from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Picture = NDArray[Any]

# The larger part of a frame is what is usual, so no area may be that.
LARGEST_AREA = 0.5
# Mean change of an area in grey levels: of less nothing could be learned.
LEAST_CHANGE = 4.0


def paint(
    frame: NDArray[np.uint8], other: NDArray[np.uint8], rng: Generator
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return a good frame, uint8 [side, side, 3], with one defect or two, rarely none, and the area
    that they cover, bool [side, side].

    other: another good frame of the same size, parts of which may be pasted.
    """
    picture, source = frame.astype(np.float32), other.astype(np.float32)
    covered = np.zeros(frame.shape[:2], bool)
    for _ in range(rng.integers(1, 3)):
        area = _AREAS[rng.integers(len(_AREAS))](rng, len(frame))
        if not area.any() or area.mean() > LARGEST_AREA:
            continue
        content = _CONTENTS[rng.integers(len(_CONTENTS))](rng, picture, source)
        softness = _between(rng, 0.5, 3)
        cover = cv2.GaussianBlur(area.astype(np.float32), (0, 0), softness) * rng.uniform(0.5, 1)
        changed = np.clip(picture + cover[..., None] * (content - picture), 0, 255)
        if np.abs(changed - picture)[area].mean() >= LEAST_CHANGE:
            picture, covered = np.asarray(changed, np.float32), covered | area
    return np.rint(picture).astype(np.uint8), covered


def _between(rng: Generator, low: float, high: float) -> float:
    """A number of which each doubling is as likely."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _clouds(rng: Generator, side: int, width: float, height: float) -> NDArray[Any]:
    """Smooth noise of mean 0 and deviation 1; its features are about `width` by `height` pixels."""
    cells = (int(side / height) + 2, int(side / width) + 2)
    field = cv2.resize(rng.normal(size=cells), (side, side), interpolation=cv2.INTER_CUBIC)
    field -= field.mean()
    return np.asarray(field / max(float(field.std()), 1e-6), np.float32)


def _highest(field: NDArray[Any], share: float) -> NDArray[np.bool_]:
    return np.asarray(field > np.quantile(field, 1 - share), bool)


def _blob(rng: Generator, side: int) -> NDArray[np.bool_]:
    """One ragged spot of any size."""
    spots = _highest(
        _clouds(rng, side, _between(rng, 8, 150), _between(rng, 8, 150)),
        _between(rng, 0.003, 0.35),
    )
    count, marks = cv2.connectedComponents(spots.astype(np.uint8))
    return np.asarray(marks == rng.integers(1, max(count, 2)), bool)


def _line(rng: Generator, side: int) -> NDArray[np.bool_]:
    """A thin, bent line."""
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.08, 30))
    step = _between(rng, 0.07, 0.8) * side / 30
    path = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], 1) * step, axis=0)
    path += rng.uniform(0, side, 2) - path.mean(axis=0)
    drawn = np.zeros((side, side), np.uint8)
    thick = int(rng.integers(1, 5))
    cv2.polylines(drawn, [np.rint(path * 8).astype(np.int32)], False, 1, thick, cv2.LINE_8, 3)
    return drawn > 0


def _box(rng: Generator, side: int) -> NDArray[np.bool_]:
    """An upright or turned rectangle."""
    centre = rng.uniform(0, side, 2)
    size = (_between(rng, 0.02, 0.5) * side, _between(rng, 0.02, 0.5) * side)
    turn = float(rng.uniform(0, 180) * rng.integers(2))
    corners = cv2.boxPoints(((float(centre[0]), float(centre[1])), size, turn))
    drawn = np.zeros((side, side), np.uint8)
    cv2.fillPoly(drawn, [np.rint(corners).astype(np.int32)], 1)
    return drawn > 0


def _side(rng: Generator, side: int) -> NDArray[np.bool_]:
    """All beyond an uneven edge across the frame."""
    turn = rng.integers(4) * np.pi / 2 + rng.normal(0, 0.3)
    y, x = np.mgrid[:side, :side].astype(np.float32)
    distance = x * np.cos(turn) + y * np.sin(turn) + rng.uniform(0, 6) * _clouds(rng, side, 60, 60)
    return _highest(distance, rng.uniform(0.04, 0.45))


def _patch(rng: Generator, side: int) -> NDArray[np.bool_]:
    """A large area with round corners."""
    y, x = np.mgrid[:side, :side].astype(np.float32)
    at, radius = rng.uniform(0.1, 0.9, 2) * side, rng.uniform(0.09, 0.4, 2) * side
    distance = np.abs((x - at[0]) / radius[0]) ** 3 + np.abs((y - at[1]) / radius[1]) ** 3
    return np.asarray(distance + 0.15 * _clouds(rng, side, 50, 50) < 1, bool)


def _toned(rng: Generator, picture: Picture, _: Picture) -> Any:
    return picture * _between(rng, 1.12, 2) ** rng.choice((-1.0, 1.0))


def _unevenly_lit(rng: Generator, picture: Picture, _: Picture) -> Any:
    cell = _between(rng, 20, 120)
    depth = rng.uniform(0.1, 0.4) * _clouds(rng, len(picture), cell, cell)
    return picture * np.exp(depth)[..., None]


def _moved(rng: Generator, picture: Picture, other: Picture) -> Any:
    """Another place of this frame or of the other one."""
    source = (picture, other)[rng.integers(2)]
    shift = rng.integers(len(picture) // 10, len(picture) * 9 // 10, 2)
    moved = np.roll(source, (int(shift[0]), int(shift[1])), (0, 1))
    return (moved.transpose(1, 0, 2) if rng.integers(2) else moved) * np.exp(rng.normal(0, 0.15))


def _swapped(rng: Generator, picture: Picture, other: Picture) -> Any:
    """The same place of the other frame, in nearly this one's tone."""
    tone = picture.mean() / max(float(other.mean()), 1.0)
    return other * (tone * np.exp(rng.normal(0, 0.12)))


def _flat(rng: Generator, picture: Picture, _: Picture) -> Any:
    """A foreign colour with a little relief."""
    colour = rng.uniform(0, 255) + rng.normal(0, 20, 3)
    return colour + 5 * rng.normal() * _clouds(rng, len(picture), 6, 6)[..., None]


def _noisy(rng: Generator, picture: Picture, _: Picture) -> Any:
    cell = _between(rng, 2, 30)
    return picture + rng.uniform(10, 50) * _clouds(rng, len(picture), cell, cell)[..., None]


def _streaked(rng: Generator, picture: Picture, _: Picture) -> Any:
    """Lines along or across, brighter or darker in all."""
    side = len(picture)
    cells = (_between(rng, 1, 6), 10.0 * side)
    lines = _clouds(rng, side, *(cells if rng.integers(2) else cells[::-1]))
    depth = rng.uniform(0.05, 0.3) * lines + rng.normal(0, 0.2)
    return picture * np.exp(depth)[..., None]


def _smoothed_or_roughened(rng: Generator, picture: Picture, _: Picture) -> Any:
    smooth = cv2.GaussianBlur(picture, (0, 0), rng.uniform(1.5, 5))
    grain = rng.choice((0.0, 1.0)) * rng.uniform(1.5, 3)
    return (smooth + grain * (picture - smooth)) * np.exp(rng.normal(0, 0.2))


_AREAS = (_blob, _line, _box, _side, _patch)
_CONTENTS = (
    _toned,
    _unevenly_lit,
    _moved,
    _swapped,
    _flat,
    _noisy,
    _streaked,
    _smoothed_or_roughened,
)
