"""The geometry of the part: outline, bore, bolt holes, and what is wrong with it.

Lengths are in outer radii of the right part and the origin is its axis. The top face lies at
z = 0, the belt at z = -thickness. Distances are signed, negative inside.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from line_camera.noise import Field

Points = NDArray[np.float64]

BOLT_CIRCLE = 0.76
HOLES = 6


@dataclass(frozen=True)
class Chip:
    """Material broken off the rim: an ellipse, its longer axis along the rim."""

    x: float
    y: float
    along: float
    into: float
    ragged: float


@dataclass(frozen=True)
class Dent:
    """An impact: an elliptical bowl. `slope` is its steepest wall, as a tangent."""

    x: float
    y: float
    radius: float
    stretch: float
    angle: float
    slope: float


@dataclass(frozen=True)
class Ring:
    """One part. `sides` is 0 for a round outline, 2 for two flats, else a regular polygon.

    `bore_sides` is 0 for a round bore, 1 for one with a keyway, else a regular polygon.
    """

    turn: float
    sides: int = 0
    apothem: float = 1.0
    bore: float = 0.28
    bore_sides: int = 0
    hub: float = 0.50
    thickness: float = 0.26
    hole_radius: float = 0.088
    hole_angles: tuple[float, ...] = ()
    punched: tuple[float, ...] = ()
    chips: tuple[Chip, ...] = ()
    dents: tuple[Dent, ...] = ()
    scratches: tuple[tuple[Points, float], ...] = ()

    def hole_centres(self) -> list[tuple[float, float]]:
        """x and y of every bolt hole."""
        return [
            (BOLT_CIRCLE * float(np.cos(a)), BOLT_CIRCLE * float(np.sin(a)))
            for a in self.hole_angles
        ]


def _polygon(x: Field, y: Field, sides: int, apothem: float, turn: float) -> Field:
    """Signed distance (a lower bound of it near corners) to a regular polygon or a strip."""
    angles = turn + 2 * np.pi * np.arange(sides) / sides
    distance = np.full_like(x, -np.inf)
    for angle in angles:
        np.maximum(
            distance, x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle)), out=distance
        )
    return distance - np.float32(apothem)


def outline(ring: Ring, x: Field, y: Field, radius: Field) -> Field:
    """Signed distance to the outline without its chips; `radius` is hypot(x, y). Same shape."""
    distance = radius - np.float32(1.0)
    if ring.sides:
        np.maximum(distance, _polygon(x, y, ring.sides, ring.apothem, ring.turn), out=distance)
    return distance


def bore(ring: Ring, x: Field, y: Field, radius: Field) -> Field:
    """Signed distance to the centre bore; `radius` is hypot(x, y). Same shape."""
    if ring.bore_sides > 1:
        return _polygon(x, y, ring.bore_sides, ring.bore, ring.turn + 0.4)
    distance = radius - np.float32(ring.bore)
    if ring.bore_sides == 1:
        cos, sin = np.float32(np.cos(ring.turn)), np.float32(np.sin(ring.turn))
        along, across = x * cos + y * sin, y * cos - x * sin
        slot = np.maximum(np.abs(across) - np.float32(0.09), np.abs(along - 0.2) - 0.24)
        distance = np.minimum(distance, slot)
    return distance


def on_metal(ring: Ring, points: Points, margin: float) -> NDArray[np.bool_]:
    """Return which of the N x 2 points lie on the top face, at least `margin` from every edge."""
    x, y = (points[:, i].astype(np.float32) for i in (0, 1))
    radius = np.hypot(x, y)
    inside = (outline(ring, x, y, radius) < -margin) & (bore(ring, x, y, radius) > margin)
    for hole_x, hole_y in ring.hole_centres():
        inside &= np.hypot(x - hole_x, y - hole_y) > ring.hole_radius + margin
    return inside


def _wrong(ring: Ring, rng: np.random.Generator) -> Ring:
    """Another part of the same factory: one thing about it, at least, is plainly different."""
    variant = rng.integers(6)
    if variant == 0:
        # Holes towards the corners: on the flats there is no room for them.
        return replace(
            ring,
            sides=6,
            apothem=float(rng.uniform(0.86, 0.89)),
            hole_angles=even(ring.turn + np.pi / 6, 6),
        )
    if variant == 1:
        return replace(
            ring,
            sides=4,
            apothem=float(rng.uniform(0.78, 0.82)),
            hole_angles=even(ring.turn + np.pi / 4, 4),
        )
    if variant == 2:
        wide = rng.random() < 0.5
        return replace(ring, bore=0.44 if wide else 0.12, hub=0.58 if wide else 0.34)
    if variant == 3:
        sides = int(rng.choice((1, 4, 6)))
        return replace(ring, bore_sides=sides, bore=0.30 if sides == 1 else 0.27)
    if variant == 4:
        return replace(
            ring,
            sides=2,
            apothem=float(rng.uniform(0.70, 0.76)),
            hole_angles=even(ring.turn + np.pi / 4, 4),
        )
    count = int(rng.choice((3, 4, 8, 10)))
    return replace(ring, hole_angles=even(ring.turn, count))


def even(turn: float, count: int) -> tuple[float, ...]:
    """`count` angles (rad) evenly round the circle, the first at `turn`."""
    return tuple(float(turn + 2 * np.pi * i / count) for i in range(count))


def _chips(rng: np.random.Generator) -> tuple[Chip, ...]:
    """One chip, sometimes two; never shallower than a tenth of the radius."""
    chips = []
    for _ in range(int(rng.choice((1, 1, 1, 2)))):
        angle, into = rng.uniform(0, 2 * np.pi), rng.uniform(0.11, 0.20)
        at = 1.0 + rng.uniform(-0.01, 0.02)
        along = into * rng.uniform(1.1, 1.9)
        chips.append(
            Chip(
                float(at * np.cos(angle)),
                float(at * np.sin(angle)),
                float(along),
                float(into),
                float(rng.uniform(0.010, 0.026)),
            )
        )
    return tuple(chips)


def _dents(ring: Ring, rng: np.random.Generator) -> tuple[Dent, ...]:
    """One to three dents in the flange, between the holes rather than on them."""
    dents = []
    for _ in range(int(rng.choice((1, 1, 2, 3)))):
        hole = rng.integers(HOLES)
        angle = ring.turn + (hole + 0.5 + rng.uniform(-0.16, 0.16)) * 2 * np.pi / HOLES
        at = rng.uniform(0.66, 0.84)
        dents.append(
            Dent(
                float(at * np.cos(angle)),
                float(at * np.sin(angle)),
                float(rng.uniform(0.10, 0.17)),
                float(rng.uniform(1.0, 1.5)),
                float(rng.uniform(0, np.pi)),
                float(rng.uniform(0.6, 1.1)),
            )
        )
    return tuple(dents)


def _scratch(ring: Ring, rng: np.random.Generator) -> Points:
    """A path, at least half a radius of it on metal and none of it along the turning marks."""
    path = np.zeros((0, 2))
    for _ in range(40):
        angle, at = rng.uniform(0, 2 * np.pi), rng.uniform(0.55, 0.95)
        lean = rng.uniform(0.5, np.pi - 0.5) + angle + np.pi / 2
        length, bend = rng.uniform(0.55, 1.35), rng.normal(0.0, 0.35)
        steps = np.linspace(0.0, 1.0, 48)
        heading = lean + bend * steps + 0.05 * np.sin(steps * rng.uniform(4, 14))
        moves = np.stack([np.cos(heading), np.sin(heading)], axis=1) * (length / 47)
        path = np.array([at * np.cos(angle), at * np.sin(angle)]) + np.cumsum(moves, axis=0)
        if on_metal(ring, path, 0.03).mean() * length > 0.5:
            break
    return path


def make(kind: str, rng: np.random.Generator) -> Ring:
    """A part of the given class, freshly turned.

    `kind` is one of `parts.CLASSES`; any other is a part without a fault.
    """
    turn = float(rng.uniform(0, 2 * np.pi))
    ring = Ring(turn=turn, hole_angles=even(turn, HOLES))
    if kind == "wrong_part":
        return _wrong(ring, rng)
    if kind == "chipped":
        return replace(ring, chips=_chips(rng))
    if kind == "dented":
        return replace(ring, dents=_dents(ring, rng))
    if kind == "scratched":
        count = int(rng.choice((1, 1, 2, 3)))
        return replace(
            ring,
            scratches=tuple(
                (_scratch(ring, rng), float(rng.uniform(0.021, 0.036))) for _ in range(count)
            ),
        )
    if kind == "missing_hole":
        missing = ring.hole_angles[int(rng.integers(HOLES))]
        angles = tuple(a for a in ring.hole_angles if a != missing)
        # Now and then the centre drill has been there and the drill has not.
        return replace(ring, hole_angles=angles, punched=(missing,) if rng.random() < 0.25 else ())
    return ring
