"""The conveyor belt under the parts: five kinds of surface, with what lies and sticks on them."""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from line_camera.noise import Field, clouds, grain, smoothstep

Painter = Callable[[np.random.Generator, int, int, float], Field]


def _rubber(rng: np.random.Generator, height: int, width: int, unit: float) -> Field:
    """Dark rubber, streaked along the direction of travel."""
    streaks = cv2.resize(grain(rng, (height, 8)), (width, height), interpolation=cv2.INTER_LINEAR)
    surface = 1.0 + 0.10 * streaks + rng.uniform(0.08, 0.22) * grain(rng, (height, width))
    return rng.uniform(0.035, 0.11) * surface


def _fabric(rng: np.random.Generator, height: int, width: int, unit: float) -> Field:
    """Light plastic with the weave of the cloth beneath showing through."""
    pitch = rng.uniform(5.0, 10.0) * unit
    rows = np.sin(np.arange(height, dtype=np.float32) * (2 * np.pi / pitch))
    columns = np.sin(np.arange(width, dtype=np.float32) * (2 * np.pi / pitch))
    weave: Field = rows[:, None] * columns[None, :] * rng.uniform(0.02, 0.10)
    return rng.uniform(0.16, 0.42) * (1.0 + weave + 0.035 * grain(rng, (height, width)))


def _mesh(rng: np.random.Generator, height: int, width: int, unit: float) -> Field:
    """Woven wire over a dark gap; the wires are round, so bright in the middle."""
    pitch = rng.uniform(14.0, 26.0) * unit
    rows = np.sin(np.arange(height, dtype=np.float32) * (np.pi / pitch))[:, None]
    columns = np.sin(np.arange(width, dtype=np.float32) * (np.pi / pitch))[None, :]
    wire = rng.uniform(0.45, 0.62)
    along = np.clip(1.0 - np.abs(rows) / wire, 0.0, 1.0) * (0.75 + 0.25 * np.abs(columns))
    across = np.clip(1.0 - np.abs(columns) / wire, 0.0, 1.0) * (0.75 + 0.25 * np.abs(rows))
    lit: Field = np.sqrt(np.maximum(along, across))
    gap, metal = rng.uniform(0.008, 0.04), rng.uniform(0.10, 0.26)
    return (gap + metal * lit) * (1.0 + 0.06 * grain(rng, (height, width)))


def _links(rng: np.random.Generator, height: int, width: int, unit: float) -> Field:
    """Moulded plastic links: hinge lines across, slots along."""
    pitch = rng.uniform(46.0, 90.0) * unit
    shift = rng.uniform(0.0, pitch)
    columns = np.abs((np.arange(width, dtype=np.float32) + shift) % pitch - pitch / 2)
    rows = np.abs((np.arange(height, dtype=np.float32) + shift) % (pitch * 0.55) - pitch * 0.275)
    hinge: Field = smoothstep(columns / (2.4 * unit))[None, :]
    slot: Field = np.maximum(
        smoothstep((rows - pitch * 0.03) / (1.5 * unit))[:, None],
        smoothstep((columns - pitch * 0.3) / (1.5 * unit))[None, :],
    )
    bevel: Field = 1.0 + 0.25 * np.exp(-(((columns - 4 * unit) / (2 * unit)) ** 2))[None, :]
    level = rng.uniform(0.07, 0.34)
    return level * (0.15 + 0.85 * hinge * slot) * bevel * (1 + 0.04 * grain(rng, (height, width)))


def _studs(rng: np.random.Generator, height: int, width: int, unit: float) -> Field:
    """Grip belt: rows of diamond studs, lit from one side."""
    pitch = rng.uniform(16.0, 30.0) * unit
    y = np.arange(height, dtype=np.float32)[:, None] / pitch
    x = np.arange(width, dtype=np.float32)[None, :] / pitch
    diamond = np.abs((x + y) % 1.0 - 0.5) + np.abs((x - y) % 1.0 - 0.5)
    stud = smoothstep((0.55 - diamond) * rng.uniform(3.0, 7.0)).astype(np.float32)
    relief = stud - np.roll(stud, (2, 2), axis=(0, 1))
    level = rng.uniform(0.05, 0.22)
    shade = 1.0 + 0.25 * stud + 0.45 * relief
    return level * shade * (1.0 + 0.08 * grain(rng, (height, width)))


_KINDS: tuple[tuple[Painter, tuple[tuple[float, float, float], ...]], ...] = (
    (_rubber, ((1.0, 1.0, 1.0), (0.95, 1.0, 1.08), (1.12, 1.0, 0.88))),
    (_fabric, ((1.0, 1.0, 0.97), (0.42, 0.78, 0.55), (0.35, 0.62, 1.0), (1.0, 0.94, 0.78))),
    (_mesh, ((1.0, 1.0, 1.0), (1.06, 1.0, 0.9))),
    (_links, ((0.36, 0.62, 1.0), (1.0, 1.0, 0.98), (0.9, 0.9, 0.92), (0.5, 0.8, 0.62))),
    (_studs, ((1.0, 1.0, 1.0), (0.45, 0.8, 0.58), (0.9, 0.82, 0.7))),
)


