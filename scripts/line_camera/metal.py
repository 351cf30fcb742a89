"""The look of the turned metal: relief, anisotropic highlights, walls of holes, broken edges."""

from dataclasses import dataclass

import cv2
import numpy as np

from line_camera.noise import Field, clouds, grain, smoothstep
from line_camera.ring import BOLT_CIRCLE, Chip, Dent, Ring, bore, outline
from line_camera.view import Lamp, View, Window

CHAMFER = 0.045
HOLE_CHAMFER = 0.028


@dataclass(frozen=True)
class Relief:
    """Fields over one window, float32: plane coordinates, signed distances, slopes, coverage.

    `edge` is the distance to the metal's outline, its holes included, `hole` to the nearest hole;
    `top` is the share of each pixel on the top face, `solid` on any metal, walls included;
    `broken` marks fresh fracture, `scratch` scratches, 0 to 1.
    """

    x: Field
    y: Field
    radius: Field
    edge: Field
    hole: Field
    slope_x: Field
    slope_y: Field
    top: Field
    solid: Field
    broken: Field
    scratch: Field


def _chip_distance(chip: Chip, x: Field, y: Field, ragged: Field) -> Field:
    """Approximate signed distance to the bite of a chip."""
    norm = np.hypot(chip.x, chip.y)
    ux, uy = chip.x / norm, chip.y / norm
    into = (x * np.float32(ux) + y * np.float32(uy) - np.float32(norm)) / np.float32(chip.into)
    along = (y * np.float32(ux) - x * np.float32(uy)) / np.float32(chip.along)
    return (np.hypot(into, along) - 1.0) * np.float32(chip.into) + ragged * chip.ragged


def _holes(ring: Ring, view: View, window: Window, x: Field, y: Field, radius: Field) -> Field:
    """Signed distance to the nearest hole, exact within a quarter radius of one."""
    distance = bore(ring, x, y, radius)
    if not ring.hole_angles:
        return distance
    reach = int((ring.hole_radius + 0.25) * view.scale) + 2
    for (u, v), (hole_x, hole_y) in zip(
        view.pixels(np.array(ring.hole_centres())), ring.hole_centres(), strict=True
    ):
        rows = slice(max(int(v) - window.top - reach, 0), max(int(v) - window.top + reach, 0))
        cols = slice(max(int(u) - window.left - reach, 0), max(int(u) - window.left + reach, 0))
        near = np.hypot(x[rows, cols] - np.float32(hole_x), y[rows, cols] - np.float32(hole_y))
        np.minimum(
            distance[rows, cols], near - np.float32(ring.hole_radius), out=distance[rows, cols]
        )
    return distance


def _bowl(height: Field, dent: Dent, x: Field, y: Field, uneven: Field) -> None:
    """Press a dent: a bowl (1 - q^2)^2, whose steepest slope is 1.54, raised on one side.

    `uneven` is noise of standard deviation 1 that keeps the bowl from being a perfect one.
    """
    cos, sin = np.float32(np.cos(dent.angle)), np.float32(np.sin(dent.angle))
    along = ((x - dent.x) * cos + (y - dent.y) * sin) / np.float32(dent.radius * dent.stretch)
    across = ((y - dent.y) * cos - (x - dent.x) * sin) / np.float32(dent.radius)
    square = np.maximum(along * along + across * across + np.float32(0.08) * uneven, 0.0)
    depth = np.float32(dent.slope * dent.radius / 1.54)
    bowl = np.square(np.maximum(1.0 - square, 0.0))
    lip = np.exp(-np.square((square - 1.2) * 2.5)) * np.maximum(along + np.float32(0.3), 0.0)
    height -= depth * (bowl - np.float32(0.13) * lip)


def _scratch_mask(ring: Ring, view: View, window: Window) -> Field:
    """Scratches drawn at twice the size, 0 to 1; pressure, and so width, fades at both ends."""
    canvas = np.zeros((window.height * 2, window.width * 2), dtype=np.uint8)
    for path, width in ring.scratches:
        points = (view.pixels(path) - (window.left, window.top) + 0.25) * 2 * 16
        points = np.round(points).astype(np.int32)
        thick = max(2, round(width * view.scale * 2))
        cv2.polylines(canvas, [points], False, 235, max(1, round(thick * 0.6)), cv2.LINE_AA, 4)
        cv2.polylines(canvas, [points[5:-5]], False, 255, thick, cv2.LINE_AA, 4)
    small = cv2.resize(canvas, (window.width, window.height), interpolation=cv2.INTER_AREA)
    return small.astype(np.float32) / np.float32(255.0)


