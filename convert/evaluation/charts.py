"""Pictures of figures as PNG bytes, drawn without a display."""

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from convert.evaluation import metrics
from convert.search.trail import Trail, pareto

INK, MUTED, LINE, ACCENT = "#1d2733", "#5b6876", "#d9e0e7", "#0b6e99"
CHOSEN = "#b3261e"
# More cells than this are too small for a number in each.
MAX_NUMBERED = 24


def confusion_png(matrix: NDArray[np.int64], labels: Sequence[str]) -> bytes:
    """Draw a confusion matrix [classes, classes]: rows are true classes, columns predicted ones.

    Colours are shares of the row, numbers are frames.
    """
    n = len(labels)
    side = min(14.0, max(4.5, 1.9 + 0.55 * n))
    figure = Figure((side, side), layout="constrained")
    axes = figure.add_subplot()
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    # A label is a name, whatever dollar signs it has.
    plain: dict[str, Any] = {"parse_math": False}
    axes.set_xticks(range(n), labels, rotation=45, ha="right", rotation_mode="anchor", **plain)
    axes.set_yticks(range(n), labels, **plain)
    axes.tick_params(length=0, colors=MUTED, labelsize=9 if n <= MAX_NUMBERED else 5)
    axes.set_xlabel("predicted", color=INK)
    axes.set_ylabel("true", color=INK)
    axes.spines[:].set_visible(False)
    if n <= MAX_NUMBERED:
        axes.set_xticks(np.arange(n - 1) + 0.5, minor=True)
        axes.set_yticks(np.arange(n - 1) + 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=2)
        axes.tick_params(which="minor", length=0)
        for (row, column), count in np.ndenumerate(matrix):
            if count:
                color = "white" if share[row, column] > 0.55 else INK
                axes.text(column, row, str(count), ha="center", va="center", color=color)
    return _png(figure)


def tradeoff_png(points: Sequence[tuple[str, float, float, float]], measure: str) -> bytes:
    """Models as circles: (name, median latency in ms, `measure` in percent, size in MB). The area
    of a circle is its model's size."""
    figure = Figure((8, 5), layout="constrained")
    axes = figure.add_subplot()
    times, heights = [p[1] for p in points], [p[2] for p in points]
    largest = max(p[3] for p in points)
    axes.scatter(
        times,
        heights,
        s=[1400 * p[3] / largest for p in points],
        color=ACCENT,
        alpha=0.35,
        edgecolor=ACCENT,
        linewidth=1.2,
        zorder=3,
    )
    axes.scatter(times, heights, s=8, color=INK, zorder=4)
    for (name, time, height, size), offset in zip(points, _offsets(points), strict=True):
        axes.annotate(
            f"{name}  {size:.1f} MB",
            (time, height),
            xytext=(0, offset),
            textcoords="offset points",
            ha="center",
            color=INK,
            fontsize=9,
            zorder=5,
            parse_math=False,
        )
    axes.margins(y=0.3)
    axes.set_xlim(0, 1.2 * max(times))
    axes.set_xlabel("median latency of one frame on one thread, ms", color=INK)
    axes.set_ylabel(measure + ", %", color=INK)
    axes.grid(color=LINE, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LINE)
    axes.tick_params(colors=MUTED, length=0)
    return _png(figure)


def search_png(trail: Trail) -> bytes:
    """Candidates of a search: accuracy against latency, the front as a line, the budget dashed."""
    figure = Figure((8, 5), layout="constrained")
    axes = figure.add_subplot()
    for state, color, label in (
        ("stopped", LINE, "stopped after a part of the folds"),
        ("judged", ACCENT, "judged on all folds"),
        ("chosen", CHOSEN, "chosen"),
    ):
        own = [t for t in trail.tried if t.state == state and t.top1 is not None]
        if not own:
            continue
        times, heights = [t.latency for t in own], [100 * (t.top1 or 0.0) for t in own]
        axes.scatter(times, heights, s=48, color=color, edgecolor=MUTED, label=label, zorder=3)
        if state == "stopped":
            continue
        for each, height in zip(own, heights, strict=True):
            low, high = metrics.wilson(each.hits, each.frames)
            axes.plot([each.latency] * 2, [100 * low, 100 * high], color=color, linewidth=1)
            axes.annotate(
                f"{each.settings['alpha']:g}@{each.settings['size']}",
                (each.latency, height),
                xytext=(5, 5),
                textcoords="offset points",
                color=MUTED,
                fontsize=8,
            )
    front = pareto(trail.tried)
    steps = [t.latency for t in front], [100 * (t.top1 or 0.0) for t in front]
    axes.plot(*steps, color=INK, linewidth=1.2, label="front: none is quicker and as accurate")
    axes.axvline(trail.budget, color=MUTED, linestyle="--", label="budget")
    axes.set_xlim(0, 1.1 * trail.budget)
    axes.set_xlabel("latency of one frame on one thread, ms", color=INK)
    axes.set_ylabel(f"top-1 by {trail.folds}-fold cross-validation, %", color=INK)
    axes.grid(color=LINE, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LINE)
    axes.tick_params(colors=MUTED, length=0)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    return _png(figure)


def _offsets(points: Sequence[tuple[str, float, float, float]]) -> list[int]:
    """Place labels above and below in turn, in points, so that neighbours don't overlap."""
    order = sorted(range(len(points)), key=lambda i: points[i][1])
    out = [0] * len(points)
    for place, i in enumerate(order):
        out[i] = 24 if place % 2 == 0 else -32
    return out


def _png(figure: Any) -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings():
        # The font has not every script; a box in its place says as much.
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        # Without the software's version the same figures give the same bytes.
        figure.savefig(out, format="png", dpi=110, facecolor="white", metadata={"Software": None})
    return out.getvalue()