def _turned(field: Field, rng: np.random.Generator, along_x: bool) -> Field:
    """The camera is never quite square to the belt; a belt along y is the same one transposed."""
    field = np.ascontiguousarray(field if along_x else field.T, dtype=np.float32)
    height, width = field.shape
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(-5, 5), 1.06)
    return cv2.warpAffine(field, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101)


def _seams(mask: NDArray[np.uint8], rng: np.random.Generator, along_x: bool, unit: float) -> None:
    """A belt is closed by a splice that runs across it."""
    height, width = mask.shape
    extent = width if along_x else height
    at, lean = rng.uniform(0, extent), rng.uniform(-0.12, 0.12) * extent
    ends = [(at - lean, 0.0), (at + lean, float(height))]
    if not along_x:
        ends = [(0.0, at - lean), (float(width), at + lean)]
    (ax, ay), (bx, by) = ends
    thickness = max(1, round(rng.uniform(1.5, 4.5) * unit))
    cv2.line(
        mask,
        (int(ax), int(ay)),
        (int(bx), int(by)),
        int(rng.integers(90, 220)),
        thickness,
        cv2.LINE_AA,
    )


def _scars(mask: NDArray[np.uint8], rng: np.random.Generator, along_x: bool, unit: float) -> None:
    """Scratches on the belt, most of them in the direction of travel."""
    height, width = mask.shape
    for _ in range(int(rng.integers(0, 7))):
        start = rng.uniform((0, 0), (width, height))
        heading = rng.normal(0.0, 0.25) + (0.0 if along_x else np.pi / 2)
        reach = rng.uniform(30, 320) * unit
        stop = start + reach * np.array([np.cos(heading), np.sin(heading)])
        cv2.line(
            mask,
            tuple(start.astype(int).tolist()),
            tuple(stop.astype(int).tolist()),
            int(rng.integers(40, 170)),
            max(1, round(rng.uniform(0.6, 2.2) * unit)),
            cv2.LINE_AA,
        )


def _stains(rng: np.random.Generator, height: int, width: int, unit: float) -> Field:
    """Dirt in clouds and oil in drops: factors, 1 for a clean belt."""
    rows, columns = height // 4, width // 4
    dirt = smoothstep(clouds(rng, (rows, columns), rng.uniform(8, 40) * unit) * 0.5 - 0.1)
    factor = 1.0 - rng.uniform(0.0, 0.45) * dirt
    drops = np.zeros((rows, columns), dtype=np.uint8)
    for _ in range(int(rng.choice((0, 0, 0, 1, 2, 4)))):
        centre = rng.uniform((0, 0), (columns, rows)).astype(int)
        axes = (rng.uniform(3, 22, 2) * unit).astype(int) + 1
        cv2.ellipse(
            drops,
            tuple(centre.tolist()),
            tuple(axes.tolist()),
            rng.uniform(0, 180),
            0,
            360,
            255,
            -1,
            cv2.LINE_AA,
        )
    soft = cv2.GaussianBlur(drops, (0, 0), rng.uniform(0.6, 2.5)).astype(np.float32) / 255.0
    factor = factor * (1.0 - rng.uniform(0.3, 0.65) * soft)
    return cv2.resize(factor.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)


def belt(
    rng: np.random.Generator, width: int, height: int, unit: float, along_x: bool
) -> tuple[Field, tuple[float, float, float]]:
    """A stretch of belt, evenly lit.

    `unit` is the length of one pixel of a 640x480 picture in pixels of this one; `along_x` says
    that the belt runs from left to right and not from top to bottom.
    Returns the reflectance as float32 height x width, 0 to about 0.6 (linear light), and the
    red, green and blue factors of its colour.
    """
    painter, colours = _KINDS[int(rng.integers(len(_KINDS)))]
    rows, columns = (height, width) if along_x else (width, height)
    surface = _turned(painter(rng, rows, columns, unit), rng, along_x)
    surface = surface * _stains(rng, height, width, unit)
    dark, bright = np.zeros((2, height, width), dtype=np.uint8)
    if rng.random() < 0.3:
        _seams(dark, rng, along_x, unit)
    _scars(bright if rng.random() < 0.6 else dark, rng, along_x, unit)
    surface *= 1.0 - dark.astype(np.float32) * (0.75 / 255.0)
    surface += bright.astype(np.float32) * (rng.uniform(0.04, 0.16) / 255.0)
    red, green, blue = np.array(colours[int(rng.integers(len(colours)))]) * rng.uniform(
        0.93, 1.07, 3
    )
    return np.maximum(surface, 0.004), (float(red), float(green), float(blue))
