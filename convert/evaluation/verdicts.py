"""Proof of the verdict: bad parts that passed, good parts that were refused, by the server's own
rules, for the policy in force and for other thresholds."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from convert.data.dataset import LabelledFrame, labelled, read_dataset
from convert.errors import ConvertError
from convert.evaluation.metrics import rate
from convert.terminal import columns
from server.errors import LinesideError
from server.recognition.answers import Answer, Options
from server.recognition.manifest import Manifest, VerdictPolicy, VerdictReport
from server.recognition.recognizer import Recognizer
from server.recognition.tasks.anomaly import AnomalyReader, AnomalyValues
from server.recognition.tasks.classify import ClassReader
from server.recognition.tasks.task import Reader, Result, Verdict
from server.values.labels import Label

VERDICTS = ("pass", "fail", "unsure")
# Pictures of wrong frames on a page; report.json lists all.
PICTURES_MAX = 60
# Wrong frames in the terminal.
LINES_MAX = 20
# Thresholds of the curve, and those of the table beside the one in force.
_STEPS = tuple(number / 50 for number in range(51))
_LEAST = (*_STEPS, 0.95, 0.99, 0.995, 0.999)
_LEAST_SHOWN = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
_SCORES = _STEPS[1:-1]
_SCORES_SHOWN = (0.3, 0.4, 0.46, 0.48, 0.5, 0.52, 0.54, 0.6, 0.7)


@dataclass(frozen=True, slots=True)
class JudgedFrame:
    """A frame whose truth is known: the class of its folder, and if its part is good. class_id: of
    the label that a classifier should answer, else None."""

    path: Path
    label: str
    good: bool
    class_id: int | None = None

    @property
    def file(self) -> str:
        """The end of the path: the rest is of the machine that converted, and a report travels."""
        return f"{self.path.parent.name}/{self.path.name}"


@dataclass(frozen=True)
class VerdictProof:
    """Frames with their results. reader: of the model, as it is served. policy: that they are
    judged by. verdicts: of the frames by `policy`. answers: of the server, if it gave them."""

    reader: Reader[Any]
    policy: VerdictPolicy
    frames: tuple[JudgedFrame, ...]
    results: tuple[Result, ...]
    verdicts: tuple[Verdict, ...]
    answers: tuple[Answer, ...] = ()

    @cached_property
    def wrong(self) -> tuple[int, ...]:
        """Frames with a wrong verdict, or else a wrong label: bad parts that passed, then good ones
        that were refused, then others; the surest first."""
        kinds = [self.kind(i) for i in range(len(self.frames))]
        places = [i for i, kind in enumerate(kinds) if kind]
        order = ("escape", "refused", "label")
        return tuple(sorted(places, key=lambda i: (order.index(kinds[i]), -self._sureness(i))))

    def kind(self, index: int) -> str:
        """Return `escape`, `refused`, `label` for a classifier's wrong label, or ''."""
        frame, verdict = self.frames[index], self.verdicts[index].verdict
        if verdict == "pass" and not frame.good:
            return "escape"
        if verdict == "fail" and frame.good:
            return "refused"
        best = self.results[index].best
        if best is None or frame.class_id is None:
            return ""
        return "label" if best.class_id != frame.class_id else ""

    def _sureness(self, index: int) -> float:
        best = self.results[index].best
        return best.probability if best else 0.0

    def details(self) -> dict[str, Any]:
        """Return all figures as plain JSON types; shares in 0..1 with 95% Wilson intervals."""
        return {
            "policy": msgspec.to_builtins(self.policy),
            "good": self._shares(lambda frame: frame.good),
            "bad": self._shares(lambda frame: not frame.good),
            "classes": list(self._classes()),
            "reasons": [
                {"verdict": verdict, "reason": reason, "good": good, "frames": count}
                for (verdict, reason, good), count in sorted(self._reasons().items())
            ],
            "curve": self._curve(),
            "wrong": [self._wrong(i) for i in self.wrong],
        }

    def summary(self) -> VerdictReport:
        """Return the figures for bundle.json."""
        good, bad = (
            self._shares(lambda frame: frame.good),
            self._shares(lambda frame: not frame.good),
        )
        return VerdictReport(
            good=good["frames"],
            bad=bad["frames"],
            escapes=bad["pass"]["count"],
            escapes_interval=bad["pass"]["interval"],
            refused=good["fail"]["count"],
            refused_interval=good["fail"]["interval"],
            good_unsure=good["unsure"]["count"],
            bad_unsure=bad["unsure"]["count"],
        )

    def _shares(self, chosen: Callable[[JudgedFrame], bool]) -> dict[str, Any]:
        mine = [v for f, v in zip(self.frames, self.verdicts, strict=True) if chosen(f)]
        return {"frames": len(mine), **_rates(mine)}

    def _classes(self) -> Iterator[dict[str, Any]]:
        # A folder has one truth, but two labels may share a name.
        kinds = dict.fromkeys((frame.label, frame.good) for frame in self.frames)
        for label, good in kinds:
            shares = self._shares(lambda f, kind=(label, good): (f.label, f.good) == kind)  # type: ignore[misc]
            yield {"label": label, "good": good, **shares}

    def _reasons(self) -> Counter[tuple[str, str, bool]]:
        return Counter(
            (verdict.verdict, verdict.reason, frame.good)
            for frame, verdict in zip(self.frames, self.verdicts, strict=True)
        )

    def _curve(self) -> dict[str, Any] | None:
        """Return the verdicts by other thresholds; None for a detector: counts decide there."""
        values: Sequence[float]
        shown: Sequence[float]
        if isinstance(self.reader, AnomalyReader):
            name, values, shown = "threshold", _SCORES, _SCORES_SHOWN
        elif isinstance(self.reader, ClassReader):
            name, values, shown = "min_probability", _LEAST, _LEAST_SHOWN
        else:
            return None
        own = float(getattr(self.policy, name))
        points = [
            {**self._at(name, value), "shown": value in (*shown, own)}
            for value in sorted({own, *values})
        ]
        highest = max(
            each[truth][verdict]["share"] or 0.0
            for each in points
            for truth, verdict in (("bad", "pass"), ("good", "fail"))
        )
        # Of the drawing: a curve of small shares needs a scale of its own.
        top = next(limit for limit in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if highest <= limit)
        return {"parameter": name, "own": own, "top": top, "points": points}

    def _at(self, name: str, value: float) -> dict[str, Any]:
        policy = msgspec.structs.replace(self.policy, **{name: value})
        reader = self.reader.with_policy(policy)
        verdicts = [self._judge(reader, result) for result in self.results]
        good = [v for f, v in zip(self.frames, verdicts, strict=True) if f.good]
        bad = [v for f, v in zip(self.frames, verdicts, strict=True) if not f.good]
        return {"value": value, "good": _rates(good), "bad": _rates(bad)}

    def _judge(self, reader: Reader[Any], result: Result) -> Verdict:
        if isinstance(reader, AnomalyReader):
            # The label follows from score and threshold; the map has no say in the verdict.
            empty = np.zeros((1, 1), np.float32)
            result = reader.result(AnomalyValues(result.details.score, empty), Options())
        return verdict_of(reader, result)

    def _wrong(self, index: int) -> dict[str, Any]:
        frame, best = self.frames[index], self.results[index].best
        verdict = self.verdicts[index]
        return {
            "file": frame.file,
            "true": frame.label,
            "kind": self.kind(index),
            "label": best.label if best else None,
            "probability": best.probability if best else None,
            "score": getattr(self.results[index].details, "score", None),
            "verdict": verdict.verdict,
            "reason": verdict.reason,
        }