def _height(
    ring: Ring,
    view: View,
    rng: np.random.Generator,
    at: tuple[Field, Field, Field],
    edges: tuple[Field, Field],
    scratch: Field,
) -> Field:
    """Height of the metal above its top face, in radii.

    `at` is x, y and their hypot; `edges` the signed distances to the rim and to the holes.
    """
    (x, y, radius), (rim, hole) = at, edges
    height = -np.maximum(rim + np.float32(CHAMFER), 0.0)
    height -= np.maximum(np.float32(HOLE_CHAMFER) - hole, 0.0)
    height += np.float32(0.035) * smoothstep((ring.hub - radius) / np.float32(0.04))
    height -= np.float32(0.012) * np.exp(-np.square((radius - ring.hub - 0.05) / 0.012))
    if ring.dents:
        uneven = clouds(rng, x.shape, 0.11 * view.scale)
        for dent in ring.dents:
            _bowl(height, dent, x, y, uneven)
    for angle in ring.punched:
        dx, dy = BOLT_CIRCLE * np.cos(angle), BOLT_CIRCLE * np.sin(angle)
        away = np.hypot(x - np.float32(dx), y - np.float32(dy))
        height -= np.maximum(np.float32(0.022) - away, 0.0)
    if ring.scratches:
        height -= np.float32(0.012) * cv2.GaussianBlur(scratch, (0, 0), 0.8)
    return height


def _marks(rng: np.random.Generator, view: View, angle: Field, radius: Field) -> Field:
    """Slope of the turning marks: rings of noise that drift slowly round the part."""
    columns = max(16, int(1.15 * view.scale))
    fixed = grain(rng, (1, columns)) + 0.6 * clouds(rng, (1, columns), 6.0)
    drift = grain(rng, (11, columns))
    drift = cv2.resize(np.vstack([drift, drift[:1]]), (columns, 96))
    pitch = rng.uniform(3.5, 9.0)
    feed = np.sin(np.arange(columns, dtype=np.float32) * np.float32(2 * np.pi / pitch))
    rings = fixed * 0.75 + drift * 0.6 + feed[None, :] * rng.uniform(0.0, 0.9)
    rings = cv2.GaussianBlur(rings.astype(np.float32), (0, 0), sigmaX=0.7, sigmaY=0.01)
    return rng.uniform(0.05, 0.14) * cv2.remap(
        rings,
        radius * np.float32(view.scale),
        angle * np.float32(95 / (2 * np.pi)),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )


def relief(ring: Ring, view: View, window: Window, rng: np.random.Generator) -> Relief:
    """Measure the part through every pixel of the window."""
    x, y = view.plane(window)
    radius, angle = cv2.cartToPolar(x, y)
    low_x, low_y = view.below(x, y, ring.thickness)
    low_radius = cv2.magnitude(low_x, low_y)
    rim, low_rim = outline(ring, x, y, radius), outline(ring, low_x, low_y, low_radius)
    broken = np.zeros_like(x)
    if ring.chips:
        ragged = clouds(rng, x.shape, 0.09 * view.scale) + 0.2 * clouds(rng, x.shape, 5.0)
        for chip in ring.chips:
            bite = _chip_distance(chip, x, y, ragged)
            # The break runs outwards on its way down, so a ledge of fracture shows.
            low_bite = _chip_distance(chip, low_x, low_y, ragged) + rng.uniform(0.03, 0.07)
            rim, low_rim = np.maximum(rim, -bite), np.maximum(low_rim, -low_bite)
            broken = np.maximum(broken, smoothstep(0.5 - bite * view.scale))
    hole = _holes(ring, view, window, x, y, radius)
    low_hole = _holes(ring, view, window, low_x, low_y, low_radius)
    scratch = _scratch_mask(ring, view, window)
    height = _height(ring, view, rng, (x, y, radius), (rim, hole), scratch)
    per = view.scale / 2
    slope_x = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=1, scale=per)
    slope_y = cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=1, scale=per)
    marks = _marks(rng, view, angle, radius) / np.maximum(radius, 0.05)
    slope_x, slope_y = slope_x + marks * x, slope_y + marks * y
    edge = np.maximum(rim, -hole)
    solid = np.maximum(np.minimum(rim, low_rim), -np.maximum(hole, low_hole))
    scale = np.float32(view.scale)
    top, whole = np.clip(0.5 - edge * scale, 0, 1), np.clip(0.5 - solid * scale, 0, 1)
    return Relief(x, y, radius, edge, hole, slope_x, slope_y, top, whole, broken, scratch * top)


