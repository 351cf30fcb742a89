"""Verdict policies that were set on this device: kept whole, and never laxer by damage."""

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detector_models import constant_detector
from images import encode, plain
from tiny_models import MakeModel, change_manifest, write_bundle

from server.config.settings import Settings
from server.engine import make_store
from server.errors import InvalidFieldError, NotReadyError, StorageError, VersionRefusedError
from server.observe.logs import LOGGER
from server.observe.metrics import Metrics
from server.recognition.admission import Admission
from server.recognition.answers import Answer, Options
from server.recognition.detection.manifest import DetectionOutputs, DetectionPolicy
from server.recognition.manifest import MODEL, Recipe, VerdictPolicy, digest
from server.recognition.recognizer import Recognizer
from server.store.bundles.layout import policy_path
from server.store.bundles.repository import BundleRepository

RED = encode(plain((255, 0, 0)), "PNG")
NO_RED = {"accept": ["green"]}


def store_of(models: Path) -> BundleRepository:
    made = Settings(models=str(models), interpreters=1, wide_interpreter=False)
    return make_store(made, Metrics(), Admission(1, 4))


@pytest.fixture
def version(tiny_model: MakeModel, tmp_path: Path) -> Path:
    """models/colors/1, whose own policy passes red."""
    return write_bundle(
        tmp_path / "models" / "colors" / "1",
        tiny_model("colors"),
        verdict=VerdictPolicy(accept=("red",)),
    )


@pytest.fixture
def store(version: Path) -> BundleRepository:
    """A repository in which colors/1 serves, and red fails by a policy of this device."""
    store = store_of(version.parents[1])
    store.load("colors")
    store.set_policy("colors", 1, NO_RED)
    return store


def see_red(store: BundleRepository) -> Answer:
    model = store.load("colors")
    assert isinstance(model, Recognizer)
    return model.recognize(RED, Options())


def flip(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"green", b"red"))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def plain_policy(path: Path) -> None:
    path.write_text(json.dumps({"accept": ["red"]}))


@pytest.mark.parametrize("damage", [flip, empty, cut, folder, fifo, plain_policy])
def test_damaged_policy_refuses_its_version(
    store: BundleRepository, version: Path, damage: Callable[[Path], None]
) -> None:
    """The version before it serves, if there is one."""
    assert see_red(store).verdict == "fail"
    damage(policy_path(version))
    again = store_of(version.parents[1])
    with pytest.raises(NotReadyError, match=r"policy-1\.json can't be used: .*\. DELETE"):
        again.load("colors")
    with pytest.raises(VersionRefusedError, match="can't be used"):
        again.policy("colors", 1)
    shutil.copytree(version, version.parent / "2")
    change_manifest(version.parent / "2", version=2)
    policy_path(version).rename(policy_path(version.parent / "2"))
    assert see_red(store_of(version.parents[1])).version == 1


def test_policy_that_is_set_again_mends_damage(store: BundleRepository, version: Path) -> None:
    flip(policy_path(version))
    again = store_of(version.parents[1])
    with pytest.raises(NotReadyError):
        again.load("colors")
    again.set_policy("colors", 1, NO_RED)
    assert again.served()
    assert see_red(again).verdict == "fail"


def test_policy_that_a_person_removed_is_seen(store: BundleRepository, version: Path) -> None:
    flip(policy_path(version))
    again = store_of(version.parents[1])
    with pytest.raises(NotReadyError):
        again.load("colors")
    policy_path(version).unlink()
    assert see_red(again).verdict == "pass"


def test_policy_of_another_model_is_ignored(
    store: BundleRepository, version: Path, tiny_model: MakeModel, caplog: Any
) -> None:
    """A person put another model under the same number; the bundle's policy is that model's."""
    shutil.copy(tiny_model("slow"), version / MODEL)
    sha256 = {name: digest(version / name) for name in (MODEL, "labels.txt")}
    change_manifest(version, sha256=sha256)
    logging.getLogger(LOGGER).addHandler(caplog.handler)
    again = store_of(version.parents[1])
    assert see_red(again).verdict == "pass"
    assert again.policy("colors").changed is None
    logging.getLogger(LOGGER).removeHandler(caplog.handler)
    assert "a kept verdict policy is ignored" in caplog.messages


def test_policy_that_no_longer_fits_refuses_its_version(
    store: BundleRepository, version: Path
) -> None:
    (version / "labels.txt").write_text("red\nverdant\nblue\n")
    sha256 = {name: digest(version / name) for name in (MODEL, "labels.txt")}
    change_manifest(version, sha256=sha256)
    with pytest.raises(NotReadyError, match=r"policy\.accept names green, which labels\.txt lacks"):
        store_of(version.parents[1]).load("colors")


