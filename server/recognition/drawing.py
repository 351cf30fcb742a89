"""Draws an answer over its frame: boxes with their labels, a heat map of scores, and the verdict.

Sizes follow the frame's, so that a drawing can be read on a frame of any size. Text is in OpenCV's
own font, which has Latin, Cyrillic, Chinese, Japanese and Korean letters. It takes 10 MB in the
first thread that draws, and about 5 MB in each further one.
"""

import cv2
import msgspec
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from server.recognition.frame import Pixels

Color = tuple[int, int, int]
# left, top, width and height.
Box = tuple[float, float, float, float]

# A frame whose longer side has fewer pixels is magnified by a whole number to at least these.
LONGER_SIDE_MIN = 320
# Height of text: a share of the frame's shorter side, and at least so many pixels.
TEXT_SHARE, TEXT_MIN = 0.032, 13
TEXT_WEIGHT = 500
LETTERS_MAX = 80
DARK, LIGHT = (16, 20, 24), (255, 255, 255)
VERDICT_COLORS: dict[str, Color] = {
    "pass": (24, 128, 56),
    "fail": (196, 32, 32),
    "unsure": (232, 160, 32),
}
# Distinct to colour-blind eyes as well (Okabe and Ito, 2008).
MARK_COLORS: tuple[Color, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (204, 121, 167),
    (0, 114, 178),
)
# Colours of scores: the scale is fixed, so that two pictures compare. Scores below the threshold
# are blue, those above go from yellow to red: the line between the two is the threshold.
COLD = ((0.0, (24, 40, 120)), (1.0, (96, 200, 255)))
HOT = ((0.0, (255, 232, 64)), (0.4, (255, 128, 0)), (1.0, (176, 0, 32)))
# Opacity by score over threshold: low scores leave the frame as it is.
OPACITY = ((0.8, 0.0), (1.0, 0.3), (1.0 + 1e-6, 0.5), (2.0, 0.7))
# Rows that are coloured at a time, since a large frame has no room for a second one in memory.
BAND_ROWS = 128
JPEG_QUALITY = 90


class Mark(msgspec.Struct, frozen=True):
    """A box in the frame's pixels, upright; it may reach beyond the frame. text: beside it.
    kind: marks of one kind have one colour."""

    box: Box
    text: str
    kind: int = 0


class HeatMap(msgspec.Struct, frozen=True):
    """Scores 0..1 of places, [height, width], of which those above `threshold` are too high. box:
    of the whole map in the frame's pixels; it may reach beyond the frame. None: the frame."""

    scores: NDArray[np.float32]
    threshold: float
    box: Box | None = None


class Overlay(msgspec.Struct, frozen=True, kw_only=True):
    """The marks that are drawn over a frame. verdict: `pass`, `fail` or `unsure`; None for no such
    line. verdict_reason: behind it. lines: of text below it."""

    verdict: str | None = None
    verdict_reason: str | None = None
    lines: tuple[str, ...] = ()
    marks: tuple[Mark, ...] = ()
    heats: tuple[HeatMap, ...] = ()


