"""ONNX Runtime as the engine of a bundle: the network `colors` as .tflite and as .onnx, side by
side in one server, and what it refuses."""

import gc
import itertools
import re
import shutil
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from clients import own_answers
from images import encode, plain
from onnx_models import NCHW, colors_model
from server_process import ROOT, LiveServer, live_server
from tiny_models import COLORS, SIDE, MakeModel, change_manifest, write_bundle

from server.config.load import load
from server.config.settings import Settings
from server.engine import make_store
from server.errors import BundleError, SettingsError
from server.observe.metrics import Metrics
from server.process.startup import check, check_values, preflight
from server.recognition.admission import Admission
from server.recognition.interpreter import InterpreterPool

onnx: Any = pytest.importorskip("onnx", reason="the package onnx makes the models")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

RED = encode(plain((250, 40, 20)), "PNG")
REQUIREMENTS = ROOT / "server" / "requirements-onnx.txt"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "colors.onnx"
    path.write_bytes(colors_model())
    return path


def add(folder: Path, model: Path, golden: str = "red") -> Path:
    """A bundle with one golden frame, which is red, and should be `golden`."""
    write_bundle(folder, model, recipe=NCHW, golden=(("golden/red.png", RED),))
    expected = {"file": "golden/red.png", "label": golden, "probability": 0.98}
    change_manifest(folder, golden=[expected])
    return folder


@pytest.fixture(scope="module")
def server(
    tiny_model: MakeModel, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    """A live server of `colors` by LiteRT and `twin` by ONNX Runtime, of which version 2 is
    damaged and version 3 misses its golden frame."""
    models = tmp_path_factory.mktemp("engines")
    damaged = tmp_path_factory.mktemp("damaged") / "damaged.onnx"
    damaged.write_bytes(model.read_bytes()[:-40])
    write_bundle(models / "colors" / "1", tiny_model("colors"))
    add(models / "twin" / "1", model)
    with live_server(models=models, model="twin", interpreters=2) as running:
        add(models / "twin" / "2", damaged)
        add(models / "twin" / "3", model, golden="blue")
        yield running


def test_both_engines_answer_alike(server: LiveServer) -> None:
    for color in ((250, 40, 20), (90, 110, 70), (120, 121, 122), (0, 0, 0)):
        data = encode(plain(color), "PNG")
        answers = [
            {
                each["label"]: each["probability"]
                for each in server.recognize(data, model=name, top_k=3).json()["predictions"]
            }
            for name in ("colors", "twin")
        ]
        assert answers[1] == pytest.approx(answers[0], abs=0.02)


def test_triton_gets_the_same_of_both_engines(server: LiveServer) -> None:
    """An image gets the same scores, and two rows of numbers go to the open batch."""
    triton: Any = pytest.importorskip("tritonclient.http")
    client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
    files = np.array([RED, encode(plain((9, 8, 200)), "PNG")], object)
    scores, platforms = [], []
    for name in ("colors", "twin"):
        image = triton.InferInput("image", [2], "BYTES")
        image.set_data_from_numpy(files)
        metadata = client.get_model_metadata(name)
        platforms.append(metadata["platform"])
        (output,) = metadata["outputs"]
        scores.append(client.infer(name, [image]).as_numpy(output["name"]))
    np.testing.assert_allclose(scores[1], scores[0], atol=0.02)
    assert platforms == ["tensorflow_lite", "onnx_onnxruntime"]
    rows = np.zeros((2, 3, SIDE, SIDE), np.float32)
    rows[0, 0] = rows[1, 2] = 0.5
    tensor = triton.InferInput("image", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows)
    answer = client.infer("twin", [tensor]).as_numpy("probabilities")
    assert answer.argmax(axis=1).tolist() == [0, 2]
    client.close()


def test_models_say_which_engine_runs_them(server: LiveServer) -> None:
    server.recognize(RED, model="colors")
    models = requests.get(server.url + "/v1/models", timeout=60).json()["models"]
    engines = {model["name"]: model["engine"] for model in models}
    assert engines["colors"].startswith("ai-edge-litert ")
    assert re.fullmatch(r"onnxruntime [\d.]+ \(CPU\)", engines["twin"])


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        (2, "model.onnx can't be loaded by ONNX Runtime: "),
        (3, "golden/red.png should be blue at 0.980 but this model says red"),
    ],
)
def test_bad_version_is_refused_the_old_one_serves(
    server: LiveServer, version: int, reason: str
) -> None:
    pid = server.worker_pid()
    url = f"{server.url}/v1/models/twin"
    refused = requests.post(url + "/activate", json={"version": version}, timeout=60)
    assert refused.status_code == 422
    assert reason in refused.json()["error"]["message"]
    failures = requests.get(url, timeout=60).json()["failures"]
    assert any(each["version"] == version and reason in each["reason"] for each in failures)
    assert server.recognize(RED).json()["model_version"] == 1
    assert server.worker_pid() == pid


