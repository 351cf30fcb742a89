"""`convert onnx` and `convert sklearn`: bundles of models that ONNX Runtime runs."""

import logging
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from images import encode, plain
from onnx_models import colors_model, onnx
from tiny_models import COLORS, SIDE

from convert.__main__ import main
from server.config.settings import Settings
from server.engine import make_store
from server.observe.metrics import Metrics
from server.recognition.admission import Admission
from server.recognition.answers import Options
from server.recognition.interpreter import InterpreterPool
from server.recognition.manifest import read_bundle
from server.recognition.recognizer import Recognizer

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with labels.txt, colors.onnx, and frames/ with ten pictures of each colour."""
    folder = tmp_path_factory.mktemp("onnx_sources")
    (folder / "labels.txt").write_text("\n".join(COLORS))
    (folder / "colors.onnx").write_bytes(colors_model())
    rng = np.random.default_rng(0)
    for place, name in enumerate(COLORS):
        (folder / "frames" / name).mkdir(parents=True)
        for number in range(10):
            color = [int(n) for n in rng.integers(0, 90, 3)]
            color[place] = int(rng.integers(160, 255))
            pixels = plain(tuple(color))  # type: ignore[arg-type]
            shade = np.linspace(0.7, 1, pixels.shape[1])[None, :, None]
            data = encode((pixels * shade).astype(np.uint8), "PNG")
            (folder / "frames" / name / f"{number}.png").write_bytes(data)
    return folder


def convert_onnx(work: Path, out: Path, *more: str, file: str = "colors.onnx") -> int:
    labels = str(work / "labels.txt")
    return main(["onnx", str(work / file), "--labels", labels, "--out", str(out), *more])


@pytest.mark.parametrize("mode", ["float32", "int8"])
def test_onnx_bundle_is_proved_and_served(work: Path, tmp_path: Path, mode: str) -> None:
    frames = str(work / "frames")
    more = ["--scale", "1/255", "--mode", mode, "--accept", "red", "--seconds", "0.1"]
    more += ["--calibrate", frames] if mode == "int8" else []
    level = logging.getLogger().level
    assert convert_onnx(work, tmp_path, *more, "--validate", frames) == 0
    assert logging.getLogger().level == level, "others want to log as before"
    bundle = read_bundle(tmp_path / "colors" / "1")
    manifest = bundle.manifest
    assert (bundle.model_file, manifest.quantization) == ("model.onnx", mode)
    assert manifest.recipe is not None
    assert (manifest.recipe.layout, manifest.recipe.width) == ("nchw", SIDE)
    assert manifest.report is not None
    assert (manifest.report.top1, manifest.report.top1_float, manifest.report.images) == (1, 1, 30)
    assert len(manifest.golden) == 3
    assert manifest.baseline is not None
    assert (bundle.folder / "report.html").exists()
    settings = Settings(models=str(tmp_path), model="colors")
    model = make_store(settings, Metrics(), Admission(1, 1)).load("colors")
    assert isinstance(model, Recognizer)
    answer = model.recognize(encode(plain((250, 40, 20)), "PNG"), Options(top_k=1))
    assert (answer.predictions[0].label, answer.verdict) == ("red", "pass")


def with_metadata(work: Path, name: str, **metadata: str) -> str:
    model = onnx.load_from_string(colors_model())
    onnx.helper.set_model_props(model, {f"Image.{key}": value for key, value in metadata.items()})
    (work / name).write_bytes(model.SerializeToString())
    return name


def test_recipe_comes_from_the_metadata(work: Path, tmp_path: Path) -> None:
    """Options go before it."""
    file = with_metadata(
        work, "meta.onnx", NominalPixelRange="Normalized_1_1", BitmapPixelFormat="Bgr8"
    )
    assert convert_onnx(work, tmp_path, file=file) == 0
    assert convert_onnx(work, tmp_path, "--scale", "1/255", "--color", "rgb", file=file) == 0
    recipes = [read_bundle(tmp_path / "meta" / n).manifest.recipe for n in ("1", "2")]
    found = [(each.color, each.scale, each.offset) for each in recipes if each]
    assert found == [("bgr", 1 / 127.5, -1.0), ("rgb", 1 / 255, 0.0)]


def test_open_size_has_to_be_given(work: Path, tmp_path: Path, capsys: Any) -> None:
    model = onnx.load_from_string(colors_model())
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_param = "side"
    (work / "open.onnx").write_bytes(model.SerializeToString())
    assert convert_onnx(work, tmp_path, "--scale", "1", file="open.onnx") == 1
    assert "say which with --size HEIGHT WIDTH" in capsys.readouterr().err
    assert convert_onnx(work, tmp_path, "--scale", "1", "--size", "24", "40", file="open.onnx") == 0
    recipe = read_bundle(tmp_path / "open" / "1").manifest.recipe
    assert recipe is not None
    assert (recipe.height, recipe.width) == (24, 40)


def damaged(work: Path) -> str:
    (work / "damaged.onnx").write_bytes(b"\x08\x07 no model")
    return "damaged.onnx"


def too_large(work: Path) -> str:
    """A model of an image that needs more memory than there is."""
    model = onnx.load_from_string(colors_model())
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_value = 1_000_000
    (work / "large.onnx").write_bytes(model.SerializeToString())
    return "large.onnx"


def refusals(work: Path) -> Iterator[tuple[str, list[str], str]]:
    frames = str(work / "frames")
    one = work / "one"
    (one / "red").mkdir(parents=True, exist_ok=True)
    (one / "red" / "0.png").write_bytes((work / "frames" / "red" / "0.png").read_bytes())
    yield "colors.onnx", [], "does not say how its pixels were scaled"
    yield "colors.onnx", ["--mode", "dynamic", "--scale", "1"], "say float32 or int8"
    yield "colors.onnx", ["--mode", "int8", "--scale", "1"], "give --calibrate FOLDER"
    few = ["--mode", "int8", "--scale", "1", "--calibrate", str(one)]
    yield "colors.onnx", few, "needs at least 8 real frames, and there are 1"
    yield "colors.onnx", ["--scale", "1", "--size", "24", "24"], "--size 24 does not fit"
    yield damaged(work), ["--scale", "1"], "is no ONNX model that can be read"
    yield "none.onnx", ["--scale", "1"], "does not exist"
    yield too_large(work), ["--scale", "1"], "images have at most 8192 pixels a side"
    wide = with_metadata(work, "wide.onnx", NominalPixelRange="NominalRange_16_235")
    yield wide, [], "pixels of NominalRange_16_235, which is not made"
    yield "colors.onnx", ["--scale", "1/255", "--io", "int8", "--validate", frames], "not for ONNX"


def test_wrong_onnx_wishes_are_refused(work: Path, tmp_path: Path, capsys: Any) -> None:
    for file, more, sentence in refusals(work):
        assert convert_onnx(work, tmp_path, *more, file=file) == 1, sentence
        assert sentence in capsys.readouterr().err
    (work / "two.txt").write_text("red\ngreen")
    command = ["onnx", str(work / "colors.onnx"), "--labels", str(work / "two.txt")]
    assert main([*command, "--scale", "1", "--out", str(tmp_path)]) == 1
    assert "there are 2 labels, but the model answers 3" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def irises(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with iris.pkl, a pipeline of scikit-learn, and labels.txt."""
    pytest.importorskip("skl2onnx", reason="skl2onnx is not installed")
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folder = tmp_path_factory.mktemp("sklearn")
    data = load_iris()
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(data.data, data.target)
    (folder / "iris.pkl").write_bytes(pickle.dumps(model))
    (folder / "labels.txt").write_text("\n".join(data.target_names))
    return folder


