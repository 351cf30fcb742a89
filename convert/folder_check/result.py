"""Says what was found in a folder, as lines of text and as plain values for a report."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from convert.data.dataset import LabelledFrame
from convert.folder_check.curve import Curve, Gain
from convert.folder_check.judge import Suspect
from convert.folder_check.near_duplicates import MIN_FRAMES
from server.values.wording import counted

# A person looks at so many; report.json has them all.
SHOWN = 40
_CLASSES_NAMED = 3
UNTOLD = f"there are fewer than {MIN_FRAMES} frames, or all of them look too alike"


@dataclass(frozen=True, slots=True)
class FolderCheck:
    """The check of labelled frames before any training.

    frames: those to train on, then those to validate on, which `validation` counts. pairs: indices
    of frames that are nearly the same picture, None if that can't be told. suspects: the most
    suspected first; curve: of all frames; both None without features, and `why_not` says why.
    """

    classes: tuple[str, ...]
    frames: tuple[LabelledFrame, ...]
    validation: int
    pairs: Sequence[tuple[int, int]] | None = ()
    suspects: tuple[Suspect, ...] | None = None
    curve: Curve | None = None
    why_not: str = ""

    @property
    def held(self) -> int:
        """Return the index of the first frame to validate on."""
        return len(self.frames) - self.validation

    @property
    def repeated(self) -> tuple[tuple[int, int], ...]:
        """Return each frame that is nearly the same as an earlier one, with the first of these."""
        return _first_of_each(self.pairs or ())

    @property
    def across(self) -> tuple[tuple[int, int], ...]:
        """Return each frame to validate on that is nearly the same as one to train on, with it."""
        return _first_of_each([(i, j) for i, j in self.pairs or () if i < self.held <= j])

    @property
    def contradictory(self) -> tuple[tuple[int, int], ...]:
        """Return each frame that is nearly the same as an earlier one of another label, with it."""
        frames = self.frames
        return _first_of_each(
            [(i, j) for i, j in self.pairs or () if frames[i].label != frames[j].label]
        )

    def name(self, frame: int) -> str:
        """Return folder and name of a frame's file."""
        path = self.frames[frame].path
        return f"{path.parent.name}/{path.name}"


def _first_of_each(pairs: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Return the first pair of each later frame: all pairs of 1000 alike frames are half a
    million."""
    first: dict[int, int] = {}
    for i, j in pairs:
        first.setdefault(j, i)
    return tuple((i, j) for j, i in first.items())


def lines(check: FolderCheck, shown: int = SHOWN) -> list[str]:
    """Return what was found, for the terminal, with at most `shown` frames of each kind."""
    out = []
    if check.pairs is None:
        out.append(f"near-duplicates not looked for: {UNTOLD}")
    elif check.pairs:
        frames = counted(len(check.repeated), "frame is", "frames are")
        out.append(f"{frames} nearly the same picture as an earlier one")
    if check.across:
        out.append(
            f"{len(check.across)} of {check.validation} frames to validate on are nearly the same"
            " as one to train on, which flatters the result"
        )
    out += _listed(
        "nearly the same picture, but another label",
        [
            f"{check.name(i)} ({_class(check, i)}) and {check.name(j)} ({_class(check, j)})"
            for i, j in check.contradictory
        ],
        shown,
    )
    if check.suspects is None:
        return [*out, f"labels not looked at: {check.why_not}"]
    out += _listed(
        "labels that may be wrong, the most suspected first",
        [
            f"{check.name(each.frame)}: {_class(check, each.frame)}"
            f" {each.own_probability:.0%}, or {check.classes[each.other]}"
            f" {each.other_probability:.0%}?"
            for each in check.suspects
        ],
        shown,
    )
    if check.curve:
        out += curve_lines(check.curve, check.classes)
    return out


def _class(check: FolderCheck, frame: int) -> str:
    return check.classes[check.frames[frame].label]


def _listed(title: str, rows: list[str], shown: int) -> list[str]:
    if not rows:
        return []
    more = [f"  and {len(rows) - shown} more"] if len(rows) > shown else []
    return [f"{title} ({len(rows)}):", *(f"  {row}" for row in rows[:shown]), *more]


def curve_lines(curve: Curve, classes: tuple[str, ...]) -> list[str]:
    """Return the curve and what follows from it, for the terminal."""
    steps = ", ".join(f"{p.right:.1%} with {p.frames} frames" for p in curve.points)
    return [f"a simple classifier is right on {steps}", advice(curve, classes)]


def advice(curve: Curve, classes: tuple[str, ...]) -> str:
    """Return a sentence that says if more photographs would help, and of which class."""
    added = f"the second half of them added {_points(curve.gain)}"
    if curve.gain.helps:
        verdict = f"more photographs would likely help: {added}"
    elif curve.gain.may_help:
        verdict = f"there are too few frames to say if more would help: {added}"
    else:
        verdict = f"more photographs like these would likely change little: {added}"
    # The classes that more of them helped so far, those that are seldom right first.
    helped = sorted((g for g in curve.classes if g.helps), key=lambda g: g.right)
    if helped:
        named = ", ".join(
            f"{classes[g.label or 0]} ({g.right:.0%} right)" for g in helped[:_CLASSES_NAMED]
        )
        return f"{verdict}; first of all of {named}"
    least = min(curve.classes, key=lambda g: g.right)
    return (
        f"{verdict}; least often right is {classes[least.label or 0]} ({least.right:.0%} of"
        f" {least.frames} frames)"
    )


def _points(gain: Gain) -> str:
    low, high = gain.gain_interval
    return f"{100 * gain.gain:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"


def details(check: FolderCheck) -> dict[str, Any]:
    """Return everything as plain JSON types; shares 0..1."""
    return {
        "frames": len(check.frames),
        "validation": check.validation,
        "counts": {
            name: sum(item.label == c for item in check.frames)
            for c, name in enumerate(check.classes)
        },
        "near_duplicates": None
        if check.pairs is None
        else [_pair(check, pair) for pair in check.repeated],
        "across": [_pair(check, pair) for pair in check.across],
        "contradictory": [_pair(check, pair) for pair in check.contradictory],
        "suspects": None
        if check.suspects is None
        else [
            {
                "file": check.name(each.frame),
                "label": _class(check, each.frame),
                "other": check.classes[each.other],
                "own_probability": each.own_probability,
                "other_probability": each.other_probability,
                "margin": each.margin,
                "validation": each.frame >= check.held,
            }
            for each in check.suspects
        ],
        "curve": _curve(check),
        "why_not": check.why_not,
    }


def _pair(check: FolderCheck, pair: tuple[int, int]) -> list[str]:
    return [check.name(frame) for frame in pair]


def _curve(check: FolderCheck) -> dict[str, Any] | None:
    if check.curve is None:
        return None
    named = [
        {**asdict(each), "label": check.classes[each.label or 0], "helps": each.helps}
        for each in check.curve.classes
    ]
    return {
        "points": [asdict(point) for point in check.curve.points],
        "gain": asdict(check.curve.gain),
        "classes": named,
        "advice": advice(check.curve, check.classes),
    }
