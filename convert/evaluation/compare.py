"""Several models on the same frames: one table, one plot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convert.data.dataset import images, is_labelled, labelled
from convert.errors import ConvertError
from convert.evaluation import metrics
from convert.evaluation.charts import tradeoff_png
from convert.evaluation.evaluate import Model, predict
from convert.quantization.tune import Latency, measure

# As many as a person reads in an error.
FEW_LABELS = 5


@dataclass(frozen=True, slots=True)
class Row:
    """One model beside the first. Sizes in bytes, latency in seconds; shares in 0..1.

    frames: how many the shares are of; 0 without frames. top1, top5 and interval (95%
    Wilson, of top1) are None for frames without labels. agreement: frames with the first model's
    answer. moved: the largest change of a probability against it.
    """

    name: str
    size: int
    size_ratio: float
    latency: Latency
    latency_ratio: float
    frames: int = 0
    top1: float | None = None
    top5: float | None = None
    interval: tuple[float, float] | None = None
    agreement: float | None = None
    moved: float | None = None


def compare(models: Sequence[Model], frames: Path | None, seconds: float) -> tuple[Row, ...]:
    """Measure the models in turns in this process on one thread, and judges them on a folder.

    frames: labelled (one sub-folder a class, or a CSV) or plain images. Ratios and agreement are
    to the first model. Raises ConvertError for frames that are not readable and for models whose
    labels are not the same set.
    """
    wanted = {label.name for label in models[0].labels}
    for model in models[1:]:
        other = sorted(wanted ^ {label.name for label in model.labels})
        if other:
            more = ", ..." if len(other) > FEW_LABELS else ""
            raise ConvertError(
                f"{model.name} and {models[0].name} don't have the same labels: {len(other)} are"
                f" in one of them alone: {', '.join(other[:FEW_LABELS])}{more}"
            )
    latencies = measure({m.name: m.data for m in models}, seconds=seconds)
    judged = _judge(models, frames) if frames else ({},) * len(models)
    first = models[0]
    return tuple(
        Row(
            model.name,
            len(model.data),
            len(model.data) / len(first.data),
            latencies[model.name],
            latencies[model.name].median / latencies[first.name].median,
            **found,  # type: ignore[arg-type]
        )
        for model, found in zip(models, judged, strict=True)
    )


def _judge(models: Sequence[Model], frames: Path) -> tuple[Mapping[str, object], ...]:
    truths: list[metrics.Indices] = []
    if is_labelled(frames):
        sets = [labelled(frames, model.labels).frames for model in models]
        paths = [item.path for item in sets[0]]
        # Sorted by path: each model's labels may stand in another order.
        truths = [
            np.array([{i.path: i.label for i in items}[p] for p in paths], np.intp)
            for items in sets
        ]
    else:
        paths = list(images(frames))
    answers = predict(models, paths).probabilities
    out = []
    for i, model in enumerate(models):
        order = _order(models[0], model)
        same = answers[0].argmax(axis=1) == answers[i][:, order].argmax(axis=1)
        found: dict[str, object] = {
            "frames": len(paths),
            "agreement": float(same.mean()),
            "moved": float(np.abs(answers[0] - answers[i][:, order]).max()),
        }
        if truths:
            ranks = metrics.ranks(answers[i], truths[i])
            hits = int((ranks < 1).sum())
            found["top1"], found["top5"] = hits / len(paths), float((ranks < 5).mean())
            found["interval"] = metrics.wilson(hits, len(paths))
        out.append(found)
    return tuple(out)


def _order(first: Model, other: Model) -> list[int]:
    """Return the index in `other` of each of the first model's labels."""
    if [label.name for label in first.labels] == [label.name for label in other.labels]:
        return list(range(len(first.labels)))
    place = {label.name: i for i, label in enumerate(other.labels)}
    return [place[label.name] for label in first.labels]


def table(rows: Sequence[Row], first: str) -> str:
    """Return the rows as text; `first` names what ratios and agreement are to."""
    head = ["model", "size", f"of {first}", "median", f"of {first}"]
    labelled_frames = rows[0].top1 is not None
    if labelled_frames:
        head += ["top-1", "95% interval", "top-5"]
    if rows[0].frames:
        head += ["agreement", "moved at most"]
    lines = [head]
    for row in rows:
        cells = [
            row.name,
            f"{row.size / 1e6:.2f} MB",
            f"{row.size_ratio:.3f}",
            f"{row.latency.median * 1e3:.2f} ms",
            f"{row.latency_ratio:.3f}",
        ]
        if row.top1 is not None and row.interval is not None:
            low, high = row.interval
            cells += [f"{row.top1:.2%}", f"{low:.1%} to {high:.1%}", f"{row.top5:.2%}"]
        if row.agreement is not None:
            cells += [f"{round(row.agreement * row.frames)} of {row.frames}", f"{row.moved:.4f}"]
        lines.append(cells)
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def plot(rows: Sequence[Row]) -> bytes:
    """Return accuracy against latency and size as PNG; agreement if the frames had no labels.

    Raises ConvertError if there were no frames.
    """
    if not rows[0].frames:
        raise ConvertError("a plot of accuracy needs frames: give --frames FOLDER")
    points = [
        (
            row.name,
            row.latency.median * 1e3,
            100 * (row.agreement or 0.0 if row.top1 is None else row.top1),
            row.size / 1e6,
        )
        for row in rows
    ]
    measure_name = "top-1" if rows[0].top1 is not None else f"same answer as {rows[0].name}"
    return tradeoff_png(points, f"{measure_name}, {rows[0].frames} frames")


def write_plot(rows: Sequence[Row], path: Path) -> None:
    """Write `plot` to a file. Raises ConvertError as `plot` does, and if it can't be written."""
    picture = plot(rows)
    try:
        path.write_bytes(picture)
    except OSError as error:
        raise ConvertError(f"{path} can't be written: {error.strerror}") from None