def convert_sklearn(folder: Path, out: Path, *more: str, file: str = "iris.pkl") -> int:
    labels = str(folder / "labels.txt")
    return main(["sklearn", str(folder / file), "--labels", labels, "--out", str(out), *more])


def test_sklearn_model_answers_the_same(irises: Path, tmp_path: Path) -> None:
    assert convert_sklearn(irises, tmp_path, "--trust-pickle") == 0
    bundle = read_bundle(tmp_path / "iris" / "1")
    assert (bundle.model_file, bundle.manifest.task) == ("model.onnx", "tensor")
    rows = np.array([[5.1, 3.5, 1.4, 0.2], [6.3, 3.3, 6.0, 2.5]], np.float32)
    pool = InterpreterPool(bundle.model_path, 1)
    with pool.lease() as session:
        [answer] = session.run([rows])
    model = pickle.loads((irises / "iris.pkl").read_bytes())
    np.testing.assert_allclose(answer, model.predict_proba(rows), atol=1e-5)
    assert pool.outputs[0].name == "probabilities"


class Bomb:
    """A pickle that makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, (f"open({str(self.path)!r}, 'w')",)


def test_no_pickle_is_read_without_trust(irises: Path, tmp_path: Path, capsys: Any) -> None:
    (irises / "bomb.pkl").write_bytes(pickle.dumps(Bomb(tmp_path / "gone off")))
    assert convert_sklearn(irises, tmp_path / "models", file="bomb.pkl") == 1
    assert "if you know who made it, add --trust-pickle" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_pickle_of_something_else_is_refused(irises: Path, tmp_path: Path, capsys: Any) -> None:
    (irises / "table.pkl").write_bytes(pickle.dumps({"a": 1}))
    (irises / "text.pkl").write_bytes(b"no pickle")
    for file, sentence in (
        ("table.pkl", "holds a dict, and no trained classifier"),
        ("text.pkl", "is no pickle of a model"),
    ):
        assert convert_sklearn(irises, tmp_path, "--trust-pickle", file=file) == 1
        assert sentence in capsys.readouterr().err
    (irises / "labels.txt").write_text("setosa\nversicolor")
    assert convert_sklearn(irises, tmp_path, "--trust-pickle") == 1
    assert "there are 2 labels, but the model answers 3: 0, 1, 2" in capsys.readouterr().err


def test_classifier_of_several_answers_is_refused(
    irises: Path, tmp_path: Path, capsys: Any
) -> None:
    """Also with as many answers as there are labels."""
    from sklearn.ensemble import RandomForestClassifier

    rows = np.random.default_rng(0).normal(size=(30, 3))
    model = RandomForestClassifier(2, random_state=0).fit(rows, (rows > 0).astype(int))
    (irises / "several.pkl").write_bytes(pickle.dumps(model))
    (irises / "labels.txt").write_text("a\nb\nc")
    assert convert_sklearn(irises, tmp_path, "--trust-pickle", file="several.pkl") == 1
    assert "RandomForestClassifier of several answers" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_classifier_that_no_converter_takes_is_refused(
    irises: Path, tmp_path: Path, capsys: Any
) -> None:
    """Its converter fails at the node that it makes."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    rows = np.random.default_rng(0).normal(size=(60, 3))
    model = HistGradientBoostingClassifier(max_iter=2).fit(rows, rows[:, 0] > 0)
    (irises / "boosted.pkl").write_bytes(pickle.dumps(model))
    (irises / "labels.txt").write_text("no\nyes")
    assert convert_sklearn(irises, tmp_path, "--trust-pickle", file="boosted.pkl") == 1
    assert "can't convert a HistGradientBoostingClassifier" in capsys.readouterr().err


def test_onnx_manifest_is_written_whole(work: Path, tmp_path: Path) -> None:
    """Weights that lie in another file come into the bundle's."""
    model = onnx.load_from_string(colors_model())
    onnx.save_model(
        model,
        work / "apart.onnx",
        save_as_external_data=True,
        location="apart.bin",
        size_threshold=0,
    )
    assert convert_onnx(work, tmp_path, "--scale", "1/255", file="apart.onnx") == 0
    manifest = msgspec.json.decode((tmp_path / "apart" / "1" / "bundle.json").read_bytes())
    assert sorted(manifest["sha256"]) == ["labels.txt", "model.onnx"]
