"""Proof of the verdict: escapes and refused parts, as a server judges the same frames."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
from tiny_models import MakeModel, write_bundle

from convert.__main__ import main
from convert.bundle_writer import load
from convert.data.dataset import labelled
from convert.evaluation import verdicts
from convert.evaluation.metrics import wilson
from convert.pipeline import Request, build
from server.recognition.answers import Options
from server.recognition.manifest import DevicePolicy, VerdictPolicy
from server.recognition.recognizer import Recognizer
from server.recognition.tasks.anomaly import LABELS, AnomalyPolicy
from server.recognition.tasks.classify import ClassValues


@pytest.fixture
def colours(request_of: Request) -> Path:
    """A classifier's bundle that passes red frames alone."""
    policy = VerdictPolicy(accept=("red",), min_probability=0.9)
    return build(replace(request_of, verdict=policy), lambda _: None)


@pytest.fixture
def spots(tiny_model: MakeModel, tmp_path: Path) -> Path:
    """An anomaly bundle: what is bright is no good."""
    folder = tmp_path / "models" / "spots" / "1"
    policy = AnomalyPolicy(min_probability=0.6)
    return write_bundle(folder, tiny_model("spots"), LABELS, task="anomaly", verdict=policy)


@pytest.fixture
def surfaces(tmp_path: Path) -> Path:
    """Grey frames of many levels: `good` ones are darker, but not all of them."""
    root, rng = tmp_path / "surfaces", np.random.default_rng(0)
    for name, low, high in (("good", 0, 160), ("stain", 90, 256)):
        (root / name).mkdir(parents=True)
        for number in range(15):
            frame = np.full((32, 32, 3), rng.integers(low, high), np.uint8)
            cv2.imwrite(str(root / name / f"{number}.png"), frame)
    return root


def served(model: Recognizer, folder: Path, good: str) -> Counter[tuple[bool, str | None]]:
    """Frames by truth and verdict, as the model answers them."""
    return Counter(
        (path.parent.name == good, model.recognize(path.read_bytes(), Options()).verdict)
        for path in folder.rglob("*.*")
    )


def counts(figures: dict[str, Any]) -> dict[tuple[bool, str], int]:
    return {
        (truth == "good", verdict): figures[truth][verdict]["count"]
        for truth in ("good", "bad")
        for verdict in verdicts.VERDICTS
    }


@pytest.mark.parametrize("kind", ["classify", "anomaly"])
def test_figures_are_those_of_served_answers(
    kind: str, colours: Path, spots: Path, colours_frames: Path, surfaces: Path
) -> None:
    bundle, frames, good = (colours, colours_frames, "red")
    if kind == "anomaly":
        bundle, frames, good = (spots, surfaces, "good")
    model = load(bundle)
    proof = verdicts.prove_served(model, frames, "good").details()
    answers = served(model, frames, good)
    assert counts(proof) == {key: answers[key] for key in counts(proof)}
    escapes = proof["bad"]["pass"]
    assert escapes["interval"] == wilson(escapes["count"], escapes["frames"])
    curve = proof["curve"]
    own = next(point for point in curve["points"] if point["value"] == curve["own"])
    assert counts(own) == counts(proof)
    # Another policy of the curve, set on the device, gives what the curve says.
    for point in curve["points"][10:50:15]:
        changed = {curve["parameter"]: point["value"]}
        model.use_policy(DevicePolicy(msgspec.structs.replace(model.reader.policy, **changed)))
        answers = served(model, frames, good)
        assert counts(point) == {key: answers[key] for key in counts(point)}
    assert len({str(counts(point)) for point in curve["points"]}) > 3


def test_report_of_a_bundle_has_the_served_verdicts(
    request_of: Request, colours_frames: Path
) -> None:
    policy = VerdictPolicy(accept=("red",), min_probability=0.9)
    validation = labelled(colours_frames, request_of.labels)
    request = replace(request_of, verdict=policy, validation=validation, max_accuracy_drop=100.0)
    model = load(build(request, lambda _: None))
    report = json.loads((model.bundle.folder / "report.json").read_text())
    answers = served(model, colours_frames, "red")
    assert counts(report["verdict"]) == {key: answers[key] for key in counts(report["verdict"])}
    summary = model.manifest.report
    assert summary is not None
    assert summary.verdict is not None
    assert summary.verdict.good_unsure == answers[True, "unsure"] > 0
    assert (summary.verdict.good, summary.verdict.bad) == (12, 24)
    page = (model.bundle.folder / "report.html").read_text()
    assert "Proof of the verdict" in page
    assert "No frame was answered wrongly." in page


