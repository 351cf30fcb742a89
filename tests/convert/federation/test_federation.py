"""A federation by Flower's own programs on this machine, and all that went over its wires."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from convert.data.dataset import read_dataset
from convert.federation import flower, wire
from convert.federation.plans import Course, ServerPlan
from convert.federation.server.serve import environment
from convert.federation.simulation import divide, simulate
from convert.sources import imagenet
from convert.terminal import Terminal
from convert.training.inputs import read_pixels, to_batch
from server.recognition.frame import Limits
from server.recognition.manifest import read_bundle

pytest.importorskip("flwr", reason="flwr is not installed: it needs an environment of its own")

HEAD_ROUNDS, ROUNDS = 1, 2
COURSE = Course(
    alpha=0.35,
    size=32,
    weights="none",
    head_rounds=HEAD_ROUNDS,
    rounds=ROUNDS,
    epochs=1,
    rate=1e-3,
    batch=4,
)
# Long enough that no two pictures share them, short enough that one piece of the wire holds many.
PIECE = 64


class Ran:
    """What is left of the federation: its bundle, its sites' folders, the bytes of its wires."""

    def __init__(self, folder: Path, work: Path, bundle: Path, wires: dict[str, bytes]) -> None:
        self.folder, self.work, self.bundle, self.wires = folder, work, bundle, wires

    def account(self, site: str) -> tuple[wire.Entry, ...]:
        return wire.read_account(self.work / "sites" / site)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A federation of two sites on 24 grainy pictures, as PNG and as JPEG."""
    root = tmp_path_factory.mktemp("federation")
    for i in range(24):
        name, level = ("dark", 60) if i % 2 else ("light", 190)
        (root / "pictures" / name).mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).normal(level, 40, (40, 40, 3)).clip(0, 255)
        suffix = "png" if i % 3 else "jpg"
        cv2.imwrite(str(root / "pictures" / name / f"{i}.{suffix}"), noise.astype(np.uint8))
    heard: dict[str, bytearray] = {f"site-{n} {way}": bytearray() for n in (1, 2) for way in WAYS}

    def watcher(site: str) -> wire.Watcher:
        return lambda way, piece: heard[f"{site} {way}"].extend(piece)

    plan = ServerPlan(
        sites=2,
        course=COURSE,
        name="tones",
        out=root / "models",
        accept=("light",),
        # Two rounds on a dozen pictures of noise: what the int8 weights lose says nothing.
        max_accuracy_drop=100,
    )
    watchers = {site: watcher(site) for site in ("site-1", "site-2")}
    code = simulate(root / "pictures", plan, 5.0, root / "work", Terminal(), watchers)
    assert code == 0
    wires = {name: bytes(data) for name, data in heard.items()}
    return Ran(root / "pictures", root / "work", root / "models" / "tones" / "1", wires)


WAYS = ("sent", "received")


def test_no_picture_leaves_its_site(ran: Ran) -> None:
    """Neither a file's bytes nor its pixels, as bytes or as the network's input, in either way."""
    recipe = imagenet.recipe(COURSE.size)
    sought = {}
    for path in sorted(p for p in ran.folder.rglob("*") if p.is_file()):
        pixels = read_pixels(path, recipe, Limits())
        for kind, data in (
            ("file", path.read_bytes()),
            ("pixels", pixels.tobytes()),
            ("input", to_batch([pixels], recipe).tobytes()),
        ):
            middle = len(data) // 2
            sought[path.name, kind] = data[middle : middle + PIECE]
    assert len(sought) == 72
    for name, data in ran.wires.items():
        assert len(data) > 1_000_000, name
        assert [key for key, piece in sought.items() if piece in data] == []


def test_the_search_finds_what_did_travel(ran: Ran) -> None:
    """The wires are readable: the float model's own bytes came over each of them."""
    for site in ("site-1", "site-2"):
        model = (ran.work / "sites" / site / "float.tflite").read_bytes()
        middle = len(model) // 2
        assert model[middle : middle + PIECE] in ran.wires[f"{site} received"]


def test_messages_carry_weights_and_counts_alone(ran: Ran) -> None:
    for site in ("site-1", "site-2"):
        account = ran.account(site)
        assert {(e.way, e.kind, name) for e in account for name in e.records} == {
            ("sent", "query.describe", "config"),
            ("received", "query.prepare", "arrays"),
            ("received", "query.prepare", "config"),
            ("sent", "query.prepare", "arrays"),
            ("sent", "query.prepare", "config"),
            ("received", "train", "arrays"),
            ("received", "train", "config"),
            ("sent", "train", "arrays"),
            ("sent", "train", "metrics"),
            ("received", "query.means", "arrays"),
            ("received", "query.means", "config"),
            ("sent", "query.means", "arrays"),
            ("sent", "query.means", "config"),
            ("received", "evaluate.prove", "arrays"),
            ("received", "evaluate.prove", "config"),
            ("sent", "evaluate.prove", "config"),
            ("received", "query.finish", "config"),
            ("sent", "query.finish", "config"),
        }


def test_the_volume_is_that_of_the_weights(ran: Ran) -> None:
    """Each round takes what is trained once each way."""
    weights = sum(size for size in sizes(ran.account("site-1"), "received", "train", "arrays"))
    for site in ("site-1", "site-2"):
        account = ran.account(site)
        for way in WAYS:
            trained = sizes(account, way, "train", "arrays")
            assert len(trained) == HEAD_ROUNDS + ROUNDS
            assert sum(trained) == weights
        others = wire.total(account, "sent") - weights
        assert others < weights / 10
        # HTTP's own bytes come on top of the messages.
        assert len(ran.wires[f"{site} sent"]) > wire.total(account, "sent")


def sizes(account: tuple[wire.Entry, ...], way: str, kind: str, record: str) -> list[int]:
    return [e.records[record] for e in account if (e.way, e.kind) == (way, kind)]


def test_the_bundle_is_proved_on_all_held_back_frames(ran: Ran) -> None:
    bundle = read_bundle(ran.bundle)
    assert [label.name for label in bundle.labels] == ["dark", "light"]
    details: dict[str, Any] = json.loads((ran.bundle / "federation.json").read_text())
    held = sum(site["frames"] for site in details["sites"])
    assert sorted(site["name"] for site in details["sites"]) == ["site-1", "site-2"]
    report = bundle.manifest.report
    assert report is not None
    assert report.images == held > 0
    trained = sum(len(part.frames) for part in divide(read_dataset(ran.folder), 2, 5.0, 0)) - held
    assert bundle.manifest.source == f"trained on {trained} frames that stayed at 2 sites"
    # No picture is in the bundle either.
    assert sorted(p.name for p in ran.bundle.iterdir()) == [
        "bundle.json",
        "federation.json",
        "labels.txt",
        "model.tflite",
    ]


def test_a_server_runs_no_program_of_a_stranger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reaches Flower's port may start a run; what comes with it is refused."""
    port, log, env = flower.free_port(), tmp_path / "log", environment(tmp_path)
    program = tmp_path / "flower" / "app" / "stranger.py"
    program.parent.mkdir(parents=True)
    program.write_text(f"open({str(tmp_path / 'was-here')!r}, 'w')\napp = None\n")
    other = flower.APP.replace("convert.federation.server.app:app", "stranger:app")
    monkeypatch.setattr(flower, "APP", other)
    with flower.server("127.0.0.1", port, flower.Security(), env, log):
        run = flower.start_run(port, flower.Security(), env, tmp_path / "flower")
        while not (status := flower.run_status(run, env)).startswith("finished"):
            pass
    assert status == "finished:failed"
    assert not (tmp_path / "was-here").exists()
