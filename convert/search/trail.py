"""The trail of a search: plain values for the table, the plot and the reports."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from convert.evaluation import metrics
from convert.search.networks import Network
from convert.terminal import columns

Setting = float | int | str | bool
# judged: on all folds. stopped: after some, since others were better. unfinished: the time was
# over, or it was broken off. over budget: too slow, and never trained.
State = Literal["chosen", "judged", "stopped", "unfinished", "over budget"]
JUDGED: tuple[State, ...] = ("chosen", "judged")


@dataclass(frozen=True, slots=True)
class Tried:
    """One candidate of a search.

    number: of its trial, None for a network that was only measured. latency: in milliseconds on
    one thread. folds: those it was judged on. hits: of the `frames` of these folds, those that the
    float models of the folds named right. seconds: that it took.
    """

    number: int | None
    state: State
    settings: dict[str, Setting]
    latency: float
    folds: int = 0
    hits: int = 0
    frames: int = 0
    seconds: float = 0.0

    @property
    def top1(self) -> float | None:
        """Return the share of frames named right, 0..1; None if it was not judged."""
        return self.hits / self.frames if self.frames else None


def too_slow(network: Network, latency: float) -> Tried:
    """Return what is said of a network over the budget, which takes `latency` milliseconds."""
    settings: dict[str, Setting] = {
        "alpha": network.alpha,
        "size": network.size,
        "mode": network.mode,
        "light": network.light,
    }
    return Tried(None, "over budget", settings, latency)


@dataclass(frozen=True, slots=True)
class Trail:
    """A search from its begin to its end.

    budget: milliseconds. measured: where the latencies come from, a sentence's part. folds: of the
    cross-validation; held_back: where the frames of the report come from, a sentence's part.
    seconds: of all trials.
    """

    budget: float
    measured: str
    folds: int
    held_back: str
    seconds: float
    tried: tuple[Tried, ...] = field(default_factory=tuple)

    @property
    def trials(self) -> int:
        """Return how many candidates were compared: judged on all folds or stopped."""
        return sum(each.state in (*JUDGED, "stopped") for each in self.tried)

    @property
    def chosen(self) -> Tried:
        """Return the one that the bundle is of."""
        return next(each for each in self.tried if each.state == "chosen")


def pareto(tried: Sequence[Tried]) -> list[Tried]:
    """Return those judged on all folds than which none is both as quick and as accurate, quickest
    first."""
    front: list[Tried] = []
    judged = [each for each in tried if each.state in JUDGED]
    for each in sorted(judged, key=lambda t: (t.latency, -(t.top1 or 0.0), t.number or 0)):
        if not front or (each.top1 or 0.0) > (front[-1].top1 or 0.0):
            front.append(each)
    return front


def details(trail: Trail) -> dict[str, Any]:
    """Return everything as plain JSON types: shares 0..1, milliseconds, seconds."""
    front = pareto(trail.tried)
    return {
        "budget_ms": trail.budget,
        "measured": trail.measured,
        "folds": trail.folds,
        "held_back": trail.held_back,
        "seconds": trail.seconds,
        "trials": trail.trials,
        "tried": [
            {
                **asdict(each),
                "top1": metrics.rate(each.hits, each.frames),
                "pareto": each in front,
            }
            for each in _ordered(trail)
        ],
    }


def _ordered(trail: Trail) -> list[Tried]:
    """Return the chosen one, then those judged on all folds by accuracy, then the others."""
    order = {"chosen": 0, "judged": 1, "stopped": 2, "unfinished": 3, "over budget": 4}
    return sorted(
        trail.tried, key=lambda t: (order[t.state], -(t.top1 or 0.0), t.latency, t.number or 0)
    )


def csv_text(trail: Trail) -> str:
    """Return a table of everything that was tried, one line each."""
    out = io.StringIO()
    front = pareto(trail.tried)
    names = list(dict.fromkeys(name for each in trail.tried for name in each.settings))
    head = ["trial", "state", *names, "latency_ms", "folds", "hits", "frames", "top1", "low"]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*head, "high", "pareto", "seconds"])
    for each in _ordered(trail):
        low, high = metrics.wilson(each.hits, each.frames)
        judged = each.top1 is not None
        writer.writerow(
            [
                "" if each.number is None else each.number,
                each.state,
                *(each.settings.get(name, "") for name in names),
                f"{each.latency:.3f}",
                each.folds,
                each.hits,
                each.frames,
                *((f"{x:.4f}" for x in (each.top1 or 0.0, low, high)) if judged else ("", "", "")),
                int(each in front),
                f"{each.seconds:.1f}",
            ]
        )
    return out.getvalue()


def lines(trail: Trail) -> list[str]:
    """Return the table for the terminal: what was trained, the best first."""
    front = pareto(trail.tried)
    rows = [["network", "state", "top-1", "95% interval", "frames", "ms", "training"]]
    for each in _ordered(trail):
        if each.top1 is None:
            continue
        low, high = metrics.wilson(each.hits, each.frames)
        settings = each.settings
        name = f"{settings['alpha']:g}@{settings['size']} {settings['mode']}"
        rows.append(
            [
                name,
                each.state + (", front" if each in front else ""),
                f"{each.top1:.2%}",
                f"{low:.1%} to {high:.1%}",
                str(each.frames),
                f"{each.latency:.2f}",
                training(settings),
            ]
        )
    return columns(rows)


def training(settings: dict[str, Setting]) -> str:
    """Return how a candidate was fed and trained, in a few words."""
    words = [
        f"{settings['weights']}",
        f"{settings['resize']}",
        "even light" if settings["light"] == "even" else "light as it is",
        f"rate {settings['rate']:.1e}",
        f"frozen {settings['frozen']}",
        f"augmentation {settings['augmentation']:g}",
    ]
    words += [f"{name} {settings[name]:g}" for name in ("smoothing", "mixup") if settings[name]]
    return ", ".join([*words, "teacher"] if settings["teacher"] else words)
