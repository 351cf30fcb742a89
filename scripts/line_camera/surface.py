"""Flat surfaces under a camera: four textures, and what may be wrong with them.

Good ones are to learn from; those with a scratch, a dent, a stain or a foreign body, to judge by.
"""

import cv2
import numpy as np

from line_camera.noise import Field, clouds, grain, smoothstep
from line_camera.parts import Picture

KINDS = ("good", "scratch", "dent", "stain", "foreign_body")
SIDE = 320


def _brushed(rng: np.random.Generator) -> Field:
    """Brushed metal: fine lines along one direction, and a soft sheen across them."""
    lines = cv2.resize(grain(rng, (SIDE, 6)), (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    fine = cv2.resize(grain(rng, (SIDE, 40)), (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    grey = 0.55 * (1 + 0.07 * lines + 0.06 * fine + 0.01 * grain(rng, (SIDE, SIDE)))
    return grey[..., None] * np.array((0.98, 1.0, 1.03), np.float32)


def _cast(rng: np.random.Generator) -> Field:
    """Cast iron: dark and grainy at two scales."""
    shape = (SIDE, SIDE)
    grey = 0.30 * (1 + 0.14 * clouds(rng, shape, 5) + 0.10 * clouds(rng, shape, 2.5))
    return (grey + 0.012 * grain(rng, shape))[..., None] * np.array((1.0, 0.98, 0.95), np.float32)


def _painted(rng: np.random.Generator) -> Field:
    """Blue paint, whose surface ripples a little."""
    shape = (SIDE, SIDE)
    ripple = 1 + 0.035 * clouds(rng, shape, 9) + 0.02 * clouds(rng, shape, 4)
    ripple += 0.008 * grain(rng, shape)
    return ripple[..., None] * np.array((0.16, 0.32, 0.52), np.float32)


def _fabric(rng: np.random.Generator) -> Field:
    """A plain weave of light threads."""
    turn = 2 * np.pi / 10
    across = np.arange(SIDE, dtype=np.float32) + float(rng.uniform(0, 20))
    uneven = 0.8 * clouds(rng, (SIDE, SIDE), 40)
    warp = np.sin((across[None, :] + uneven) * turn)
    weft = np.sin((across[:, None] + uneven) * turn)
    over = np.sign(np.sin(across[None, :] * turn / 2) * np.sin(across[:, None] * turn / 2))
    weave = np.where(over > 0, warp, weft) * 0.13 + 0.04 * grain(rng, (SIDE, SIDE))
    return (0.58 * (1 + weave))[..., None] * np.array((1.0, 0.94, 0.84), np.float32)


TEXTURES = (_brushed, _cast, _painted, _fabric)


def _scratch(rng: np.random.Generator, picture: Field) -> Field:
    """Draw a bent line, bright or dark, of uneven depth."""
    turn, length = rng.uniform(0.25, np.pi - 0.25), rng.uniform(70, 190)
    steps = np.linspace(0, 1, 40)
    heading = turn + rng.normal(0, 0.4) * steps
    path = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], 1) * length / 40, axis=0)
    path += rng.uniform(0.3, 0.7, 2) * SIDE - path.mean(axis=0)
    drawn = np.zeros((SIDE, SIDE), np.uint8)
    thick = int(rng.integers(2, 5))
    cv2.polylines(drawn, [np.rint(path * 8).astype(np.int32)], False, 255, thick, cv2.LINE_AA, 3)
    depth = (
        float(rng.choice((-0.55, 0.5, 0.7)))
        * (drawn / np.float32(255))
        * (1 + 0.25 * clouds(rng, (SIDE, SIDE), 12))
    )
    picture *= (1 + depth)[..., None]
    return drawn > 60


def _spot(rng: np.random.Generator, least: float, most: float, ragged: float) -> Field:
    """Distance from a place over the radius of an uneven, long spot: below 1 inside."""
    centre, radius = rng.uniform(0.2, 0.8, 2) * SIDE, rng.uniform(least, most)
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    turn, stretch = rng.uniform(0, np.pi), rng.uniform(1, 1.6)
    along = (x - centre[0]) * np.cos(turn) + (y - centre[1]) * np.sin(turn)
    beside = (y - centre[1]) * np.cos(turn) - (x - centre[0]) * np.sin(turn)
    distance = np.hypot(along / stretch, beside * stretch) / radius
    return np.asarray(distance + ragged * clouds(rng, (SIDE, SIDE), radius / 2), np.float32)


def _dent(rng: np.random.Generator, picture: Field) -> Field:
    """Press a bowl: its wall towards the lamp is dark, the other one bright."""
    distance = _spot(rng, 16, 32, 0.06)
    bowl = smoothstep(1.2 - distance)
    dy, dx = np.gradient(bowl)
    turn = rng.uniform(0, 2 * np.pi)
    shade = (dx * np.cos(turn) + dy * np.sin(turn)) * 30 * rng.uniform(0.35, 0.6)
    picture *= np.clip(1 + shade, 0.3, 1.9)[..., None]
    return distance < 1.2


def _stain(rng: np.random.Generator, picture: Field) -> Field:
    """Spread oil or rust, darker at its edge."""
    distance = _spot(rng, 18, 42, 0.16)
    cover = smoothstep((1.05 - distance) * 6) * (0.55 + 0.3 * smoothstep(distance))
    tint = np.array(((0.45, 0.40, 0.32), (0.75, 0.42, 0.22))[int(rng.integers(2))], np.float32)
    picture *= 1 - cover[..., None] * (1 - tint)
    return distance < 1.0


def _foreign_body(rng: np.random.Generator, picture: Field) -> Field:
    """Lay a chip, a crumb or a drop on it, with its shadow."""
    distance = _spot(rng, 7, 17, 0.22)
    body = smoothstep((1.0 - distance) * 5)
    shadow = np.roll(body, tuple(rng.integers(3, 7, 2)), (0, 1))
    picture *= 1 - 0.5 * shadow[..., None]
    color = np.asarray(rng.uniform(0.03, 0.9) * rng.uniform(0.7, 1.0, 3), np.float32)
    lit = 0.85 + 0.3 * smoothstep(1 - distance) + 0.05 * clouds(rng, (SIDE, SIDE), 4)
    picture += body[..., None] * (color * lit[..., None] - picture)
    return np.maximum(body, shadow) > 0.3


DEFECTS = {"scratch": _scratch, "dent": _dent, "stain": _stain, "foreign_body": _foreign_body}


def render_surface(kind: str, rng: np.random.Generator) -> tuple[Picture, Field]:
    """Return a picture of one of `KINDS`, RGB uint8 [SIDE, SIDE, 3], of any texture; and a mask of
    what is wrong with it, bool [SIDE, SIDE]."""
    picture = TEXTURES[int(rng.integers(len(TEXTURES)))](rng).astype(np.float32)
    mask = np.zeros((SIDE, SIDE), bool)
    if kind != "good":
        mask = DEFECTS[kind](rng, picture)
    at = np.linspace(-1, 1, SIDE, dtype=np.float32)
    slope = rng.normal(0, 0.05, 2)
    light = 1 + slope[0] * at[None, :] + slope[1] * at[:, None]
    light -= 0.05 * (at[None, :] ** 2 + at[:, None] ** 2)
    picture *= (light * rng.uniform(0.92, 1.08))[..., None]
    picture += 0.006 * grain(rng, (SIDE, SIDE * 3)).reshape(SIDE, SIDE, 3)
    # sRGB's curve, nearly.
    levels = np.clip(picture, 0, 1) ** (1 / 2.2) * 255
    return np.rint(levels).astype(np.uint8), mask