def draw(pixels: Pixels, overlay: Overlay) -> Pixels:
    """Returns a copy of RGB uint8 [height, width, 3] with `overlay` drawn on it; it is larger by a
    whole number if the frame is small."""
    times = -(-LONGER_SIDE_MIN // max(pixels.shape[:2]))
    canvas = np.repeat(np.repeat(pixels, times, axis=0), times, axis=1)
    height, width = canvas.shape[:2]
    text = max(TEXT_MIN, round(min(height, width) * TEXT_SHARE))
    for heat in overlay.heats:
        _draw_heat(canvas, heat, times)
    for mark in overlay.marks:
        _draw_mark(canvas, mark, times, text)
    if overlay.heats:
        _draw_scale(canvas, overlay.heats[0].threshold, text)
    top = text // 2
    if overlay.verdict is not None:
        title = " ".join((overlay.verdict.upper(), overlay.verdict_reason or ""))
        color = VERDICT_COLORS[overlay.verdict]
        top = _draw_text(canvas, title, (text // 2, top), text * 4 // 3, color)
    for line in overlay.lines:
        top = _draw_text(canvas, line, (text // 2, top), text, DARK)
    return canvas


def to_jpeg(pixels: Pixels) -> bytes:
    """Returns RGB uint8 [height, width, 3] as a JPEG file."""
    data = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), JPEG_QUALITY, "RGB", colorsubsampling="422"
    )
    return bytes(data)


def _draw_text(canvas: Pixels, text: str, at: tuple[int, int], size: int, paper: Color) -> int:
    """Draws a line of text on a plate of colour `paper`, its upper left corner at `at` or as near
    as it fits, cut off if it is longer than the frame is wide. Returns the plate's lower edge."""
    height, width = canvas.shape[:2]
    font, room = cv2.FontFace("sans"), width - 2 * size
    text = "".join(c if c.isprintable() else " " for c in text[:LETTERS_MAX]).strip()
    whole = text
    while (wide := _text_width(text, size)) > room and whole:
        whole = whole[: max(0, min(len(whole) - 1, len(whole) * room // wide))]
        text = whole + "\N{HORIZONTAL ELLIPSIS}"
    left = max(0, min(at[0], width - wide - size))
    top = max(0, min(at[1], height - size * 3 // 2))
    corner = left + wide + size, top + size * 3 // 2
    cv2.rectangle(canvas, (left, top), (corner[0] - 1, corner[1] - 1), paper, cv2.FILLED)
    ink = DARK if np.dot(paper, (0.3, 0.59, 0.11)) > 128 else LIGHT
    cv2.putText(canvas, text, (left + size // 2, top + size * 9 // 8), ink, font, size, TEXT_WEIGHT)
    return int(corner[1])


def _text_width(text: str, size: int) -> int:
    box = cv2.getTextSize((1, 1), text, (0, 0), cv2.FontFace("sans"), size, TEXT_WEIGHT)
    return int(box[2])


def _draw_mark(canvas: Pixels, mark: Mark, times: int, text: int) -> None:
    height, width = canvas.shape[:2]
    left, top, wide, high = (side * times for side in mark.box)
    # Within the range of OpenCV's whole numbers; a side outside of the frame stays outside.
    limits = np.array([width, height, width, height]) + text
    corners = np.clip(np.rint([left, top, left + wide, top + high]), -text, limits).astype(int)
    x1, y1, x2, y2 = corners.tolist()
    color = MARK_COLORS[mark.kind % len(MARK_COLORS)]
    thick = max(1, text // 8)
    cv2.rectangle(canvas, (x1, y1), (x2, y2), DARK, thick * 2 + 1)
    cv2.rectangle(canvas, (x1, y1), (x2, y2), color, thick)
    above = y1 - text * 3 // 2
    _draw_text(canvas, mark.text, (x1, above if above >= 0 else y1), text, color)


def colors_of(threshold: float) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Returns the RGB colour, uint8 [256, 3], and the opacity, float32 [256], of scores 0 to 1 in
    256 steps."""
    scores = np.linspace(0, 1, 256)
    below = np.clip(scores / max(threshold, 1e-6), 0, 1)
    above = np.clip((scores - threshold) / max(1 - threshold, 1e-6), 0, 1)
    colors = np.empty((256, 3))
    for channel in range(3):
        cold, hot = (
            np.interp(at, [stop for stop, _ in stops], [color[channel] for _, color in stops])
            for at, stops in ((below, COLD), (above, HOT))
        )
        colors[:, channel] = np.where(scores > threshold, hot, cold)
    stops, shares = zip(*OPACITY, strict=True)
    opacity = np.interp(scores / max(threshold, 1e-6), stops, shares)
    return np.rint(colors).astype(np.uint8), opacity.astype(np.float32)


def _draw_heat(canvas: Pixels, heat: HeatMap, times: int) -> None:
    """Colours the frame by the scores, a band of rows at a time."""
    height, width = canvas.shape[:2]
    rows, columns = heat.scores.shape
    box = heat.box or (0, 0, width / times, height / times)
    left, top, wide, high = (side * times for side in box)
    colors, opacity = colors_of(heat.threshold)
    across = _weights((np.arange(width) + 0.5 - left) / wide * columns - 0.5, columns)
    down = _weights((np.arange(height) + 0.5 - top) / high * rows - 0.5, rows)
    levels = np.clip(heat.scores, 0, 1) * 255 @ across.T
    for first in range(0, height, BAND_ROWS):
        band = canvas[first : first + BAND_ROWS]
        level = np.rint(down[first : first + BAND_ROWS] @ levels).astype(np.uint8)
        shown = opacity[level] > 0
        level = level[shown]
        share = opacity[level][:, None]
        band[shown] = np.rint(band[shown] * (1 - share) + colors[level] * share)


def _weights(places: NDArray[np.float64], count: int) -> NDArray[np.float32]:
    """Returns the weights [places, count] of linear interpolation between `count` values; 0 for
    places outside of them. cv2.remap and cv2.warpAffine take no side above 32767."""
    inside = (places >= -0.5) & (places <= count - 0.5)
    near = np.clip(places, 0, count - 1).astype(np.float32)
    hats = 1 - np.abs(near[:, None] - np.arange(count, dtype=np.float32))
    return np.asarray(np.maximum(hats, 0) * inside[:, None], np.float32)


def _draw_scale(canvas: Pixels, threshold: float, text: int) -> None:
    """Draws the colours of scores in the lower right corner, with a line at the threshold."""
    height, width = canvas.shape[:2]
    tall, wide, edge = min(text * 8, height - text * 3), text, text // 2
    if tall < text * 3 or width < text * 8:
        return
    bottom, right = height - edge - text, width - edge
    levels = np.linspace(255, 0, tall).round().astype(np.uint8)
    top, left = bottom - tall, right - wide
    canvas[top:bottom, left:right] = colors_of(threshold)[0][levels][:, None]
    cv2.rectangle(canvas, (left, top), (right, bottom), DARK, max(1, text // 8))
    line = bottom - round(tall * threshold)
    cv2.line(canvas, (left - text // 3, line), (right, line), LIGHT, max(1, text // 8))
    for score, y in ((1.0, top), (threshold, line), (0.0, bottom)):
        name = f"{score:g}"
        at = left - text // 3 - _text_width(name, text) - text, y - text * 3 // 4
        _draw_text(canvas, name, at, text, DARK)
