"""A result as one picture: good answers a second by server, at 8 clients."""

import re
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.inputs import SIZES
from bench.report import summary
from bench.report.summary import TITLES, Result

BASES = {"decode as the bundle says": "bare", "full decode": "bare-full"}
OURS, PEER, LINE = "#d1541f", "#8fa3b3", "#33414e"


def _panel(axes: Axes, result: Result, size: str) -> None:
    rows = [row for row in TITLES if row in result["rows"] and not row.startswith("bare")]
    found = {row: cell for row in rows if (cell := summary.cell(result, row, size, 8))}
    names = [re.sub(r"\*", "", TITLES[row][0]) for row in found]
    colors = [OURS if row.startswith("ours") else PEER for row in found]
    bars = axes.barh(names, [cell.fps for cell in found.values()], color=colors)
    axes.bar_label(bars, fmt="%.0f", padding=3)
    for decode, base in BASES.items():
        limit = summary.cell(result, base, size, 8)
        if limit is not None:
            style = "-" if base == "bare" else ":"
            label = f"bare limit ({decode}): {limit.fps:.0f}"
            axes.axvline(limit.fps, color=LINE, linestyle=style, label=label)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_title(f"{size} JPEG, 8 clients")
    axes.set_xlabel("good answers a second")
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), fontsize="small")


def draw(result: Result, path: Path) -> None:
    """Writes the picture for `result`, a panel a size, to `path` (.png or .svg)."""
    figure = Figure(figsize=(13, 5), layout="constrained")
    for number, size in enumerate(SIZES, 1):
        _panel(figure.add_subplot(1, len(SIZES), number), result, size)
    figure.savefig(path, dpi=110)
