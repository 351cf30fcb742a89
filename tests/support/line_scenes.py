"""Generated videos of fixed cameras over a line, with stretches of faults, for tests of image
health. All is drawn by calculation, the same for the same seed."""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from server_process import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
from line_camera.parts import render
from line_camera.surface import render_surface

Field = NDArray[Any]
WIDTH, HEIGHT = 320, 240
# Draws the scene of one moment, without noise; the number is the frame's.
Scene = Callable[[np.random.Generator, int], Field]


def _texture(rng: np.random.Generator, width: int, height: int) -> Field:
    surface, _ = render_surface("good", rng)
    return cv2.resize(surface, (width, height)).astype(np.float32)


def _fixture(rng: np.random.Generator) -> Field:
    """Draw a station: a plate with bolts and rails."""
    plate = _texture(rng, WIDTH, HEIGHT) * 0.5 + 40
    for _ in range(14):
        x, y = int(rng.integers(10, WIDTH - 10)), int(rng.integers(10, HEIGHT - 10))
        shade = float(rng.uniform(20, 220))
        if rng.random() < 0.5:
            cv2.circle(plate, (x, y), int(rng.integers(3, 9)), (shade,) * 3, -1, cv2.LINE_AA)
        else:
            size = rng.integers(5, 45, 2)
            cv2.rectangle(plate, (x, y), (x + int(size[0]), y + int(size[1])), (shade,) * 3, 2)
    return plate


