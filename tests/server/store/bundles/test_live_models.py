"""Versions that come and go while the repository serves."""

import itertools
import logging
import os
import queue
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from images import encode, plain
from job_workers import await_that
from tiny_models import COLORS, MakeModel, change_manifest, write_bundle

from server.config.settings import Settings
from server.engine import make_store, start_loading
from server.errors import (
    ModelNotFoundError,
    NothingToRollBackError,
    NotReadyError,
    VersionPinnedError,
    VersionRefusedError,
)
from server.observe.logs import LOGGER
from server.observe.metrics import Metrics
from server.recognition.admission import Admission
from server.recognition.answers import Answer, Options
from server.recognition.frame import Limits
from server.recognition.interpreter import InterpreterPool
from server.recognition.manifest import LABELS, MANIFEST, MODEL, Bundle, Golden
from server.recognition.recognizer import Recognizer
from server.recognition.tensor_model import Model, make_model
from server.store.bundles.folder import ModelsFolder
from server.store.bundles.repository import BundleRepository
from server.store.bundles.version_history import CHOICE_FILE, VersionChoice, candidates, read_choice

RED = encode(plain((255, 0, 0)), "PNG")


def store_of(models: Path, metrics: Metrics | None = None, **settings: Any) -> BundleRepository:
    made = Settings(models=str(models), interpreters=1, wide_interpreter=False, **settings)
    return make_store(made, metrics or Metrics(), Admission(1, 4))


@pytest.fixture
def model(tiny_model: MakeModel, tmp_path: Path) -> Path:
    """models/colors with version 1, for the test to add to."""
    write_bundle(tmp_path / "models" / "colors" / "1", tiny_model("colors"))
    return tmp_path / "models" / "colors"


@pytest.fixture
def store(model: Path) -> BundleRepository:
    """A repository in which colors/1 serves."""
    store = store_of(model.parent)
    store.load("colors")
    return store


def see_red(model: object) -> Answer:
    assert isinstance(model, Recognizer)
    return model.recognize(RED, Options())


def serving(store: BundleRepository) -> int:
    return store.get("colors").manifest.version


def test_a_refresh_swaps_the_newest_version_in(store: BundleRepository, model: Path) -> None:
    shutil.copytree(model / "1", model / "2")
    change_manifest(model / "2", version=2)
    assert serving(store) == 1
    assert store.refresh("colors").manifest.version == 2
    assert serving(store) == 2


def test_frames_in_hand_keep_their_version(store: BundleRepository, model: Path) -> None:
    held = store.get("colors")
    add(model, 2)
    store.refresh("colors")
    answer = see_red(held)
    assert (answer.version, answer.label) == (1, "red")
    assert see_red(store.get("colors")).version == 2


class Events(logging.Handler):
    """The server's log lines, as they come."""

    def __init__(self) -> None:
        super().__init__()
        self.arrived: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()

    def emit(self, record: logging.LogRecord) -> None:
        self.arrived.put(record)

    def await_fields(self, event: str) -> dict[str, Any]:
        while (record := self.arrived.get(timeout=30)).getMessage() != event:
            continue
        fields: dict[str, Any] = record.__dict__["fields"]
        return fields


@pytest.fixture
def events(departed: None) -> Iterator[Events]:
    """The log lines of one test."""
    handler, logger = Events(), logging.getLogger(LOGGER)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_the_old_version_goes_with_its_last_holder(
    store: BundleRepository, model: Path, events: Events
) -> None:
    held = store.get("colors")
    add(model, 2)
    store.refresh("colors")
    assert events.await_fields("model loaded")["model"] == "colors/2"
    both = store.memory()["colors"]
    assert events.arrived.empty()
    assert see_red(held).version == 1
    del held
    fields = events.await_fields("model unloaded")
    assert (fields["model"], fields["reason"]) == ("colors/1", "swap")
    assert store.memory()["colors"] < both


def add(model: Path, version: int) -> Path:
    folder = model / str(version)
    shutil.copytree(model / "1", folder)
    change_manifest(folder, version=version)
    return folder


