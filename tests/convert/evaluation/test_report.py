"""The validation report: figures that agree with each other, and a page that needs nothing else."""

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from convert.__main__ import main
from convert.data.dataset import labelled
from convert.evaluation.charts import confusion_png
from convert.pipeline import Request, build
from convert.sources import keras as sources
from server.recognition.manifest import Bundle, VerdictPolicy, read_bundle


@pytest.fixture
def proven(request_of: Request, colours_frames: Path) -> Bundle:
    """A dynamic bundle with a report."""
    validation = labelled(colours_frames, request_of.labels)
    request = replace(request_of, validation=validation, samples=4, max_accuracy_drop=100.0)
    return read_bundle(build(request, lambda _: None))


@pytest.fixture
def details(proven: Bundle) -> dict[str, Any]:
    """Its report.json."""
    found: dict[str, Any] = json.loads((proven.folder / "report.json").read_text())
    return found


def test_the_summary_says_what_the_details_say(proven: Bundle, details: dict[str, Any]) -> None:
    report = proven.manifest.report
    assert report is not None
    assert report.details == "report.json"
    ours, theirs = details["models"]["result"], details["models"]["float"]
    assert (report.images, report.top1) == (36, ours["top1"]["share"])
    assert report.top1_float == theirs["top1"]["share"]
    assert list(report.interval) == ours["top1"]["interval"]
    assert report.agreement == details["agreement"]["share"]
    assert report.size_ratio == ours["size"] / theirs["size"] < 0.5
    assert report.latency_ratio == ours["latency"]["median"] / theirs["latency"]["median"]
    assert ours["latency"]["rounds"] == theirs["latency"]["rounds"] >= 5
    assert [
        [t, p, n] for t, row in enumerate(report.confusion) for p, n in enumerate(row) if n
    ] == (ours["confusion"])
    assert {c["label"]: c["recall"] for c in ours["classes"]} == {
        name: c.recall for name, c in report.classes.items()
    }


def test_the_details_follow_from_the_frames(details: dict[str, Any]) -> None:
    frames = details["per_frame"]
    assert len(frames) == details["frames"] == 36
    for side in ("float", "result"):
        hits = sum(f[side]["right"] for f in frames)
        assert details["models"][side]["top1"]["hits"] == hits
        assert all(f[side]["right"] == (f[side]["label"] == f["true"]) for f in frames)
        bins = details["models"][side]["calibration"]["bins"]
        assert sum(b["frames"] for b in bins) == 36
        # Three classes: the true one is always among the first five.
        assert details["models"][side]["top5"]["share"] == 1
    same = sum(f["float"]["label"] == f["result"]["label"] for f in frames)
    assert details["agreement"]["same_top1"] == same
    worst = [frames[i] for i in details["most_different"]]
    keys = [(f["float"]["label"] == f["result"]["label"], -f["distance"]) for f in worst]
    assert keys == sorted(keys)
    assert max(f["distance"] for f in frames) == max(f["distance"] for f in worst)