def test_wrong_labels_are_pictured_without_a_policy(
    request_of: Request, colours_frames: Path, tmp_path: Path
) -> None:
    frames = tmp_path / "frames.csv"
    rows = [f"{path},green" for path in sorted(colours_frames.glob("red/*"))]
    frames.write_text("\n".join(["path,label", *rows]))
    validation = labelled(frames, request_of.labels)
    request = replace(request_of, validation=validation, max_accuracy_drop=100.0)
    page = (build(request, lambda _: None) / "report.html").read_text()
    assert "12 in all" in page
    # Beside those on which the models differ most.
    assert page.count("data:image/jpeg") == 12 + 10


def test_values_that_are_not_finite_never_pass(colours: Path) -> None:
    reader = load(colours).reader
    frames = [verdicts.JudgedFrame(Path("x"), "blue", good=False, class_id=0)]
    values = [ClassValues(np.full(3, np.nan, np.float32))]
    [verdict] = verdicts.prove(reader, frames, values).verdicts
    assert verdict.verdict == "unsure"


def test_each_wrong_frame_is_listed_in_order(colours: Path, colours_frames: Path) -> None:
    model = load(colours)
    model.use_policy(DevicePolicy(VerdictPolicy(accept=("green",), min_probability=0.0)))
    proof = verdicts.prove_served(model, colours_frames, "good")
    model.use_policy(DevicePolicy(VerdictPolicy(accept=("red",), min_probability=0.0)))
    swapped = replace(proof, verdicts=verdicts.prove_served(model, colours_frames, "x").verdicts)
    kinds = [each["kind"] for each in swapped.details()["wrong"]]
    assert kinds == ["escape"] * 12 + ["refused"] * 12
    assert proof.details()["wrong"] == []


def test_command_prints_and_writes_the_proof(
    spots: Path, surfaces: Path, tmp_path: Path, capsys: Any
) -> None:
    report = tmp_path / "report"
    command = ["evaluate", str(spots), str(surfaces), "--verdict"]
    assert main([*command, "--report", str(report)]) == 0
    text = capsys.readouterr().out
    found = json.loads((report / "report.json").read_text())["verdict"]
    escapes, refused = found["bad"]["pass"], found["good"]["fail"]
    assert escapes["count"] > 0
    assert refused["count"] > 0
    assert f"escapes: {escapes['count']} of 15 bad frames passed" in text
    assert f"refused: {refused['count']} of 15 good frames failed" in text
    page = (report / "report.html").read_text()
    assert page.count("data:image/jpeg") == len(found["wrong"])
    policy = tmp_path / "policy.json"
    policy.write_text('{"threshold": 0.999, "min_probability": 0.5}')
    assert main([*command, "--policy", str(policy)]) == 0
    assert "escapes: 15 of 15 bad frames passed" in capsys.readouterr().out


def test_page_bounds_its_pictures(
    spots: Path, surfaces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from convert.evaluation import report

    monkeypatch.setattr(report, "PICTURES_MAX", 2)
    model = load(spots)
    proof = verdicts.prove_served(model, surfaces, "good")
    page = report.verdict_files(model, proof, proof.details())["report.html"].decode()
    assert len(proof.wrong) > 2
    assert page.count("data:image/jpeg") == 2
    assert f"{len(proof.wrong)} in all" in page
    assert "The first 2 are shown, report.json lists all." in page


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (None, "policy.json can't be read: No such file"),
        ("nonsense", "policy.json: it is not valid JSON"),
        ('{"accept": ["rod"]}', "policy.accept names rod, which labels.txt lacks: did you mean"),
        ('{"accept": ["red"], "min_probability": 2}', "policy.min_probability"),
    ],
)
def test_policy_file_with_a_fault_is_refused(
    policy: str | None,
    message: str,
    colours: Path,
    colours_frames: Path,
    tmp_path: Path,
    capsys: Any,
) -> None:
    file = tmp_path / "policy.json"
    if policy is not None:
        file.write_text(policy)
    command = ["evaluate", str(colours), str(colours_frames), "--verdict", "--policy", str(file)]
    assert main(command) == 1
    assert message in capsys.readouterr().err


def test_arguments_that_do_nothing_are_refused(
    request_of: Request, colours_frames: Path, spots: Path, capsys: Any
) -> None:
    plain = str(build(request_of, lambda _: None))
    frames = str(colours_frames)
    for command, message in (
        ([plain, frames, "--verdict"], "colours/1 has no verdict policy"),
        ([plain, frames, "--policy", "x"], "--policy does nothing without --verdict"),
        ([plain, frames, "--verdict", "--against", "x"], "--against compares models"),
        ([str(spots), frames, "--verdict"], "none of them is good: name the class"),
    ):
        assert main(["evaluate", *command]) == 1
        assert message in capsys.readouterr().err