def test_policy_that_can_not_be_kept_changes_nothing(
    store: BundleRepository, version: Path
) -> None:
    path = policy_path(version)
    path.with_name(f".{path.name}.new").mkdir()
    before = store.policy("colors")
    with pytest.raises(StorageError, match="and is not changed"):
        store.set_policy("colors", 1, {"accept": ["red"]})
    assert store.policy("colors") == before
    assert see_red(store).verdict == "fail"


def test_reload_keeps_the_policy(store: BundleRepository, version: Path) -> None:
    """Of a version whose files were touched, and at the next start."""
    os.utime(version / MODEL)
    store.activate("colors", 1)
    assert see_red(store).verdict == "fail"
    assert see_red(store_of(version.parents[1])).verdict == "fail"


def test_golden_frames_do_not_depend_on_the_policy(tiny_model: MakeModel, tmp_path: Path) -> None:
    folder = write_bundle(
        tmp_path / "models" / "colors" / "1",
        tiny_model("colors"),
        golden=(("golden/red.png", RED),),
        verdict=VerdictPolicy(accept=("red",)),
    )
    golden = {"file": "golden/red.png", "label": "red", "probability": 1.0}
    change_manifest(folder, golden=[golden])
    store = store_of(folder.parents[1])
    store.set_policy("colors", 1, NO_RED)
    assert see_red(store).verdict == "fail"


@pytest.fixture
def screws(tmp_path: Path) -> BundleRepository:
    """A repository of a detector that finds a screw and a nut in any frame; without a policy."""
    boxes = np.array([[[8, 8, 16, 16, 0.9, 0], [40, 40, 56, 56, 0.8, 1]]], np.float32)
    (tmp_path / "model.tflite").write_bytes(constant_detector([boxes]))
    recipe = Recipe(width=64, height=64, scale=1 / 255)
    write_bundle(
        tmp_path / "models" / "screws" / "1",
        tmp_path / "model.tflite",
        ("screw", "nut"),
        recipe,
        task="detect",
        detection=DetectionOutputs(convention="nms", box_format="xyxy"),
    )
    return store_of(tmp_path / "models")


@pytest.mark.parametrize(
    ("policy", "verdict", "reason"),
    [
        ({"expected": {"screw": 1, "nut": 1}}, "pass", "counts"),
        ({"expected": {"screw": 2}}, "fail", "expected"),
        ({"forbidden": ["nut"]}, "fail", "forbidden"),
        ({"forbidden": ["nut"], "min_probability": 0.85}, "unsure", "min_probability"),
        ({"forbidden": ["nut"], "region": [0, 0, 0.5, 0.5]}, "pass", "counts"),
        ({"minimum": {"nut": 1}, "region": [0, 0, 0.5, 0.5]}, "fail", "minimum"),
        ({"maximum": {"nut": 0}}, "fail", "maximum"),
        ({"accept": ["screw"]}, "fail", "not_accepted"),
        ({"accept": ["screw"], "region": [0.5, 0, 0.5, 0.5]}, "unsure", "no_label"),
    ],
)
def test_detector_gets_each_rule(
    screws: BundleRepository, policy: Any, verdict: str, reason: str
) -> None:
    model = screws.load("screws")
    assert isinstance(model, Recognizer)
    assert model.recognize(RED, Options()).verdict is None
    screws.set_policy("screws", 1, policy)
    answer = model.recognize(RED, Options())
    assert (answer.verdict, answer.verdict_reason) == (verdict, reason)
    assert len(answer.details) == 2
    assert isinstance(screws.policy_of("screws", 1), DetectionPolicy)


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ({}, "policy has no rule"),
        ({"min_probability": 0.9}, "policy has no rule"),
        ({"expected": {"bolt": 1}}, "policy.expected names bolt"),
        ({"minimum": {"screw": -1}}, "policy.minimum.screw should be a whole number"),
        ({"maximum": {"screw": 1.5}}, "policy.maximum.screw should be a whole number"),
        ({"forbidden": ["nuts"]}, "policy.forbidden names nuts, which labels.txt lacks: did you m"),
        ({"accept": ["nut"], "region": [0, 0, 1]}, "policy.region should be a list of 4 items"),
        ({"accept": ["nut"], "region": [0, 0, 0, 1]}, r"policy.region\[2\] should be a number"),
        ({"accept": ["nut"], "region": [0.5, 0, 0.6, 1]}, "policy.region reaches beyond"),
        ({"accept": ["nut"], "min_familiarity": 0.5}, "policy.min_familiarity needs a model"),
        ({"accept": ["nut"], "threshold": 0.5}, "policy.threshold is not known here"),
        ({"minimum": {"nut": 3}, "maximum": {"nut": 2}}, "policy contradicts itself about nut"),
    ],
)
def test_detector_refuses_a_policy_that_does_not_fit(
    screws: BundleRepository, policy: Any, words: str
) -> None:
    screws.load("screws")
    with pytest.raises(InvalidFieldError, match=words):
        screws.set_policy("screws", 1, policy)
    assert screws.policy("screws").policy is None