def _highlight(shape: Relief, lamp: Lamp, tight: float, loose: float) -> Field:
    """Ward's anisotropic highlight, in slope space.

    Microfacets along the marks scatter by `tight`, across them by `loose` (slopes): the density
    exp(-(dt/tight)^2 - (dr/loose)^2) of the facet that would mirror the lamp. Ward, Measuring and
    Modeling Anisotropic Reflection, SIGGRAPH 1992.
    """
    want_x, want_y = lamp.slope
    near = np.float32(lamp.near)
    dx = shape.slope_x - np.float32(want_x) - near * shape.x
    dy = shape.slope_y - np.float32(want_y) - near * shape.y
    inverse = 1.0 / np.maximum(shape.radius, np.float32(0.05))
    across = (dx * shape.x + dy * shape.y) * inverse * np.float32(1 / loose)
    along = (dy * shape.x - dx * shape.y) * inverse * np.float32(1 / tight)
    return np.exp(-(across * across + along * along))


def _wall(shape: Relief, key: Lamp, scale: float, rng: np.random.Generator) -> Field:
    """Light on the walls of holes, on the rim's side and on fractures."""
    nx = cv2.Sobel(shape.edge, cv2.CV_32F, 1, 0, ksize=3, scale=scale / 8)
    ny = cv2.Sobel(shape.edge, cv2.CV_32F, 0, 1, ksize=3, scale=scale / 8)
    facing = nx * np.float32(key.x) + ny * np.float32(key.y)
    light = 0.07 + 0.5 * np.maximum(facing, 0.0)
    if shape.broken.any():
        rough = clouds(rng, shape.x.shape, 5.0) + 0.7 * grain(rng, shape.x.shape)
        light += shape.broken * (0.10 + 0.09 * rough)
    return np.maximum(light, 0.02)


def shade(shape: Relief, lamps: tuple[Lamp, ...], scale: float, rng: np.random.Generator) -> Field:
    """Light that the metal sends to the camera, for a perfect reflector in white.

    `scale` is the view's pixels per radius. Returns float32 3 x height x width (red, green,
    blue), linear, 0 to about 2.
    """
    tight, loose = rng.uniform(0.11, 0.26), rng.uniform(0.38, 0.65)
    # Slopes that face a lamp are lighter even outside its highlight: the dull part of the metal.
    planes = np.zeros((3, *shape.x.shape), dtype=np.float32)
    dull = np.zeros_like(shape.x)
    for lamp in lamps:
        gloss = np.float32(1.35 * lamp.strength) * _highlight(shape, lamp, tight, loose)
        facing = np.float32(lamp.z) - (
            shape.slope_x * np.float32(lamp.x) + shape.slope_y * np.float32(lamp.y)
        )
        dull += np.float32(lamp.strength) * np.maximum(facing, 0.0)
        for plane, colour in zip(planes, lamp.colour, strict=True):
            plane += gloss * np.float32(colour)
    steep = np.square(shape.slope_x) + np.square(shape.slope_y)
    ambient = rng.uniform(0.08, 0.18) / (1.0 + 1.5 * steep)
    base = ambient + rng.uniform(0.05, 0.14) * dull
    base *= 1.0 + 0.05 * grain(rng, shape.x.shape)
    planes += base
    if shape.scratch.any():
        _scrape(planes, shape.scratch)
    wall = _wall(shape, lamps[0], scale, rng)
    planes -= wall
    planes *= shape.top * (1.0 - shape.broken)
    planes += wall
    return planes


def _scrape(planes: Field, scratch: Field) -> None:
    """Bare torn metal scatters everywhere: bright where the face is dark, dark where it shines."""
    height, width = scratch.shape
    around = cv2.resize(planes[1], (width // 4, height // 4), interpolation=cv2.INTER_AREA)
    around = cv2.resize(cv2.GaussianBlur(around, (0, 0), 4.0), (width, height))
    dark = smoothstep((around - 0.6) * 14.0)
    torn = (1.0 - dark) * (0.55 + 1.5 * around) + dark * 0.16 * around
    planes += (scratch * np.float32(0.9)) * (torn - planes)
