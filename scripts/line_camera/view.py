"""The places of the camera and the lamps, and the point of the part that each pixel sees."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from line_camera.noise import Field


@dataclass(frozen=True)
class Window:
    """A rectangle of pixels: `left`, `top`, `width`, `height`, taken every `step` pixels."""

    left: int
    top: int
    width: int
    height: int
    step: int = 1


@dataclass(frozen=True)
class View:
    """A pinhole camera over the plane of the part's top face.

    `to_plane` is the 3x3 homography from pixel (u, v, 1) to the plane, `to_pixel` its inverse.
    `camera` is the pinhole (x, y, z) in part radii, `scale` the pixels per radius at the axis.
    """

    to_plane: NDArray[np.float64]
    to_pixel: NDArray[np.float64]
    camera: tuple[float, float, float]
    scale: float

    def plane(self, window: Window) -> tuple[Field, Field]:
        """x and y on the plane of the top face for each pixel of the window, float32."""
        u = np.arange(window.left, window.left + window.width, window.step, dtype=np.float32)
        v = np.arange(window.top, window.top + window.height, window.step, dtype=np.float32)
        x, y, w = (
            (row[0] * u + row[2])[None, :] + (row[1] * v)[:, None]
            for row in self.to_plane.astype(np.float32)
        )
        return x / w, y / w

    def below(self, x: Field, y: Field, depth: float) -> tuple[Field, Field]:
        """Return where the sight lines through (x, y) on the top face meet the plane z = -depth."""
        reach = np.float32(depth / self.camera[2])
        grow = np.float32(1.0) + reach
        return (
            x * grow - np.float32(self.camera[0]) * reach,
            y * grow - np.float32(self.camera[1]) * reach,
        )

    def pixels(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """The pixels (u, v) that see the N x 2 points of the top face, N x 2."""
        pixels = np.column_stack([points, np.ones(len(points))]) @ self.to_pixel.T
        projected: NDArray[np.float64] = pixels[:, :2] / pixels[:, 2:]
        return projected

    def window(self, reach: float, width: int, height: int) -> Window:
        """The pixels of a width x height picture within `reach` radii of the axis."""
        corners = np.array([(sx * reach, sy * reach) for sx in (-1, 1) for sy in (-1, 1)])
        pixels = self.pixels(corners)
        left, top = np.maximum(np.floor(pixels.min(axis=0)), 0).astype(int)
        right, bottom = np.minimum(np.ceil(pixels.max(axis=0)), (width, height)).astype(int)
        return Window(int(left), int(top), int(right - left), int(bottom - top))


def aim(rng: np.random.Generator, width: int, height: int) -> View:
    """A camera a few degrees off the vertical, the whole part inside its picture."""
    scale = rng.uniform(0.31, 0.415) * min(width * 0.75, height)
    room = np.array([width, height]) / 2 - 1.09 * scale
    centre = np.array([width, height]) / 2 + np.clip(rng.normal(0.0, 0.4, 2), -1, 1) * np.maximum(
        room, 0
    )
    distance = rng.uniform(4.0, 8.0)
    focal = scale * distance
    (ax, ay) = np.radians(rng.normal(0.0, 3.0, 2).clip(-7, 7))
    tilt_x = np.array([[1, 0, 0], [0, np.cos(ax), -np.sin(ax)], [0, np.sin(ax), np.cos(ax)]])
    tilt_y = np.array([[np.cos(ay), 0, np.sin(ay)], [0, 1, 0], [-np.sin(ay), 0, np.cos(ay)]])
    lens = np.array([[1, 0, -width / 2], [0, 1, -height / 2], [0, 0, -focal]]) / focal
    rays = tilt_x @ tilt_y @ lens
    axis = rays @ np.array([centre[0], centre[1], 1.0])
    camera = np.array([-axis[0] / -axis[2] * distance, -axis[1] / -axis[2] * distance, distance])
    # A ray d from the pinhole c meets z = 0 at c - d * c_z / d_z; times d_z this is linear.
    to_plane = np.array(
        [
            camera[0] * rays[2] - camera[2] * rays[0],
            camera[1] * rays[2] - camera[2] * rays[1],
            rays[2],
        ]
    )
    return View(
        to_plane,
        np.linalg.inv(to_plane),
        (float(camera[0]), float(camera[1]), float(distance)),
        float(scale),
    )


@dataclass(frozen=True)
class Lamp:
    """A lamp: the x and y of the unit vector towards it, its strength, colour and nearness.

    `slope` is the x and y surface slope that mirrors it into a camera straight above.
    """

    x: float
    y: float
    strength: float
    colour: tuple[float, float, float]
    near: float

    @property
    def z(self) -> float:
        """The z of the unit vector towards the lamp."""
        return float(np.sqrt(max(1.0 - self.x**2 - self.y**2, 0.0)))

    @property
    def slope(self) -> tuple[float, float]:
        """Half-vector h = l + (0, 0, 1); a surface z = g.x mirrors when g = -h_xy / h_z."""
        return -self.x / (self.z + 1.0), -self.y / (self.z + 1.0)


def _lamp(rng: np.random.Generator, angle: float, off: float, strength: float) -> Lamp:
    warm = rng.normal(0.0, 0.06)
    across = np.sin(off)
    return Lamp(
        float(across * np.cos(angle)),
        float(across * np.sin(angle)),
        strength,
        (float(1 + warm), 1.0, float(1 - warm)),
        float(rng.uniform(0.05, 0.30)),
    )


def lamps(rng: np.random.Generator) -> tuple[Lamp, ...]:
    """A key lamp from any side, 25 to 58 degrees off the vertical, and one or two weaker ones."""
    angle = rng.uniform(0, 2 * np.pi)
    key = _lamp(rng, angle, np.radians(rng.uniform(25, 58)), 1.0)
    others = [
        _lamp(
            rng,
            angle + np.pi + rng.normal(0.0, 0.9),
            np.radians(rng.uniform(20, 62)),
            float(rng.uniform(0.15, 0.8)),
        )
        for _ in range(int(rng.integers(1, 3)))
    ]
    return (key, *others)
