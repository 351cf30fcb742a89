"""Machined parts as a line camera sees them, drawn by calculation.

The part is a turned ring: a flange with six bolt holes, a raised hub, a bore. It lies on a moving
belt under two or three lamps. Needs numpy and OpenCV only, so that it runs on the device too.
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from line_camera.belt import belt
from line_camera.metal import relief, shade
from line_camera.noise import Field, clouds, grain, smoothstep
from line_camera.ring import Ring, bore, make, outline
from line_camera.view import Lamp, View, Window, aim, lamps

Picture = NDArray[np.uint8]

CLASSES: tuple[str, ...] = (
    "good",
    "scratched",
    "dented",
    "chipped",
    "missing_hole",
    "wrong_part",
)
SMALLEST = 64

# Reflectance of clean metal, linear RGB: steel twice, aluminium, brass, bronze, burnished steel.
_METALS = (
    (0.62, 0.62, 0.63),
    (0.56, 0.58, 0.62),
    (0.86, 0.87, 0.88),
    (0.90, 0.74, 0.42),
    (0.76, 0.52, 0.36),
    (0.36, 0.36, 0.40),
)


def _shadow(ring: Ring, view: View, lights: tuple[Lamp, ...], width: int, height: int) -> Field:
    """Share of the lamps' light that reaches the belt, float32, for every fourth pixel.

    A point of the belt is dark when the ray to a lamp passes through the part; how soft the edge
    is follows from the size of the lamp and grows with the height of the part.
    """
    x, y = view.below(*view.plane(Window(0, 0, width, height, 4)), ring.thickness)
    dark, weight = np.zeros_like(x), 0.0
    for lamp in lights:
        reach = ring.thickness / lamp.z
        hidden = np.zeros_like(x)
        for share, soft in ((0.0, 0.05), (0.5, 0.12), (1.0, 0.2)):
            at_x = x + np.float32(lamp.x * reach * share)
            at_y = y + np.float32(lamp.y * reach * share)
            cover = 0.5 - outline(ring, at_x, at_y, cv2.magnitude(at_x, at_y)) / np.float32(soft)
            np.maximum(hidden, smoothstep(cover), out=hidden)
        dark += np.float32(lamp.strength) * hidden
        weight += lamp.strength
    rim = np.maximum(outline(ring, x, y, cv2.magnitude(x, y)), 0.0)
    return (1.0 - 0.8 * dark / np.float32(weight)) * (1.0 - 0.55 * np.exp(-rim / 0.06))


def _through(ring: Ring, view: View, key: Lamp, window: Window) -> Field:
    """Light on the belt inside the bore and the holes, 0 to 1: little, unless the lamp is high."""
    x, y = view.below(*view.plane(window), ring.thickness)
    reach = np.float32(ring.thickness / key.z)
    at_x, at_y = x + np.float32(key.x) * reach, y + np.float32(key.y) * reach
    return 0.16 + 0.6 * smoothstep(-bore(ring, at_x, at_y, cv2.magnitude(at_x, at_y)) / 0.12)


def _illumination(rng: np.random.Generator, key: Lamp, width: int, height: int) -> Field:
    """Uneven light, lens vignette and drifting shadows of the hall: factors, height x width."""
    rows, columns = height // 8, width // 8
    y = np.linspace(-1, 1, rows, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, columns, dtype=np.float32)[None, :]
    slant = rng.uniform(0.0, 0.28)
    slope = 1.0 + np.float32(slant * key.x) * x + np.float32(slant * key.y) * y
    light: Field = slope * (1.0 - np.float32(rng.uniform(0.02, 0.24)) * (x * x + y * y))
    light += 0.03 * clouds(rng, (rows, columns), max(rows, columns) / 3)
    return cv2.resize(np.maximum(light, 0.1), (width, height), interpolation=cv2.INTER_LINEAR)


def _dust(rng: np.random.Generator, picture: Field, unit: float) -> None:
    """Specks and a few short fibres, faint, on part and belt alike: dirt is not a defect."""
    height, width = picture.shape[1:]
    mask = np.zeros((height, width), dtype=np.uint8)
    for _ in range(int(rng.integers(0, 26))):
        u, v = rng.uniform((0, 0), (width, height)).astype(int).tolist()
        cv2.circle(
            mask,
            (u, v),
            max(1, round(rng.uniform(0.5, 1.7) * unit)),
            int(rng.integers(60, 200)),
            -1,
            cv2.LINE_AA,
        )
    for _ in range(int(rng.integers(0, 4))):
        start, bend = rng.uniform((0, 0), (width, height)), rng.uniform(0, 2 * np.pi)
        turn = bend + np.linspace(0, rng.normal(0.0, 2.0), 8)
        step = rng.uniform(1.0, 3.4) * unit
        fibre = start + np.cumsum(np.stack([np.cos(turn), np.sin(turn)], axis=1) * step, axis=0)
        cv2.polylines(
            mask,
            [np.round(fibre * 16).astype(np.int32)],
            False,
            int(rng.integers(40, 130)),
            max(1, round(unit)),
            cv2.LINE_AA,
            4,
        )
    points = cv2.findNonZero(mask)
    if points is None:
        return
    # OpenCV 4 answers N x 1 x 2, OpenCV 5 N x 2.
    columns, rows = np.asarray(points).reshape(-1, 2).T
    share = mask[rows, columns].astype(np.float32) * np.float32(0.45 / 255.0)
    under = picture[:, rows, columns]
    picture[:, rows, columns] = under + share * (np.float32(rng.choice((0.05, 0.5, 0.8))) - under)


def _film(rng: np.random.Generator, metal: Field) -> None:
    """Oil and handling leave a thin film on the metal: soft patches, a little duller."""
    height, width = metal.shape[1:]
    size = (height // 4, width // 4)
    patches = smoothstep(clouds(rng, size, rng.uniform(0.15, 0.5) * size[1]) - 0.3)
    film = 1.0 - np.float32(rng.uniform(0.0, 0.22)) * patches
    metal *= cv2.resize(film, (width, height), interpolation=cv2.INTER_LINEAR)


def _expose(rng: np.random.Generator, picture: Field, metal_level: float) -> Picture:
    """Exposure and white balance, glow of the highlights, then the tone curve.

    `picture` is 3 x height x width, linear, and is used up. Returns height x width x 3; the curve
    is a square root, near the sRGB curve and far cheaper, under a shoulder that clips late.
    """
    gain = rng.uniform(0.15, 0.33) / max(metal_level, 0.05)
    balance = gain * np.array([1 + rng.normal(0, 0.03), 1.0, 1 + rng.normal(0, 0.03)])
    height, width = picture.shape[1:]
    planes = []
    for plane, factor in zip(picture, balance, strict=True):
        plane *= np.float32(factor)
        small = cv2.resize(plane, (width // 8, height // 8), interpolation=cv2.INTER_AREA)
        glow = cv2.GaussianBlur(0.25 * np.maximum(small - 0.6, 0.0), (0, 0), 2.5)
        plane += cv2.resize(glow, (width, height), interpolation=cv2.INTER_LINEAR)
        # 255 * sqrt(1.8 x / (x + 0.8)): white at 1, and 255 is all that eight bits hold.
        under = plane + np.float32(0.8)
        plane *= np.float32(1.8 * 255 * 255)
        plane /= under
        planes.append(cv2.convertScaleAbs(np.sqrt(plane, out=plane)))
    return np.asarray(cv2.merge(planes), dtype=np.uint8)


def _sense(rng: np.random.Generator, exposed: Picture, unit: float, along_x: bool) -> Picture:
    """Motion and defocus blur, then sensor noise."""
    smear = round(float(rng.choice((0.0, rng.uniform(0.0, 4.0)))) * unit)
    picture: NDArray[Any] = exposed
    if smear > 1:
        picture = cv2.blur(picture, (smear, 1) if along_x else (1, smear))
    defocus = rng.uniform(0.0, 1.1) * unit
    if defocus > 0.3:
        picture = cv2.GaussianBlur(picture, (0, 0), defocus)
    # Shot noise grows with the root of the light, so after a square-root curve it is constant.
    level = np.float32(rng.uniform(1.0, 4.0))
    height, width = picture.shape[:2]
    grey = np.float32(0.8) * level * grain(rng, (height, width))
    noise = np.float32(0.5) * level * grain(rng, (height, width * 3)).reshape(height, width, 3)
    both = cv2.add(noise, cv2.merge([grey] * 3))
    return np.asarray(cv2.add(picture, both, dtype=cv2.CV_8U), dtype=np.uint8)


def render(kind: str, rng: np.random.Generator, width: int = 640, height: int = 480) -> Picture:
    """Draw one part on a belt.

    `kind` is one of CLASSES; `width` and `height` are pixels, at least 64 each.
    Returns height x width x 3 uint8, RGB, the same for the same state of `rng`.
    Raises ValueError for an unknown kind or a smaller picture.
    """
    if kind not in CLASSES:
        raise ValueError(f"unknown kind {kind!r}; known are {', '.join(CLASSES)}")
    if min(width, height) < SMALLEST:
        raise ValueError(f"a picture is at least {SMALLEST} pixels each way, not {width}x{height}")
    unit = min(width / 640, height / 480)
    ring, view, lights = make(kind, rng), aim(rng, width, height), lamps(rng)
    along_x = bool(rng.random() < 0.7)
    surface, colour = belt(rng, width, height, unit, along_x)
    light = _illumination(rng, lights[0], width, height)
    shadow = _shadow(ring, view, lights, width, height)
    surface *= light
    surface *= cv2.resize(shadow, (width, height), interpolation=cv2.INTER_LINEAR)
    window = view.window(1.1, width, height)
    rows = slice(window.top, window.top + window.height)
    columns = slice(window.left, window.left + window.width)
    shape = relief(ring, view, window, rng)
    inside = shape.hole < 0.0
    surface[rows, columns][inside] *= _through(ring, view, lights[0], window)[inside] / 0.2
    picture = np.stack([surface * np.float32(c) for c in colour])
    tint = np.array(_METALS[int(rng.integers(len(_METALS)))]) * rng.uniform(0.94, 1.06, 3)
    metal = shade(shape, lights, view.scale, rng) * tint.astype(np.float32)[:, None, None]
    metal *= light[rows, columns]
    _film(rng, metal)
    picture[:, rows, columns] += shape.solid * (metal - picture[:, rows, columns])
    level = float(cv2.mean(metal[1], (shape.top > 0.5).astype(np.uint8))[0])
    _dust(rng, picture, unit)
    return _sense(rng, _expose(rng, picture, level), unit, along_x)