def test_frames_at_once_get_their_own_answers(server: LiveServer) -> None:
    assert all(own_answers(server, 8, 20))


def test_a_late_frame_is_refused(server: LiveServer) -> None:
    late = server.recognize(RED, deadline_ms=0.001)
    assert (late.status_code, late.json()["error"]["code"]) == (503, "DEADLINE_EXCEEDED")
    assert server.recognize(RED).status_code == 200


def test_pool_shares_one_model_and_frees_it(model: Path) -> None:
    """Interpreters of one thread share a session; the wide one has its own."""
    pool = InterpreterPool(model, 3, 1, wide=2)
    sessions: list[Any] = []
    pool.each(lambda lent: sessions.append(lent))
    assert len(set(map(id, sessions))) == 4
    assert len({id(each._session) for each in sessions}) == 2
    gone = weakref.ref(sessions[0]._session)
    sessions.clear()
    pool.close()
    gc.collect()
    assert gone() is None


def test_wrong_tensor_is_a_value_error(model: Path) -> None:
    pool = InterpreterPool(model, 1)
    for wrong in (np.zeros((1, 3, SIDE, 4), np.float32), np.zeros((1, 3, SIDE, SIDE), np.int8)):
        with pool.lease() as session, pytest.raises(ValueError, match="refuses a tensor"):
            session.run([wrong])


def test_memory_budget_unloads_an_onnx_model(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        add(tmp_path / name / "1", model)
    takes = itertools.count(step=100_000_000)  # what the process really takes is other tests' too
    monkeypatch.setattr("server.store.bundles.loader.resident", lambda: next(takes))
    settings = Settings(models=str(tmp_path), model="a", models_memory_mb=220)
    store = make_store(settings, Metrics(), Admission(1, 4))
    for name in ("a", "b", "c"):
        store.load(name)
    assert set(store.served()) == {"a", "c"}


@pytest.mark.parametrize("location", ["weights.bin", "../weights.bin", "/etc/hostname"])
def test_weights_in_another_file_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str
) -> None:
    """Neither beside the model, nor in the server's current folder, nor anywhere."""
    (tmp_path / "current").mkdir()
    for folder in (tmp_path, tmp_path / "current"):
        np.full(3, 20, np.float32).tofile(folder / "weights.bin")
    monkeypatch.chdir(tmp_path / "current")
    entry = onnx.StringStringEntryProto(key="location", value=location)
    path = tmp_path / "model.onnx"
    path.write_bytes(colors_model(data_location=onnx.TensorProto.EXTERNAL, external_data=[entry]))
    with pytest.raises(BundleError, match=r"External data path validation failed"):
        InterpreterPool(path, 1)


def test_missing_runtime_is_said_with_its_command(
    tiny_model: MakeModel, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start stops with the sentence, unless an older version can serve."""
    for name in ("onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, name, None)
    add(tmp_path / "twin" / "2", model)
    settings = Settings(models=str(tmp_path), model="twin", data=str(tmp_path / "data"))
    with pytest.raises(BundleError) as stopped:
        preflight(settings)
    says = "model.onnx needs ONNX Runtime, which is not installed: "
    assert says in str(stopped.value)
    assert str(stopped.value).endswith("-m pip install -r " + str(REQUIREMENTS))
    write_bundle(tmp_path / "twin" / "1", tiny_model("colors"))
    store = make_store(settings, Metrics(), Admission(1, 4), models=preflight(settings))
    assert store.load("twin").manifest.version == 1
    (failure,) = store.failures("twin")
    assert says in failure.reason


def test_unknown_provider_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load({"LINESIDE_ONNX_PROVIDERS": "Abacus,CPU"})
    with pytest.raises(SettingsError, match="onnx_providers can't have Abacus: "):
        check_values(settings)
    check_values(Settings(onnx_providers=("CPU",)))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SettingsError, match="onnx_providers needs ONNX Runtime, which is not in"):
        check_values(settings)


def test_bare_onnx_model_is_checked(model: Path, tmp_path: Path) -> None:
    """`check` names the engine; a bare model.onnx is fed by the setting `recipe`."""
    folder = tmp_path / "models" / "bare" / "1"
    folder.mkdir(parents=True)
    shutil.copy(model, folder / "model.onnx")
    (folder / "labels.txt").write_text("\n".join(COLORS))
    settings = Settings(models=str(tmp_path / "models"), recipe=NCHW, data=str(tmp_path / "data"))
    lines = [line for line in check(settings) if line.startswith("bare/1")]
    assert re.fullmatch(r"bare/1 \(default\): float32, .*, onnxruntime \S+ \(CPU\)", lines[0])
