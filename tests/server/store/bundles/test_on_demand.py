"""Requests for models that are not in memory, and what happens while one is being loaded."""

import itertools
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from job_workers import await_that
from tiny_models import MakeModel, write_bundle

from server.config.thread_budget import LOADING_REQUESTS_MAX
from server.errors import ModelNotFoundError, NotReadyError
from server.recognition.admission import Admission
from server.recognition.frame import Limits
from server.recognition.interpreter import InterpreterPool
from server.recognition.manifest import Bundle
from server.recognition.tensor_model import Model, make_model
from server.store.bundles.folder import ModelsFolder
from server.store.bundles.loader import Loaded
from server.store.bundles.repository import BundleRepository
from server.store.bundles.serving_models import Limit
from server.store.bundles.version_history import read_choice


class Disk:
    """Loads models, of which `slow` only once `there` is set."""

    def __init__(self) -> None:
        self.there, self.asked = threading.Event(), list[str]()

    def load(self, bundle: Bundle) -> Model:
        self.asked.append(bundle.manifest.name)
        if bundle.manifest.name == "slow":
            assert self.there.wait(30)
        pool = InterpreterPool(bundle.model_path, 1)
        return make_model(bundle, pool, Admission(1, 4), Limits())


@pytest.fixture
def disk() -> Iterator[Disk]:
    made = Disk()
    yield made
    made.there.set()


@pytest.fixture
def store(tiny_model: MakeModel, tmp_path: Path, disk: Disk) -> BundleRepository:
    for name in ("first", "slow", "other"):
        write_bundle(tmp_path / name / "1", tiny_model("colors"))
    made = BundleRepository(ModelsFolder(tmp_path, "first"), disk.load)
    made.load("first")
    return made


def test_frame_waits_for_model_until_its_deadline(store: BundleRepository, disk: Disk) -> None:
    """A frame waits for a model no longer than its deadline."""
    with pytest.raises(NotReadyError, match="the model slow is being loaded") as refused:
        store.get("slow", until=time.monotonic() + 0.05)
    assert refused.value.retry_after == 1
    with pytest.raises(NotReadyError):
        store.get("slow", until=time.monotonic() - 1)
    assert store.get().manifest.name == "first"
    disk.there.set()
    assert store.get("slow").manifest.name == "slow"
    assert disk.asked == ["first", "slow"]


def test_a_bounded_number_of_requests_waits_for_models(store: BundleRepository, disk: Disk) -> None:
    with ThreadPoolExecutor(LOADING_REQUESTS_MAX) as requests:
        waiting = [requests.submit(store.get, "slow") for _ in range(LOADING_REQUESTS_MAX)]
        left = store._on_demand._places  # nothing else tells that all of them wait
        await_that(lambda: left._value == 0, "all requests to wait")
        with pytest.raises(NotReadyError, match=f"{LOADING_REQUESTS_MAX} requests wait for models"):
            store.get("other")
        disk.there.set()
        assert {answer.result(30).manifest.name for answer in waiting} == {"slow"}
    assert store.get("other").manifest.name == "other"


def test_an_unknown_model_is_not_waited_for(store: BundleRepository) -> None:
    with pytest.raises(ModelNotFoundError):
        store.get("nobody")


def test_frames_during_a_load_do_not_keep_the_model_out(
    tiny_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory that frames took while a model was loaded does not keep the model out."""
    for name in ("first", "crowded", "other"):
        write_bundle(tmp_path / name / "1", tiny_model("colors"))
    frames = list[bytes]()
    # What the process really takes may shrink meanwhile, by what other tests left.
    takes = itertools.count(step=10_000_000)
    monkeypatch.setattr(
        "server.store.bundles.loader.resident", lambda: next(takes) + sum(map(len, frames))
    )

    def load(bundle: Bundle) -> Model:
        if bundle.manifest.name == "crowded" and not frames:
            frames.append(b"x" * 80_000_000)
        return Disk().load(bundle)

    store = BundleRepository(ModelsFolder(tmp_path, "first"), load, limit=Limit(memory=70_000_000))
    store.load("first")
    store.get("crowded")
    assert store.memory()["crowded"] >= 80_000_000
    store.get("other")
    assert set(store.served()) == {"first", "other"}
    frames.clear()
    frames.append(b"")
    store.get("crowded")
    assert store.memory()["crowded"] < 70_000_000


def test_scan_of_a_removed_folder_skips_no_other(tiny_model: MakeModel, tmp_path: Path) -> None:
    """A scan that meets a folder which is gone skips no other folder."""
    for name in ("first", "other"):
        write_bundle(tmp_path / name / "1", tiny_model("colors"))
    store = BundleRepository(ModelsFolder(tmp_path, "first"), Disk().load)
    for name in ("other", "first"):
        store.load(name)
    write_bundle(tmp_path / "first" / "2", tiny_model("colors"))
    shutil.rmtree(tmp_path / "other")
    (tmp_path / "other").symlink_to("other")
    store.look(store.look({}))
    assert store.get("first").manifest.version == 2
    assert store.get("other").manifest.version == 1


def test_a_look_does_not_undo_a_rollback(tiny_model: MakeModel, tmp_path: Path) -> None:
    for version in ("1", "2"):
        write_bundle(tmp_path / "colors" / version, tiny_model("colors"))
    looks = list[threading.Thread]()

    def look_during(loaded: Loaded) -> None:
        if loaded.recognizer.manifest.version == 1:
            looks.append(threading.Thread(target=store.look, args=(seen,)))
            looks[0].start()
            # It can't end before the rollback, whose turn it is, but may come as far as that.
            looks[0].join(0.3)

    store = BundleRepository(ModelsFolder(tmp_path, "colors"), Disk().load, on_loaded=look_during)
    store.load("colors")
    seen = store.look({})
    assert store.rollback("colors").manifest.version == 1
    looks[0].join(30)
    assert store.get("colors").manifest.version == 1
    choice = read_choice(tmp_path / "colors")
    assert choice is not None
    assert (choice.version, choice.skip) == (1, (2,))