class Page(HTMLParser):
    """Collects addresses and tags, and checks that tags close in order."""

    VOID = frozenset({"br", "meta", "link", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.images: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href")]
        if tag == "img":
            self.images.append(dict(attrs)["src"] or "")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag == "line"  # the one element of the drawings that is written so


def test_the_page_needs_nothing_beside_it(proven: Bundle, details: dict[str, Any]) -> None:
    text = (proven.folder / "report.html").read_text()
    assert "chose the epoch" not in text
    page = Page(text)
    assert page.open == []
    assert page.addresses
    assert all(address.startswith("data:") for address in page.addresses)
    assert not re.search(r"https?://|url\(|@import|<script", text)
    pictures = [base64.b64decode(source.partition(",")[2]) for source in page.images]
    decoded = [cv2.imdecode(np.frombuffer(p, np.uint8), cv2.IMREAD_COLOR) for p in pictures]
    assert all(picture is not None for picture in decoded)
    assert len(pictures) == 1 + len(details["most_different"]) == 11


def test_confusion_png_is_in_the_bundle(proven: Bundle) -> None:
    picture = cv2.imread(str(proven.folder / "confusion.png"))
    assert picture is not None
    assert min(picture.shape[:2]) > 300


def test_a_label_is_drawn_as_it_is_written() -> None:
    assert confusion_png(np.eye(2, dtype=np.int64), ["$x_{$", "\u5b57"]).startswith(b"\x89PNG")


def test_names_are_escaped(request_of: Request, colours_frames: Path, tmp_path: Path) -> None:
    labels = tuple(replace_name(label.name) for label in request_of.labels)
    frames = tmp_path / "frames.csv"
    rows = [f"{p},{p.parent.name} & <b>" for p in sorted(colours_frames.rglob("*.*"))]
    frames.write_text("\n".join(["path,label", *rows]))
    validation = labelled(frames, labels)
    request = replace(request_of, labels=labels, validation=validation, max_accuracy_drop=100.0)
    text = (build(request, lambda _: None) / "report.html").read_text()
    assert "red &amp; &lt;b&gt;" in text
    assert "<b>" not in text.replace("<b>", "", text.count('class="name"'))


def replace_name(name: str) -> Any:
    from server.values.labels import Label

    return Label(f"{name} & <b>")


def test_golden_frames_and_samples(proven: Bundle, details: dict[str, Any]) -> None:
    manifest = proven.manifest
    assert [g.file for g in manifest.golden] == [
        f"golden/{g.label}{Path(g.file).suffix}" for g in manifest.golden
    ]
    assert {g.label for g in manifest.golden} == {"blue", "green", "red"}
    assert all(g.probability >= 0.6 for g in manifest.golden)
    assert len(list((proven.folder / "samples").iterdir())) == 4


def test_the_baseline_is_of_these_frames(proven: Bundle, details: dict[str, Any]) -> None:
    baseline = proven.manifest.baseline
    assert baseline is not None
    answers = [f["result"]["label"] for f in details["per_frame"]]
    assert baseline.classes == {n: pytest.approx(answers.count(n) / 36) for n in set(answers)}
    assert len(baseline.confidence) == 10
    assert len(baseline.brightness) == 16
    assert sum(baseline.confidence) == pytest.approx(1)
    # The frames' mean grey lies between 64 and 128.
    assert sum(baseline.brightness[3:8]) == pytest.approx(1)


def test_evaluate_against_a_model_of_another_size(
    tf: Any, proven: Bundle, colours_frames: Path, tmp_path: Path, capsys: Any
) -> None:
    layers = tf.keras.layers
    model = tf.keras.Sequential([layers.Input((8, 8, 3)), layers.Flatten(), layers.Dense(2)])
    (tmp_path / "small.tflite").write_bytes(sources.from_keras(model))
    command = ["evaluate", str(proven.folder), str(colours_frames), "--against"]
    assert main([*command, str(tmp_path / "small.tflite")]) == 1
    said = r"small\.tflite makes 2 values of \[8, 8, 3\], but .* makes 3 of \[32, 32, 3\]"
    assert re.search(said, capsys.readouterr().err)


def test_evaluate_writes_the_same_report(
    proven: Bundle, colours_files: Path, colours_frames: Path, tmp_path: Path, capsys: Any
) -> None:
    report = tmp_path / "again"
    command = ["evaluate", str(proven.folder), str(colours_frames), "--seconds", "0.1"]
    command += ["--against", str(colours_files / "colours.tflite"), "--report", str(report)]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "of 36 frames" in out
    assert re.search(r"^green +12 ", out, re.MULTILINE)
    again = json.loads((report / "report.json").read_text())
    assert (
        again["per_frame"] == json.loads((proven.folder / "report.json").read_text())["per_frame"]
    )


def test_report_names_accepted_labels_or_none(request_of: Request, colours_frames: Path) -> None:
    validation = labelled(colours_frames, request_of.labels)
    lines: list[str] = []
    request = replace(request_of, validation=validation, max_accuracy_drop=100.0)
    page = (build(request, lines.append) / "report.html").read_text()
    assert "the verdict of every answer is null" in page
    assert sum("no --accept" in line for line in lines) == 1
    request = replace(request, verdict=VerdictPolicy(accept=("green", "red")))
    lines.clear()
    page = (build(request, lines.append) / "report.html").read_text()
    assert "The verdict is <code>pass</code> for green, red." in page
    assert not any("--accept" in line for line in lines)
