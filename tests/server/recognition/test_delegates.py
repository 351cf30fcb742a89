"""LiteRT delegates, with a small one that is compiled here, which can fail on purpose."""

import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import requests
from images import encode, plain
from server_process import live_server
from tiny_models import COLORS, SIDE, MakeModel, change_manifest, write_bundle

from server.config.settings import Settings
from server.engine import make_store
from server.errors import BundleError, NotReadyError, SettingsError
from server.observe.metrics import Metrics
from server.recognition.admission import Admission
from server.recognition.engines.engine import EngineOptions, check_options
from server.recognition.engines.litert import EDGE_TPU_OPERATOR
from server.recognition.interpreter import InterpreterPool

SOURCE = Path(__file__).parents[2] / "support" / "delegate.c"
RED = np.zeros((1, SIDE, SIDE, 3), np.float32)
RED[..., 0] = 0.9


@pytest.fixture(scope="session")
def delegate(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """A function that returns a new copy of the delegate's library, whose counts begin anew."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("delegate")
    library = folder / "libtest.so"
    command = [compiler, "-O1", "-Wall", "-shared", "-fPIC", "-o", str(library), str(SOURCE)]
    subprocess.run([*command, "-lm"], check=True)
    count = 0

    def copy() -> Path:
        nonlocal count
        count += 1
        return Path(shutil.copy(library, folder / f"libtest{count}.so"))

    return copy


def pool_of(model: Path, library: Path, *options: str, size: int = 1) -> InterpreterPool:
    asked = EngineOptions(delegate=str(library), delegate_options=options)
    return InterpreterPool(model, size, options=asked)


def answers(pool: InterpreterPool) -> list[np.ndarray]:
    found: list[np.ndarray] = []
    pool.each(lambda session: found.extend(session.run([RED])))
    return found


def test_delegate_computes(tiny_model: MakeModel, delegate: Callable[[], Path]) -> None:
    library = delegate()
    pool = pool_of(tiny_model("colors"), library, size=2)
    np.testing.assert_allclose(answers(pool), np.tile([1, 0, 0], (2, 1, 1)), atol=1e-4)
    assert pool.engine.runtime.endswith(f"({library.name})")
    assert pool.engine.fault == ""


@pytest.mark.parametrize(
    ("option", "reason"),
    [("fail_prepare=1", "no accelerator is connected"), ("speed=9", "an option is not known")],
)
def test_delegate_that_fails_at_load_leaves_the_cpu(
    tiny_model: MakeModel,
    delegate: Callable[[], Path],
    caplog: pytest.LogCaptureFixture,
    option: str,
    reason: str,
) -> None:
    library = delegate()
    pool = pool_of(tiny_model("colors"), library, option, size=2)
    np.testing.assert_allclose(answers(pool), np.tile([1, 0, 0], (2, 1, 1)), atol=1e-4)
    assert pool.engine.runtime.endswith(f"(CPU, {library.name} failed)")
    assert reason in pool.engine.fault
    assert [each.message for each in caplog.records] == ["delegate failed"]


def test_library_that_is_no_delegate_leaves_the_cpu(tiny_model: MakeModel, tmp_path: Path) -> None:
    text = tmp_path / "text.so"
    text.write_text("no library")
    pool = pool_of(tiny_model("colors"), text)
    assert answers(pool)[0].argmax() == 0
    assert "text.so" in pool.engine.fault


def test_library_that_is_cut_off_leaves_the_cpu(
    tiny_model: MakeModel, delegate: Callable[[], Path]
) -> None:
    """The kernel ends a process that maps what is not there (mmap(2), SIGBUS)."""
    library = delegate()
    data = library.read_bytes()
    library.write_bytes(data[: len(data) // 4])
    pool = pool_of(tiny_model("colors"), library)
    assert answers(pool)[0].argmax() == 0
    assert library.name in pool.engine.fault


def test_library_of_the_working_folder_needs_no_path(
    tiny_model: MakeModel, delegate: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    library = delegate()
    monkeypatch.chdir(library.parent)
    pool = pool_of(tiny_model("colors"), Path(library.name))
    assert answers(pool)[0].argmax() == 0
    assert pool.engine.fault == ""


def test_every_frame_is_answered_if_the_delegate_dies(
    tiny_model: MakeModel, delegate: Callable[[], Path], tmp_path: Path
) -> None:
    """In the middle of 1,000 frames of 8 clients; `activate` tries the delegate again."""
    write_bundle(tmp_path / "models" / "colors" / "1", tiny_model("colors"))
    library = delegate()
    frames = [
        encode(plain((200 * (n == 0), 200 * (n == 1), 200 * (n == 2))), "PNG") for n in range(3)
    ]
    with live_server(
        models=tmp_path / "models",
        model="colors",
        interpreters=2,
        delegate=str(library),
        delegate_options="fail_after=500",
    ) as server:

        def engine() -> str:
            url = f"{server.url}/v1/models/colors"
            return str(requests.get(url, timeout=60).json()["engine"])

        def client(number: int) -> list[str]:
            place = number % 3
            found = [server.recognize(frames[place]).json() for _ in range(125)]
            return [each["predictions"][0]["label"] for each in found]

        assert engine().endswith(f"({library.name})")
        with ThreadPoolExecutor(8) as clients:
            labels = list(clients.map(client, range(8)))
        assert labels == [[COLORS[number % 3]] * 125 for number in range(8)]
        assert engine().endswith(f"(CPU, {library.name} failed)")
        metrics = requests.get(f"{server.url}/metrics", timeout=60).text
        assert 'lineside_delegate_failed{model="colors"} 1.0' in metrics


def edge_tpu_model(model: Path, path: Path) -> Path:
    """The model with the name of the Edge TPU's operator in it."""
    path.write_bytes(model.read_bytes() + EDGE_TPU_OPERATOR)
    return path


def test_edge_tpu_model_is_refused_without_a_delegate(
    tiny_model: MakeModel, tmp_path: Path
) -> None:
    model = edge_tpu_model(tiny_model("colors"), tmp_path / "model.tflite")
    with pytest.raises(BundleError, match="is compiled for an Edge TPU: set `delegate` to the pat"):
        InterpreterPool(model, 1)


def test_edge_tpu_model_has_no_way_back(
    tiny_model: MakeModel, delegate: Callable[[], Path], tmp_path: Path
) -> None:
    """At load the version is refused; in service frames get an error and no answer."""
    model = edge_tpu_model(tiny_model("colors"), tmp_path / "model.tflite")
    with pytest.raises(BundleError, match="its delegate, which failed: no accelerator is conn"):
        pool_of(model, delegate(), "fail_prepare=1")
    pool = pool_of(model, delegate(), "fail_after=1")
    assert answers(pool)[0].argmax() == 0
    for _ in range(2):
        with pytest.raises(RuntimeError, match="which failed: the accelerator is gone"):
            answers(pool)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (EngineOptions(delegate="/none.so"), "delegate can't be /none.so: there is no such file"),
        (EngineOptions(delegate_options=("a=b",)), "delegate_options needs delegate"),
        (EngineOptions(delegate=__file__, delegate_options=("a",)), "can't have a: say NAME=VALUE"),
        (EngineOptions(delegate=__file__, delegate_options=("=b",)), "can't have =b: say NAME"),
    ],
)
def test_wrong_delegate_stops_the_start(options: EngineOptions, sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        check_options(options)


def test_golden_frame_is_checked_by_the_delegate(
    tiny_model: MakeModel, delegate: Callable[[], Path], tmp_path: Path
) -> None:
    """A bundle whose golden frame fails by the delegate is refused as by the CPU."""
    red = ("golden/red.png", encode(plain((250, 40, 20)), "PNG"))
    folder = write_bundle(tmp_path / "colors" / "1", tiny_model("colors"), golden=(red,))
    change_manifest(folder, golden=[{"file": red[0], "label": "blue", "probability": 0.9}])
    settings = Settings(models=str(tmp_path), model="colors", delegate=str(delegate()))
    with pytest.raises(NotReadyError, match="should be blue"):
        make_store(settings, Metrics(), Admission(1, 1)).load("colors")