def _paste(into: Field, part: Field, x: float, y: float, angle: float) -> None:
    """Put a round part, the middle of a picture of `render`, onto a scene."""
    size = part.shape[0]
    turn = cv2.getRotationMatrix2D((size / 2, size / 2), angle, 1.0)
    turn[:, 2] += (x - size / 2, y - size / 2)
    mask = np.zeros((size, size), np.float32)
    cv2.circle(mask, (size // 2, size // 2), size // 2 - 4, (1.0,), -1, cv2.LINE_AA)
    warped = cv2.warpAffine(part.astype(np.float32), turn, (WIDTH, HEIGHT))
    share = cv2.warpAffine(mask, turn, (WIDTH, HEIGHT))[..., None]
    into += share * (warped - into)


def _parts(rng: np.random.Generator, count: int, size: int) -> list[Field]:
    return [
        cv2.resize(render("good", rng, 320, 240)[:, 40:280], (size, size)) for _ in range(count)
    ]


def station(rng: np.random.Generator) -> Scene:
    """A part that lies in a fixture, each a little elsewhere; some places are empty."""
    plate, parts = _fixture(rng), _parts(rng, 2, 110)

    def draw(rng: np.random.Generator, number: int) -> Field:
        out = plate.copy()
        if number % 5:
            x, y = rng.normal((WIDTH / 2, HEIGHT / 2), 2)
            _paste(out, parts[number % len(parts)], x, y, rng.uniform(0, 360))
        return out

    return draw


def belt(rng: np.random.Generator) -> Scene:
    """Parts that pass on a moving belt between two rails."""
    long = _texture(rng, 2 * WIDTH, HEIGHT) * 0.6
    rails, parts = _fixture(rng), _parts(rng, 2, 100)

    def draw(rng: np.random.Generator, number: int) -> Field:
        offset = int(rng.integers(WIDTH))
        out = long[:, offset : offset + WIDTH].copy()
        if rng.random() < 0.8:
            part = parts[number % len(parts)]
            _paste(out, part, rng.uniform(0, WIDTH), rng.uniform(100, 140), rng.uniform(0, 360))
        out[:35], out[-35:] = rails[:35], rails[-35:]
        return out

    return draw


def web(rng: np.random.Generator) -> Scene:
    """An endless material: nothing in the picture stays."""
    surface = _texture(rng, 3 * WIDTH, 3 * HEIGHT)

    def draw(rng: np.random.Generator, number: int) -> Field:
        x, y = int(rng.integers(2 * WIDTH)), int(rng.integers(2 * HEIGHT))
        return surface[y : y + HEIGHT, x : x + WIDTH].copy()

    return draw


def still(rng: np.random.Generator) -> Scene:
    """A line that stands: only the sensor's noise changes."""
    picture = render("good", rng, WIDTH, HEIGHT).astype(np.float32)
    return lambda rng, number: picture


def dark_field(rng: np.random.Generator) -> Scene:
    """Edges that light up before a dark ground."""
    plate = np.zeros((HEIGHT, WIDTH, 3), np.float32) + 8
    for _ in range(12):
        x, y, size = (int(rng.integers(low, high)) for low, high in ((10, 300), (10, 220), (4, 30)))
        cv2.circle(plate, (x, y), size, (float(rng.uniform(90, 220)),) * 3, 2, cv2.LINE_AA)

    def draw(rng: np.random.Generator, number: int) -> Field:
        out = plate.copy()
        x, y = rng.uniform((100, 75), (220, 165)).astype(int).tolist()
        cv2.circle(out, (x, y), 45, (200.0,) * 3, 2, cv2.LINE_AA)
        return out

    return draw


def backlight(rng: np.random.Generator) -> Scene:
    """Dark outlines before a bright ground, between clamps."""
    plate = np.full((HEIGHT, WIDTH, 3), 228, np.float32)
    for x in (30, 270):
        cv2.rectangle(plate, (x, 30), (x + 20, 210), (25.0,) * 3, -1)

    def draw(rng: np.random.Generator, number: int) -> Field:
        out = plate.copy()
        x, y = rng.normal((WIDTH / 2, HEIGHT / 2), 6).astype(int).tolist()
        axes = int(rng.integers(30, 55)), int(rng.integers(20, 45))
        cv2.ellipse(out, (x, y), axes, rng.uniform(0, 180), 0, 360, (20.0,) * 3, -1, cv2.LINE_AA)
        return out

    return draw


SCENES = {each.__name__: each for each in (station, belt, web, still, dark_field, backlight)}
# Scenes in which nothing stays show no shift.
WITHOUT_REFERENCE = ("web",)


def _shifted(scene: Field, dx: float, dy: float) -> Field:
    move = np.array([[1, 0, dx], [0, 1, dy]], np.float64)
    return cv2.warpAffine(scene, move, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REFLECT).astype(
        np.float32
    )


def _sense(rng: np.random.Generator, scene: Field, noise: float) -> bytes:
    """Add flicker and the sensor's noise; return a JPEG file."""
    lit = scene * rng.normal(1.0, 0.015)
    seen = np.clip(lit + rng.normal(0, noise, scene.shape).astype(np.float32), 0, 255)
    _, data = cv2.imencode(".jpg", seen.astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 85])
    return data.tobytes()


def video(
    kind: str, seed: int, good: int, stretch: int, stretches: tuple[str, ...]
) -> Iterator[tuple[str, bytes]]:
    """Yield each frame of a video as (fault, JPEG file); the fault of a good one is ''.

    The video begins with `good` good frames; each of `stretches` has `stretch` frames of one fault,
    and as many good ones follow it. A frozen stretch repeats the good frame before it.
    """
    rng = np.random.default_rng([seed, sorted(SCENES).index(kind)])
    draw, noise = SCENES[kind](rng), rng.uniform(0.7, 2.0)
    number, last = 0, b""

    def scene() -> Field:
        nonlocal number
        number += 1
        return draw(rng, number)

    for _ in range(good):
        last = _sense(rng, scene(), noise)
        yield "", last
    for fault in stretches:
        sigma, angle = rng.uniform(1.3, 3.0), rng.uniform(0, 2 * np.pi)
        far = rng.uniform(8, 25)
        dx, dy = far * np.cos(angle), far * np.sin(angle)
        for _ in range(stretch):
            picture = scene()
            if fault == "black":
                picture = picture * 0.0 + 2
            elif fault == "dark":
                picture = picture * 0.25
            elif fault == "bright":
                picture = picture * 1.5 + 110
            elif fault == "blurred":
                picture = cv2.GaussianBlur(picture, (0, 0), sigma)
            elif fault == "shifted":
                picture = _shifted(picture, dx, dy)
            elif fault == "covered":
                picture = cv2.GaussianBlur(picture, (0, 0), 30) * 0.4 + 40
            yield fault, last if fault == "frozen" else _sense(rng, picture, noise)
        for _ in range(stretch):
            last = _sense(rng, scene(), noise)
            yield "", last
