"""OpenVINO as an engine: the network `colors` as .tflite, .onnx and .xml, the choice among engines,
and what it refuses."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import pytest
import requests
from clients import own_answers
from images import encode, plain
from onnx_models import NCHW, colors_model, onnx
from server_process import ROOT, LiveServer, live_server
from tiny_models import RECIPE, SIDE, MakeModel, change_manifest, write_bundle

from server.cli.engines import best_engine, choose_engine, difference
from server.config.settings import Settings
from server.engine import make_store
from server.errors import BundleError, SettingsError
from server.observe.metrics import Metrics
from server.process.startup import check_values
from server.recognition.admission import Admission
from server.recognition.engines.engine import EngineOptions, check_options, find_engine
from server.recognition.interpreter import InterpreterPool
from server.recognition.manifest import EngineName, Manifest
from server.store.bundles.engine_choice import EngineFigures, engine_options, load_choice
from server.store.bundles.layout import engine_path, open_bundle

openvino: Any = pytest.importorskip("openvino", reason="OpenVINO is not installed")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

RED = encode(plain((250, 40, 20)), "PNG")
SHADES = ((250, 40, 20), (90, 110, 70), (120, 121, 122), (0, 0, 0))
OPENVINO = EngineOptions(engine="openvino")
GOLDEN = {"file": "golden/red.png", "label": "red", "probability": 0.98}


@pytest.fixture(scope="module")
def onnx_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("openvino") / "colors.onnx"
    path.write_bytes(colors_model())
    return path


@pytest.fixture(scope="module")
def xml_model(onnx_model: Path) -> Path:
    path = onnx_model.with_suffix(".xml")
    openvino.save_model(openvino.Core().read_model(onnx_model), path, compress_to_fp16=False)
    return path


def add(folder: Path, model: Path, **manifest: Any) -> Path:
    recipe = RECIPE if model.suffix == ".tflite" else NCHW
    write_bundle(folder, model, recipe=recipe, golden=(("golden/red.png", RED),), **manifest)
    change_manifest(folder, golden=[GOLDEN])
    return folder


@pytest.fixture(scope="module")
def server(
    tiny_model: MakeModel,
    onnx_model: Path,
    xml_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[LiveServer]:
    """A live server of `usual`, the .tflite by LiteRT, and of the same network by OpenVINO."""
    models = tmp_path_factory.mktemp("engines")
    add(models / "usual" / "1", tiny_model("colors"))
    add(models / "lite" / "1", tiny_model("colors"), engine="openvino")
    add(models / "int8" / "1", tiny_model("int8"), engine="openvino", quantization="int8")
    change_manifest(models / "int8" / "1", recipe=msgspec.to_builtins(RECIPE) | {"dtype": "int8"})
    add(models / "onnx" / "1", onnx_model, engine="openvino")
    add(models / "xml" / "1", xml_model)
    with live_server(models=models, model="xml", interpreters=2) as running:
        yield running


@pytest.mark.parametrize("name", ["lite", "int8", "onnx", "xml"])
def test_every_kind_of_file_answers_as_litert(server: LiveServer, name: str) -> None:
    for color in SHADES:
        data = encode(plain(color), "PNG")
        answers = [
            {
                each["label"]: each["probability"]
                for each in server.recognize(data, model=model, top_k=3).json()["predictions"]
            }
            for model in ("usual", name)
        ]
        assert answers[1] == pytest.approx(answers[0], abs=0.04 if name == "int8" else 0.02)
    models = requests.get(server.url + "/v1/models", timeout=60).json()["models"]
    engines = {model["name"]: model["engine"] for model in models}
    assert engines[name] == f"openvino {openvino.__version__.split('-')[0]} (CPU)"
    assert engines["usual"].startswith("ai-edge-litert ")


def test_openvino_answers_frames_at_once(server: LiveServer) -> None:
    assert all(own_answers(server, 8, 20))


def test_quantised_model_is_right_in_every_session(shipped: Path) -> None:
    """Streams of one compiled model would pack the weights wrongly."""
    model = shipped / "model.tflite"
    rng = np.random.default_rng(0)
    frame = rng.random((1, 224, 224, 3), np.float32) * 2 - 1
    answers: list[list[np.ndarray]] = [[], []]
    for found, options in zip(answers, (None, OPENVINO), strict=True):
        pool = InterpreterPool(model, 2, 1, wide=2, options=options)
        pool.each(lambda session, found=found: found.extend(session.run([frame])))  # type: ignore[misc]
    for one, other in zip(*answers, strict=True):
        np.testing.assert_allclose(other, one, atol=0.02)


def test_openvino_refuses_a_wrong_tensor(xml_model: Path) -> None:
    pool = InterpreterPool(xml_model, 1)
    for wrong in (np.zeros((1, 3, SIDE, 4), np.float32), np.zeros((1, 3, SIDE, SIDE), np.int8)):
        with pool.lease() as session, pytest.raises(ValueError, match="refuses a tensor"):
            session.run([wrong])


@pytest.mark.parametrize("location", ["weights.bin", "../weights.bin", "/etc/hostname"])
def test_openvino_reads_no_weights_of_other_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str
) -> None:
    (tmp_path / "current").mkdir()
    for folder in (tmp_path, tmp_path / "current"):
        np.full(3, 20, np.float32).tofile(folder / "weights.bin")
    monkeypatch.chdir(tmp_path / "current")
    entry = onnx.StringStringEntryProto(key="location", value=location)
    path = tmp_path / "model.onnx"
    path.write_bytes(colors_model(data_location=onnx.TensorProto.EXTERNAL, external_data=[entry]))
    with pytest.raises(BundleError, match=r"model\.onnx can't be loaded by OpenVINO: "):
        InterpreterPool(path, 1, options=OPENVINO)


def test_weights_of_an_xml_are_verified(xml_model: Path, tmp_path: Path) -> None:
    folder = add(tmp_path / "xml" / "1", xml_model)
    (folder / "model.bin").write_bytes(b"\0" * (folder / "model.bin").stat().st_size)
    with pytest.raises(BundleError, match=r"model\.bin is damaged"):
        open_bundle(folder)
    change_manifest(folder, sha256={"model.xml": "0" * 64, "labels.txt": "0" * 64})
    with pytest.raises(BundleError, match=r"gives no sha256 for model\.bin"):
        open_bundle(folder)


def test_missing_openvino_is_said_with_its_command(
    tiny_model: MakeModel, xml_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    command = f"-m pip install -r {ROOT / 'server' / 'requirements-openvino.txt'}"
    for settings in (Settings(engine="openvino"), Settings(openvino_device="GPU")):
        with pytest.raises(SettingsError, match="needs OpenVINO, which is not") as stopped:
            check_values(settings)
        assert str(stopped.value).endswith(command)
    with pytest.raises(BundleError, match=r"model\.xml needs OpenVINO, which is not") as refused:
        open_bundle(add(tmp_path / "xml" / "1", xml_model))
    assert str(refused.value).endswith(command)
    with pytest.raises(BundleError, match="needs OpenVINO"):
        open_bundle(add(tmp_path / "lite" / "1", tiny_model("colors"), engine="openvino"))


def test_openvino_lacks_a_device() -> None:
    with pytest.raises(SettingsError, match="openvino_device can't be NPU: OpenVINO finds CPU"):
        check_options(EngineOptions(openvino_device="NPU"))
    check_options(EngineOptions(openvino_device="AUTO"))


def test_auto_device_answers(onnx_model: Path) -> None:
    pool = InterpreterPool(
        onnx_model, 2, options=EngineOptions(engine="openvino", openvino_device="AUTO")
    )
    found: list[Any] = []
    pool.each(lambda session: found.extend(session.run([np.ones((1, 3, SIDE, SIDE), np.float32)])))
    np.testing.assert_allclose(found, np.full((2, 1, 3), 1 / 3), atol=1e-4)


def test_engine_that_can_not_run_a_file_is_refused(xml_model: Path, tmp_path: Path) -> None:
    folder = add(tmp_path / "xml" / "1", xml_model, engine="litert")
    with pytest.raises(BundleError, match=r"model\.xml can't be run by litert: say openvino"):
        open_bundle(folder)


def test_names_of_engines_are_one_list() -> None:
    choices = get_args(Manifest.__annotations__["engine"])
    assert choices == ("auto", *get_args(EngineName))


def test_setting_goes_before_bundle_before_choice(
    tiny_model: MakeModel, onnx_model: Path, tmp_path: Path
) -> None:
    """A setting counts only for files that the engine can run."""
    lite = open_bundle(add(tmp_path / "lite" / "1", tiny_model("colors"), engine="openvino"))
    other = open_bundle(add(tmp_path / "other" / "1", onnx_model))
    assert engine_options(lite, EngineOptions()).engine == "openvino"
    assert engine_options(lite, EngineOptions(engine="litert")).engine == "litert"
    assert engine_options(other, EngineOptions(engine="litert")).engine == "auto"
    assert find_engine(other.model_path).platform == "onnx_onnxruntime"


def test_bench_keeps_the_choice_beside_the_bundle(onnx_model: Path, tmp_path: Path) -> None:
    """Both engines are measured, agree on the golden frame, and one is kept for the next load."""
    bundle = open_bundle(add(tmp_path / "twin" / "1", onnx_model))
    settings = Settings(models=str(tmp_path), model="twin", data=str(tmp_path / "data"))
    said: list[str] = []
    choose_engine(bundle, settings, RED, 0.2, said.append)
    kept = load_choice(bundle)
    assert kept in ("onnxruntime", "openvino")
    assert [line.split()[0] for line in said] == ["onnxruntime", "openvino", kept]
    figures = msgspec.json.decode(engine_path(bundle.folder).read_bytes())["figures"]
    assert all(each["fps"] > 0 and each["difference"] < 1e-4 for each in figures)
    file = engine_path(bundle.folder)
    file.write_text(file.read_text().replace(f'"engine": "{kept}"', '"engine": "openvino"', 1))
    store = make_store(settings, Metrics(), Admission(1, 4))
    assert store.load("twin").pool.engine.platform == "openvino"
    # A choice for another model counts for nothing.
    shutil.copy(file, engine_path(tmp_path / "twin" / "2"))
    (tmp_path / "other.onnx").write_bytes(colors_model() + b"")
    other = open_bundle(add(tmp_path / "twin" / "2", tmp_path / "other.onnx"))
    file.write_text(file.read_text().replace(bundle.model_sha256(), "0" * 64))
    assert load_choice(bundle) is None
    assert load_choice(other) == "openvino"  # the same model


def test_bench_leaves_out_what_misses_a_golden_frame(tiny_model: MakeModel, tmp_path: Path) -> None:
    """An engine that another one is asked for is not measured at all."""
    bundle = open_bundle(add(tmp_path / "lite" / "1", tiny_model("colors"), engine="litert"))
    choose_engine(bundle, Settings(models=str(tmp_path)), RED, 0.1, pytest.fail)
    change_manifest(bundle.folder, engine="auto", golden=[GOLDEN | {"label": "blue"}])
    with pytest.raises(BundleError, match="should be blue"):
        choose_engine(open_bundle(bundle.folder), Settings(), RED, 0.1, pytest.fail)


def test_best_engine_answers_the_same() -> None:
    def row(engine: EngineName, fps: float, apart: float) -> EngineFigures:
        return EngineFigures(engine, "", fps, 1.0, apart)

    usual = row("litert", 100, 0)
    assert best_engine([usual, row("openvino", 130, 0.001)]) == "openvino"
    assert best_engine([usual, row("openvino", 130, 0.03)]) == "litert"
    assert best_engine([usual, row("openvino", 102, 0)]) == "litert"
    assert difference([np.array([200, 10], np.uint8)], [np.array([198, 10], np.uint8)]) == 0.01
    assert difference([np.array([0.5])], [np.array([0.4])]) == pytest.approx(0.1)