def spoil(folder: Path, how: str, tiny_model: MakeModel) -> None:
    """Makes the good version at `folder` one that must not serve."""
    if how == "corrupted model":
        data = bytearray((folder / MODEL).read_bytes())
        data[len(data) // 2] ^= 0xFF
        (folder / MODEL).write_bytes(data)
    elif how == "swapped labels":
        (folder / LABELS).write_text("green\nred\nblue\n")
    elif how == "wrong sha256":
        manifest = msgspec.json.decode((folder / MANIFEST).read_bytes())
        change_manifest(folder, sha256=manifest["sha256"] | {MODEL: "0" * 64})
    elif how == "half copied":
        (folder / MANIFEST).unlink()
    elif how == "cut short":
        (folder / MODEL).write_bytes((folder / MODEL).read_bytes()[:1000])
    else:
        shutil.rmtree(folder)
        made = {
            "int8 with a float recipe": "int8",
            "two outputs": "two_outputs",
            "output that is not finite": "nan",
            "golden output that is not finite": "nan_if_bright",
        }
        frame = ("golden/red.png", RED)
        golden = "golden" in how or how == "swapped labels, digests made anew"
        labels = ("green", "red", "blue") if how.startswith("swapped") else COLORS
        label = "green" if how == "failing golden frame" else "red"
        write_bundle(
            folder,
            tiny_model(made.get(how, "colors")),
            labels,
            golden=(frame,) if golden else (),
            quantization="int8" if "int8" in how else "float32",
        )
        if golden:
            expected = Golden(file=frame[0], label=label, probability=1.0)
            change_manifest(folder, golden=msgspec.to_builtins((expected,)))


FAULTS = {
    "corrupted model": "model.tflite is damaged: its sha256 differs",
    "swapped labels": "labels.txt is damaged: its sha256 differs",
    "swapped labels, digests made anew": "should be red at 1.000 but this model says green",
    "wrong sha256": "model.tflite is damaged: its sha256 differs",
    "int8 with a float recipe": "(height, width, channels) but the model takes int8",
    "two outputs": "this model has 1 and 2",
    "half copied": "has no bundle.json",
    "cut short": "model.tflite is damaged: its sha256 differs",
    "output that is not finite": "the model's output for an empty image is not finite",
    "golden output that is not finite": "golden/red.png: the model's output is not finite",
    "failing golden frame": "should be green at 1.000 but this model says red",
}


@pytest.mark.parametrize("how", FAULTS)
def test_a_bad_version_is_refused_while_the_old_one_serves(
    store: BundleRepository, model: Path, tiny_model: MakeModel, how: str
) -> None:
    spoil(add(model, 2), how, tiny_model)
    with pytest.raises(VersionRefusedError) as refused:
        store.refresh("colors")
    assert FAULTS[how] in refused.value.message
    with pytest.raises(VersionRefusedError):
        store.activate("colors", 2)
    (failure,) = store.failures("colors")
    assert failure.version == 2
    assert FAULTS[how] in failure.reason
    assert see_red(store.get("colors")).version == 1
    assert store.ready() == (True, "")


def test_an_unforeseen_error_is_its_versions_failure_alone(model: Path, events: Events) -> None:
    def load(bundle: Bundle) -> Model:
        if bundle.manifest.version == 2:
            raise IndexError("tuple index out of range")
        pool = InterpreterPool(bundle.model_path, 1)
        return make_model(bundle, pool, Admission(1, 4), Limits())

    add(model, 2)
    store = BundleRepository(ModelsFolder(model.parent, "colors"), load)
    start_loading(store, Settings())
    assert events.await_fields("version failed") == {"model": "colors/2"}
    assert events.await_fields("version refused")["model"] == "colors/2"
    assert store.load("colors").manifest.version == 1
    (failure,) = store.failures("colors")
    assert failure.version == 2
    assert failure.reason == "it can't be loaded: IndexError: tuple index out of range"


def test_refused_version_is_retried_if_its_files_change(
    store: BundleRepository, model: Path
) -> None:
    """A refused version is tried again when its files change."""
    folder = add(model, 2)
    manifest = (folder / MANIFEST).read_bytes()
    (folder / MANIFEST).unlink()
    with pytest.raises(VersionRefusedError):
        store.refresh("colors")
    (folder / MANIFEST).write_bytes(manifest)
    assert store.refresh("colors").manifest.version == 2
    assert store.failures("colors") == ()


def test_scan_takes_a_version_once_its_files_are_stable(
    store: BundleRepository, model: Path
) -> None:
    """A scan takes a version once its files stay as they are."""
    seen = store.look({})
    folder = add(model, 2)
    (folder / MANIFEST).rename(model.parent / "kept")
    seen = store.look(seen)
    assert store.failures("colors") == ()
    (model.parent / "kept").rename(folder / MANIFEST)
    seen = store.look(seen)
    assert serving(store) == 1
    seen = store.look(seen)
    assert serving(store) == 2
    store.look(seen)
    assert serving(store) == 2


def test_a_look_brings_a_default_up_that_could_not_start(model: Path) -> None:
    kept = (model / "1" / MANIFEST).read_bytes()
    (model / "1" / MANIFEST).unlink()
    store = store_of(model.parent)
    with pytest.raises(NotReadyError):
        store.load("colors")
    (model / "1" / MANIFEST).write_bytes(kept)
    store.look(store.look({}))
    assert store.ready() == (True, "")


def test_rollback_goes_back_and_survives_restart(store: BundleRepository, model: Path) -> None:
    """A rollback goes to the version before and survives a restart."""
    add(model, 2)
    store.refresh("colors")
    assert store.rollback("colors").manifest.version == 1
    assert read_choice(model) == VersionChoice(version=1, skip=(2,))
    again = store_of(model.parent)
    assert again.load("colors").manifest.version == 1
    assert again.refresh("colors").manifest.version == 1
    add(model, 3)
    assert again.refresh("colors").manifest.version == 3


def test_each_rollback_goes_one_further(store: BundleRepository, model: Path) -> None:
    for version in (2, 3):
        add(model, version)
        store.refresh("colors")
    assert store.rollback("colors").manifest.version == 2
    assert store.rollback("colors").manifest.version == 1
    with pytest.raises(NothingToRollBackError):
        store.rollback("colors")


def test_rollback_after_restart_skips_rolled_back(store: BundleRepository, model: Path) -> None:
    """A rollback after a restart serves nothing that was rolled back from."""
    add(model, 2)
    store.refresh("colors")
    store.rollback("colors")
    add(model, 3)
    store.refresh("colors")
    assert read_choice(model) == VersionChoice(version=3, skip=(2,), history=(1,))
    again = store_of(model.parent)
    assert again.load("colors").manifest.version == 3
    assert again.rollback("colors").manifest.version == 1


def test_no_fallback_serves_what_was_rolled_back_from(store: BundleRepository, model: Path) -> None:
    add(model, 2)
    store.refresh("colors")
    store.rollback("colors")
    add(model, 3)
    shutil.rmtree(model / "1")
    again = store_of(model.parent)
    assert again.load("colors").manifest.version == 3
    with pytest.raises(NothingToRollBackError):
        again.rollback("colors")


def test_a_rollback_knows_what_served_since_it_was_kept(
    store: BundleRepository, model: Path
) -> None:
    add(model, 2)
    store.look(store.look({}))
    assert read_choice(model) == VersionChoice(version=2, history=(1,))
    add(model, 3)
    again = store_of(model.parent)
    assert again.load("colors").manifest.version == 3
    assert again.rollback("colors").manifest.version == 2
    assert again.rollback("colors").manifest.version == 1


def test_a_swap_needs_no_folder_that_can_be_written(
    store: BundleRepository, model: Path, events: Events
) -> None:
    add(model, 2)
    (model / f".{CHOICE_FILE}.new").mkdir()  # stands where the file is written, for root as well
    assert store.refresh("colors").manifest.version == 2
    fields = events.await_fields(
        "the choice of a version can't be kept and holds until the next start"
    )
    assert fields["file"] == str(model / CHOICE_FILE)
    assert store.rollback("colors").manifest.version == 1


def test_choice_that_is_not_kept_holds_till_a_restart(store: BundleRepository, model: Path) -> None:
    add(model, 2)
    (model / f".{CHOICE_FILE}.new").mkdir()
    store.refresh("colors")
    store.rollback("colors")
    store.look(store.look({}))
    assert serving(store) == 1


def test_rollback_of_unloaded_model_goes_below_served(store: BundleRepository, model: Path) -> None:
    """A rollback of a model that is not in memory goes below the version that would serve."""
    with pytest.raises(NothingToRollBackError):
        store_of(model.parent).rollback("colors")
    add(model, 2)
    store.refresh("colors")
    add(model, 3)
    again = store_of(model.parent)
    assert again.rollback("colors").manifest.version == 2
    assert store_of(model.parent).rollback("colors").manifest.version == 1
    with pytest.raises(NothingToRollBackError):
        store_of(model.parent).rollback("colors")


def test_a_rollback_undoes_an_activation(store: BundleRepository, model: Path) -> None:
    add(model, 2)
    store.refresh("colors")
    store.activate("colors", 1)
    assert store.rollback("colors").manifest.version == 2


def test_rollback_skips_version_that_no_longer_verifies(
    store: BundleRepository, model: Path, tiny_model: MakeModel
) -> None:
    """A rollback passes over a version that no longer verifies."""
    for version in (2, 3):
        add(model, version)
        store.refresh("colors")
    spoil(model / "2", "corrupted model", tiny_model)
    assert store.rollback("colors").manifest.version == 1


def test_a_version_that_is_not_there_can_not_be_activated(store: BundleRepository) -> None:
    with pytest.raises(ModelNotFoundError, match="holds no version 7"):
        store.activate("colors", 7)


def test_a_pinned_version_stays(model: Path) -> None:
    add(model, 2)
    store = store_of(model.parent, version=1)
    assert store.load("colors").manifest.version == 1
    assert store.refresh("colors").manifest.version == 1
    with pytest.raises(VersionPinnedError, match="pins colors to 1"):
        store.activate("colors", 2)
    with pytest.raises(VersionPinnedError):
        store.rollback("colors")


@pytest.mark.parametrize("content", [b"{", bytes(40), b'{"version": 1, "\xff": 2}'])
def test_a_damaged_choice_is_ignored(model: Path, content: bytes) -> None:
    (model / CHOICE_FILE).write_bytes(content)
    store = store_of(model.parent)
    assert store.load("colors").manifest.version == 1
    (aside,) = model.glob(f"{CHOICE_FILE}.damaged-*")
    assert aside.read_bytes() == content
    assert store.activate("colors", 1).manifest.version == 1
    assert read_choice(model) == VersionChoice(version=1)


@pytest.mark.parametrize("kind", ["folder", "FIFO", "link"])
def test_a_choice_that_is_no_file_stops_no_other(model: Path, kind: str) -> None:
    make: dict[str, Callable[[Path], None]] = {
        "folder": Path.mkdir,
        "FIFO": os.mkfifo,
        "link": lambda path: path.symlink_to("nowhere/at/all"),
    }
    make[kind](model / CHOICE_FILE)
    store = store_of(model.parent)
    assert store.load("colors").manifest.version == 1
    assert store.activate("colors", 1).manifest.version == 1
    assert read_choice(model) == VersionChoice(version=1)


@pytest.mark.parametrize(
    ("choice", "pinned", "order"),
    [
        (None, None, (4, 3, 2, 1)),
        (VersionChoice(version=2, skip=(3,)), None, (4, 2, 1)),
        (VersionChoice(version=2, skip=(3, 4)), None, (2, 1)),
        (VersionChoice(version=9), None, (4, 3, 2, 1)),
        (VersionChoice(version=2, skip=(3,)), 3, (3,)),
        (None, 7, ()),
    ],
)
def test_the_order_in_which_versions_are_tried(
    choice: VersionChoice | None, pinned: int | None, order: tuple[int, ...]
) -> None:
    assert candidates((4, 3, 2, 1), choice, pinned) == order


def test_a_model_that_came_later_is_served(store: BundleRepository, model: Path) -> None:
    shutil.copytree(model / "1", model.parent / "shapes" / "1")
    change_manifest(model.parent / "shapes" / "1", name="shapes")
    assert store.get("shapes").manifest.name == "shapes"


def test_least_recently_used_model_goes_if_memory_short(
    tiny_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The least recently used model goes if memory is short."""
    for name in ("a", "b", "c", "d"):
        write_bundle(tmp_path / name / "1", tiny_model("slow"))
    # What the process really takes is other tests' too.
    metrics, size = Metrics(), 100_000_000
    takes = itertools.count(step=size)
    monkeypatch.setattr("server.store.bundles.loader.resident", lambda: next(takes))
    store = store_of(tmp_path, metrics, model="a", models_memory_mb=3.2 * size / 1e6)
    store.load("a")
    for name in ("b", "c", "b", "d"):
        assert see_red(store.get(name)).model == name
        assert sum(store.memory().values()) <= 3.2 * size
    assert set(store.served()) == {"a", "b", "d"}
    # It is told of after its room is free.
    unload = 'lineside_model_unloads_total{model="c",reason="memory"} 1.0'
    await_that(lambda: unload in metrics.render().decode(), "c counted as unloaded")
    assert "lineside_models_loaded 3.0" in metrics.render().decode()


def test_a_model_that_no_budget_fits_is_refused(tiny_model: MakeModel, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_bundle(tmp_path / name / "1", tiny_model("slow"))
    store = store_of(tmp_path, model="a", models_memory_mb=0.001)
    store.load("a")
    with pytest.raises(NotReadyError, match=r"b needs about .* MB and `models_memory_mb` leaves"):
        store.get("b")


def test_a_model_that_can_never_fit_lets_none_go(tiny_model: MakeModel, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_bundle(tmp_path / name / "1", tiny_model("colors"))
    large = tmp_path / "large.tflite"
    large.write_bytes(tiny_model("colors").read_bytes() + bytes(60_000_000))
    write_bundle(tmp_path / "huge" / "1", large)
    store = store_of(tmp_path, model="a", models_memory_mb=100)
    for name in ("a", "b"):
        store.load(name)
    # Once in the file and once in the interpreter.
    with pytest.raises(NotReadyError, match="huge needs about 120 MB and `models_memory_mb`"):
        store.get("huge")
    assert set(store.served()) == {"a", "b"}