def _rates(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    counts = Counter(each.verdict for each in verdicts)
    return {name: rate(counts[name], len(verdicts)) for name in VERDICTS}  # type: ignore[index]


def verdict_of(reader: Reader[Any], result: Result) -> Verdict:
    """Return the verdict of a reader that has a policy."""
    verdict = reader.verdict(result)
    assert verdict is not None
    return verdict


def prove(
    reader: Reader[Any], frames: Sequence[JudgedFrame], values: Sequence[Any]
) -> VerdictProof:
    """Judge frames by what `reader` read for each. Values that are not finite show nothing."""
    results = tuple(
        reader.result(each, Options()) if getattr(each, "finite", True) else Result(None, ())
        for each in values
    )
    verdicts = tuple(verdict_of(reader, each) for each in results)
    return VerdictProof(reader, reader.policy, tuple(frames), results, verdicts)


def refuse_regions(manifest: Manifest) -> None:
    """Raise ConvertError for a model that answers several regions of a frame, each on its own."""
    if manifest.recipe is not None and manifest.recipe.regions:
        raise ConvertError(
            f"{manifest.name}/{manifest.version} answers several regions of a frame, each on its"
            " own: frames with one label each say nothing of them"
        )


def prove_served(model: Recognizer, path: Path, good_class: str) -> VerdictProof:
    """Judge the labelled frames of a folder or CSV by a loaded model's answers.

    Raises ConvertError as `_judged_frames`, `answer_frames` and `refuse_regions` do, and if the
    model has no policy.
    """
    if model.reader.policy is None:
        raise ConvertError(
            f"{model.manifest.name}/{model.manifest.version} has no verdict policy: give one with"
            ' --policy FILE, such as {"accept": ["good"]}'
        )
    refuse_regions(model.manifest)
    frames = _judged_frames(path, model, good_class)
    answers = answer_frames(model, [each.path for each in frames])
    results = tuple(Result(each.best, each.predictions, each.details) for each in answers)
    verdicts = tuple(Verdict(each.verdict, each.verdict_reason) for each in answers)  # type: ignore[arg-type]
    return VerdictProof(model.reader, model.reader.policy, frames, results, verdicts, answers)


def classified_frames(
    frames: Sequence[LabelledFrame], labels: Sequence[Label], policy: VerdictPolicy
) -> tuple[JudgedFrame, ...]:
    """Return a classifier's labelled frames; good ones are of a label that `policy` accepts."""
    names = [label.name for label in labels]
    return tuple(
        JudgedFrame(item.path, names[item.label], names[item.label] in policy.accept, item.label)
        for item in frames
    )


def _judged_frames(path: Path, model: Recognizer, good_class: str) -> tuple[JudgedFrame, ...]:
    """Return the labelled frames of a folder or CSV. A classifier's good parts are those whose
    label the policy accepts; of other models, those of `good_class`.

    Raises ConvertError as `labelled` does, and if no frame is of `good_class`.
    """
    if isinstance(model.reader, ClassReader):
        return classified_frames(
            labelled(path, model.labels).frames, model.labels, model.reader.policy
        )
    data = read_dataset(path)
    if good_class not in data.classes:
        raise ConvertError(
            f"{path} has the classes {', '.join(data.classes)}, and none of them is {good_class}:"
            " name the class of good frames with --good-class"
        )
    return tuple(
        JudgedFrame(item.path, data.classes[item.label], data.classes[item.label] == good_class)
        for item in data.frames
    )


def answer_frames(model: Recognizer, paths: Sequence[Path]) -> tuple[Answer, ...]:
    """Return the answer to each picture, as a server gives it. Raises ConvertError that names a
    picture that can't be read."""
    answers = []
    for path in paths:
        try:
            answers.append(model.recognize(path.read_bytes(), Options()))
        except OSError as error:
            raise ConvertError(f"{path} can't be read: {error.strerror}") from None
        except LinesideError as error:
            raise ConvertError(f"{path}: {error.message}") from None
    return tuple(answers)


def lines(proof: dict[str, Any]) -> list[str]:
    """Return the details of a proof for the terminal."""
    good, bad = proof["good"], proof["bad"]
    out = [
        f"escapes: {_sentence(bad['pass'], 'bad frames passed')}",
        f"refused: {_sentence(good['fail'], 'good frames failed')}",
        f"unsure: {_sentence(good['unsure'], 'good frames')};"
        f" {_sentence(bad['unsure'], 'bad frames')}",
    ]
    rows: list[tuple[str, ...]] = [("class", "is", "frames", *VERDICTS)]
    for each in proof["classes"]:
        counts = (str(each[name]["count"]) for name in VERDICTS)
        rows.append(
            (each["label"], "good" if each["good"] else "bad", str(each["frames"]), *counts)
        )
    out += columns(rows)
    if curve := proof["curve"]:
        rows = [(curve["parameter"], "escapes", "refused", "unsure good", "unsure bad")]
        for each in curve["points"]:
            if each["shown"]:
                mark = " *" if each["value"] == curve["own"] else ""
                shares = (
                    each["bad"]["pass"],
                    each["good"]["fail"],
                    each["good"]["unsure"],
                    each["bad"]["unsure"],
                )
                rows.append((f"{each['value']:g}{mark}", *(_short(share) for share in shares)))
        out += [*columns(rows), "* the policy in force"]
    names = {"escape": "bad, passed", "refused": "good, refused", "label": "wrong label"}
    for each in proof["wrong"][:LINES_MAX]:
        sure = f" {each['probability']:.3f}" if each["probability"] is not None else ""
        out.append(
            f"{names[each['kind']]}: {each['file']} answered {each['label'] or 'nothing'}{sure}"
        )
    if (more := len(proof["wrong"]) - LINES_MAX) > 0:
        out.append(f"... and {more} more wrong frames")
    return out


def _sentence(share: dict[str, Any], what: str) -> str:
    if not share["frames"]:
        return f"no {what.split(' frames')[0]} frames to judge by"
    low, high = share["interval"]
    return (
        f"{share['count']} of {share['frames']} {what}, {share['share']:.2%}"
        f" ({low:.2%} to {high:.2%})"
    )


def _short(share: dict[str, Any]) -> str:
    if not share["frames"]:
        return "-"
    low, high = share["interval"]
    return f"{share['count']} ({low:.1%} to {high:.1%})"
