"""convert.quantization.quantize and convert.quantization.tune on small real Keras models."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from convert.errors import CalibrationError, QuantizeError
from convert.quantization.graph import kind_of, operators, parse
from convert.quantization.integer import integer
from convert.quantization.quantize import MODES, Plan, default_plan, quantize
from convert.quantization.tune import extract, measure, tune

tf = pytest.importorskip("tensorflow")

Frame = NDArray[np.float32]
SIDE = 32
# The last release of tflite-runtime, which LiteRT replaced, and the newest NumPy that it runs with.
OLD_RUNTIME = ("tflite-runtime==2.14.0", "numpy==1.26.4")
# Writes the answers of MODEL... for the frame in FRAME.npy, each beside its model.
OLD_READER = """
import sys
import numpy
from tflite_runtime.interpreter import Interpreter

for path in sys.argv[2:]:
    interpreter = Interpreter(path, num_threads=1)
    interpreter.allocate_tensors()
    [source], [target] = interpreter.get_input_details(), interpreter.get_output_details()
    frame, (scale, zero) = numpy.load(sys.argv[1]), source["quantization"]
    frame = numpy.rint(frame / scale + zero) if scale else frame
    interpreter.set_tensor(source["index"], frame.astype(source["dtype"]))
    interpreter.invoke()
    answer, (scale, zero) = interpreter.get_tensor(target["index"]), target["quantization"]
    answer = (answer.astype("float32") - zero) * scale if scale else answer
    numpy.save(path + ".npy", answer[0])
"""


def _to_tflite(model: object) -> bytes:
    return bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())


def _small_cnn(weaken: bool = False) -> bytes:
    layers = tf.keras.layers
    tf.keras.utils.set_random_seed(7)
    model = tf.keras.Sequential(
        [
            layers.Input((SIDE, SIDE, 3)),
            layers.Conv2D(16, 3, strides=2, padding="same", activation="relu6", name="stem"),
            layers.Conv2D(64, 1, activation="relu6", name="expand"),
            layers.DepthwiseConv2D(3, padding="same", activation="relu6", name="depthwise"),
            layers.Conv2D(64, 1, activation="relu6", name="project"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(32, activation="softmax", name="head"),
        ]
    )
    if weaken:
        kernel, bias = model.get_layer("project").get_weights()
        kernel[..., :8], bias[:8] = 1e-12, 1.5
        model.get_layer("project").set_weights([kernel, bias])
        kernel, bias = model.get_layer("head").get_weights()
        kernel[:8, 0] = 0.25
        model.get_layer("head").set_weights([kernel, bias])
    return _to_tflite(model)


@pytest.fixture(scope="module")
def float_model() -> bytes:
    return _small_cnn()


def _waves(count: int, seed: int = 0) -> list[Frame]:
    """Smooth pictures: a few waves of low frequency in each channel, -1 to 1."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:SIDE, 0:SIDE, 0:1][:2] / SIDE
    found = []
    for _ in range(count):
        along, down, phase = rng.uniform(0.5, 3, (3, 1, 1, 3))
        found.append(np.sin(7 * (along * x + down * y) + phase)[None].astype(np.float32))
    return found


@pytest.fixture(scope="module")
def pictures() -> list[Frame]:
    return _waves(12)


def _run(model: bytes, frame: Frame) -> NDArray[np.float32]:
    interpreter = Interpreter(model_content=model, num_threads=1)
    interpreter.allocate_tensors()
    [source], [target] = interpreter.get_input_details(), interpreter.get_output_details()
    if source["dtype"] != np.float32:
        scale, zero = source["quantization"]
        limits = np.iinfo(source["dtype"])
        frame = np.clip(np.round(frame / scale + zero), limits.min, limits.max)
    interpreter.set_tensor(source["index"], frame.astype(source["dtype"]))
    interpreter.invoke()
    output = interpreter.get_tensor(target["index"])[0].astype(np.float32)
    if target["dtype"] == np.float32:
        return np.asarray(output)
    scale, zero = target["quantization"]
    return np.asarray((output - zero) * scale)


def _weight_types(model: bytes) -> set[str]:
    interpreter = Interpreter(model_content=model)
    return {
        np.dtype(d["dtype"]).name for d in interpreter.get_tensor_details() if len(d["shape"]) == 4
    }


def _io_types(model: bytes) -> tuple[str, str]:
    interpreter = Interpreter(model_content=model)
    [source], [target] = interpreter.get_input_details(), interpreter.get_output_details()
    return np.dtype(source["dtype"]).name, np.dtype(target["dtype"]).name


def test_operators_are_read_from_the_graph(float_model: bytes) -> None:
    found = operators(float_model)
    assert [op.shape for op in found] == [
        "CONV_2D 3x3 3>16 @16x16",
        "CONV_2D 1x1 16>64 @16x16",
        "DEPTHWISE_CONV_2D 3x3 64>64 @16x16",
        "CONV_2D 1x1 64>64 @16x16",
        "FULLY_CONNECTED 64>32",
    ]
    assert [op.depth for op in found] == [27, 16, 9, 64, 64]
    assert [op.weights for op in found] == [432, 1024, 576, 4096, 2048]


def test_default_plan_keeps_narrow_operators_in_float(
    float_model: bytes,
) -> None:
    """The default plan leaves narrow and depthwise operators in float."""
    assert default_plan(float_model).integer == (
        "CONV_2D 1x1 64>64 @16x16",
        "FULLY_CONNECTED 64>32",
    )


@pytest.mark.parametrize("mode", ["dynamic", "float16", "float32"])
def test_float_modes_keep_interface_and_answer(
    float_model: bytes, pictures: list[Frame], mode: str
) -> None:
    """Modes with float arithmetic keep the interface and the answer."""
    model = quantize(float_model, mode)
    assert _io_types(model) == ("float32", "float32")
    for picture in pictures:
        assert np.abs(_run(model, picture) - _run(float_model, picture)).max() < 0.02


@pytest.mark.parametrize("mode", MODES)
def test_other_readers_read_every_mode(
    float_model: bytes, pictures: list[Frame], mode: str, tmp_path: Path
) -> None:
    """TensorFlow's own interpreter answers the same, and OpenVINO nearly: it computes in float."""
    model = quantize(float_model, mode, calibration=pictures if mode == "int8" else None)
    assert all(not buffer.offset for buffer in schema.ModelT.InitFromPackedBuf(model).buffers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        interpreter = tf.lite.Interpreter(model_content=model, num_threads=1)
    interpreter.allocate_tensors()
    [source], [target] = interpreter.get_input_details(), interpreter.get_output_details()
    scale, zero = source["quantization"]
    frame = pictures[0] if not scale else np.rint(pictures[0] / scale + zero)
    frame = frame.astype(source["dtype"])
    interpreter.set_tensor(source["index"], frame)
    interpreter.invoke()
    scale, zero = target["quantization"]
    answer = interpreter.get_tensor(target["index"]).astype(np.float32)
    answer = (answer - zero) * scale if scale else answer
    np.testing.assert_allclose(answer[0], _run(model, pictures[0]), atol=0.01)
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
    path = tmp_path / "model.tflite"
    path.write_bytes(model)
    [other] = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(
        frame
    ).values()
    other = (other.astype(np.float32) - zero) * scale if scale else other
    np.testing.assert_allclose(other, answer, atol=0.02)


@pytest.fixture(scope="module")
def old_runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tflite-runtime, which can't be in one environment with today's NumPy."""
    folder = tmp_path_factory.mktemp("tflite-runtime")
    command = (
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-compile",
        "--no-deps",
        "--only-binary=:all:",
    )
    done = subprocess.run(
        [sys.executable, *command, "--target", str(folder), *OLD_RUNTIME],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"{' and '.join(OLD_RUNTIME)} can't be had: {done.stderr.strip()[-200:]}")
    return folder


def test_tflite_runtime_reads_every_mode(
    float_model: bytes, pictures: list[Frame], old_runtime: Path, tmp_path: Path
) -> None:
    """Devices that still have tflite-runtime get the same answers from our files."""
    frame = tmp_path / "frame.npy"
    np.save(frame, pictures[0])
    models = {mode: tmp_path / f"{mode}.tflite" for mode in MODES}
    for mode, path in models.items():
        calibration = pictures if mode == "int8" else None
        path.write_bytes(quantize(float_model, mode, calibration=calibration))
    script = f"import sys\nsys.path.insert(0, {str(old_runtime)!r})\n{OLD_READER}"
    command = [sys.executable, "-I", "-c", script, str(frame), *map(str, models.values())]
    subprocess.run(command, check=True, capture_output=True, text=True)
    for path in models.values():
        answer = np.load(f"{path}.npy")
        np.testing.assert_allclose(answer, _run(path.read_bytes(), pictures[0]), atol=0.01)


def test_float32_is_returned_as_it_is(float_model: bytes) -> None:
    assert quantize(float_model, "float32") == float_model


def test_dynamic_stores_every_large_weight_in_int8(float_model: bytes) -> None:
    model = quantize(float_model, "dynamic")
    assert len(model) < 0.55 * len(float_model)
    assert "int8" in _weight_types(model)
    # Only the plan decides on the arithmetic, so none at all costs no bytes in weights.
    stored = quantize(float_model, "dynamic", plan=Plan(()))
    assert abs(len(stored) - len(model)) < 0.05 * len(float_model)


def test_min_weights_leaves_small_operators_in_float(float_model: bytes) -> None:
    assert quantize(float_model, "dynamic", plan=Plan((), min_weights=10**6)) == float_model


@pytest.mark.parametrize("io_dtype", ["uint8", "int8", "float32"])
def test_int8_is_integer_with_the_asked_interface(
    float_model: bytes, pictures: list[Frame], io_dtype: str
) -> None:
    model = quantize(float_model, "int8", calibration=iter(pictures), io_dtype=io_dtype)
    assert _io_types(model) == (io_dtype, io_dtype)
    for picture in _waves(6, seed=1):
        assert np.abs(_run(model, picture) - _run(float_model, picture)).max() < 0.05


def test_int8_keeps_all_levels_of_a_pixel_scaled_to_one(
    float_model: bytes, pictures: list[Frame]
) -> None:
    interpreter = Interpreter(model_content=quantize(float_model, "int8", calibration=pictures))
    scale, zero = interpreter.get_input_details()[0]["quantization"]
    levels = np.round((np.arange(256) / 127.5 - 1).astype(np.float32) / scale + zero)
    assert len(np.unique(levels)) >= 255


@pytest.mark.parametrize(("taken", "reached"), [(None, 0.0), ((-1.0, 1.0), 1.0)])
def test_int8_input_range_covers_all_frames(
    float_model: bytes, taken: tuple[float, float] | None, reached: float
) -> None:
    """The int8 input has the range that frames may have, not the range of the frames at hand."""
    dark = [picture * 0.2 - 0.7 for picture in _waves(12)]
    model = quantize(float_model, "int8", calibration=dark, taken=taken)
    [source] = Interpreter(model_content=model).get_input_details()
    scale, zero = source["quantization"]
    assert (255 - zero) * scale == pytest.approx(reached, abs=0.01)


def test_int8_weights_are_quantised_per_channel(float_model: bytes, pictures: list[Frame]) -> None:
    interpreter = Interpreter(model_content=quantize(float_model, "int8", calibration=pictures))
    scales = [
        len(d["quantization_parameters"]["scales"])
        for d in interpreter.get_tensor_details()
        if list(d["shape"]) == [64, 1, 1, 64]
    ]
    assert scales == [64]


def test_int8_keeps_the_bias_of_a_vanishing_channel(
    pictures: list[Frame],
) -> None:
    """Int8 represents the bias of a channel with vanishing weights."""
    weak = _small_cnn(weaken=True)
    model = quantize(weak, "int8", calibration=pictures)
    for picture in pictures:
        assert np.abs(_run(model, picture) - _run(weak, picture)).max() < 0.05


def test_int8_takes_photographs(float_model: bytes, frames: Path) -> None:
    crops = []
    for path in sorted(frames.iterdir()):
        image = cv2.imread(str(path))
        assert image is not None
        half = image.shape[0] // 2, image.shape[1] // 2
        for part in (image, image[: half[0]], image[half[0] :], image[:, half[1] :]):
            small = cv2.resize(part, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
            crops.append((small / 127.5 - 1).astype(np.float32)[None])
    assert _io_types(quantize(float_model, "int8", calibration=crops)) == ("uint8", "uint8")


def _with_head(*head: object) -> bytes:
    layers = tf.keras.layers
    return _to_tflite(
        tf.keras.Sequential(
            [
                layers.Input((SIDE, SIDE, 3)),
                layers.Conv2D(8, 3, strides=2, activation="relu6"),
                layers.GlobalAveragePooling2D(keepdims=True),
                *head,
            ]
        )
    )


def test_int8_reads_a_free_batch_size_off_integers(pictures: list[Frame]) -> None:
    source = _with_head(
        tf.keras.layers.Conv2D(5, 1), tf.keras.layers.Reshape((5,)), tf.keras.layers.Softmax()
    )
    assert "SHAPE" in _kinds(source)
    model = quantize(source, "int8", calibration=pictures, io_dtype="float32")
    # The one that remains makes the float output.
    assert _kinds(model).count("DEQUANTIZE") == 1
    assert np.abs(_run(model, pictures[0]) - _run(source, pictures[0])).max() < 0.05


def test_int8_refuses_an_operator_without_an_integer_form(pictures: list[Frame]) -> None:
    with pytest.raises(QuantizeError, match="no integer form for the operator ELU"):
        quantize(_with_head(tf.keras.layers.ELU()), "int8", calibration=pictures)


def _kinds(model: bytes) -> list[str]:
    parsed = parse(model)
    return [kind_of(parsed, op) for op in parsed.subgraphs[0].operators]


def test_input_of_any_size_is_refused() -> None:
    layers = tf.keras.layers
    free = tf.keras.Sequential(
        [layers.Input((None, None, 3)), layers.Conv2D(8, 3), layers.GlobalAveragePooling2D()]
    )
    with pytest.raises(QuantizeError, match="any size"):
        quantize(_to_tflite(free), "dynamic")


def _noise(count: int) -> list[Frame]:
    rng = np.random.default_rng(0)
    return [rng.uniform(-1, 1, (1, SIDE, SIDE, 3)).astype(np.float32) for _ in range(count)]


def _constant(count: int) -> list[Frame]:
    return [np.full((1, SIDE, SIDE, 3), level, np.float32) for level in np.linspace(-1, 1, count)]


@pytest.mark.parametrize(
    ("calibration", "why"),
    [
        (lambda: None, "of 0 given, 0 will do"),
        (list, "of 0 given, 0 will do"),
        (lambda: _waves(7), "of 7 given, 7 will do"),
        (lambda: _waves(1) * 20, "19 repeated"),
        (lambda: _constant(20), "20 constant"),
        (lambda: _noise(20), "20 noise"),
        (lambda: _waves(7) + _noise(20) + _constant(20), "of 47 given, 7 will do"),
        (lambda: [frame[:, 1:] for frame in _waves(8)], "needs finite float32"),
        (lambda: [frame.astype(np.float64) for frame in _waves(8)], "needs finite float32"),
        (lambda: [frame * np.float32(np.nan) for frame in _waves(8)], "needs finite float32"),
    ],
)
def test_int8_refuses_frames_that_show_nothing(
    float_model: bytes, calibration: Callable[[], list[Frame] | None], why: str
) -> None:
    with pytest.raises(CalibrationError, match=why):
        quantize(float_model, "int8", calibration=calibration())


def test_a_quantised_model_is_refused(float_model: bytes, pictures: list[Frame]) -> None:
    with pytest.raises(QuantizeError, match="quantised already"):
        quantize(quantize(float_model, "dynamic"), "dynamic")
    with pytest.raises(QuantizeError, match="quantised already"):
        quantize(quantize(float_model, "float16"), "int8", calibration=pictures)
    with pytest.raises(QuantizeError, match="input is uint8"):
        quantize(quantize(float_model, "int8", calibration=pictures), "dynamic")


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x1c\x00\x00\x00TFL3" + bytes(64)])
def test_bytes_that_are_no_model_are_refused(content: bytes) -> None:
    with pytest.raises(QuantizeError, match="no TFLite model"):
        quantize(content, "dynamic")


def test_unknown_mode_and_io_dtype_are_refused(float_model: bytes) -> None:
    with pytest.raises(QuantizeError, match=r"'int4'.*dynamic, float16, int8, float32"):
        quantize(float_model, "int4")
    with pytest.raises(QuantizeError, match=r"'int16'.*uint8, int8, float32"):
        quantize(float_model, "int8", io_dtype="int16")


def test_a_plan_of_another_model_is_refused(float_model: bytes) -> None:
    with pytest.raises(QuantizeError, match="names no operator"):
        quantize(float_model, "dynamic", plan=Plan(("CONV_2D 1x1 7>7 @7x7",)))


def test_a_plan_survives_json() -> None:
    plan = Plan(("CONV_2D 1x1 64>64 @16x16",), min_weights=10)
    assert Plan.from_dict(plan.to_dict()) == plan


@pytest.mark.parametrize(
    "data", [{}, {"integer": "CONV_2D"}, {"integer": [1]}, {"integer": [], "float": []}]
)
def test_other_json_is_no_plan(data: dict[str, object]) -> None:
    with pytest.raises(QuantizeError, match="plan has the keys"):
        Plan.from_dict(data)


def test_extracted_operator_computes_as_in_the_model(float_model: bytes) -> None:
    """An extracted operator computes what it does in the model."""
    head = operators(float_model)[-1]
    alone = Interpreter(model_content=extract(float_model, head))
    assert [list(d["shape"]) for d in alone.get_input_details()] == [[1, 64]]
    stem = extract(float_model, operators(float_model)[0])
    assert (_run(stem, _waves(1)[0]) >= 0).all()


def test_measure_takes_the_models_in_turns(float_model: bytes, pictures: list[Frame]) -> None:
    integer = quantize(float_model, "int8", calibration=pictures)
    found = measure({"float": float_model, "int8": integer}, seconds=0.05)
    assert set(found) == {"float", "int8"}
    assert found["float"].rounds == found["int8"].rounds >= 5
    assert all(0 < latency.median <= latency.p90 for latency in found.values())


def test_measure_names_a_model_that_does_not_run() -> None:
    with pytest.raises(QuantizeError, match="broken"):
        measure({"broken": b"not a model"}, seconds=0.01)


def test_tune_returns_the_quickest_plan_of_the_allowed_size(float_model: bytes) -> None:
    said: list[str] = []
    plan, trials = tune(float_model, max_size_ratio=0.6, seconds=0.2, progress=said.append)
    assert plan == trials[0].plan
    assert {trial.name for trial in trials} >= {"measured", "default", "all", "stored"}
    assert all(0 < trial.size_ratio < 0.6 for trial in trials)
    assert trials == sorted(trials, key=lambda trial: trial.latency_ratio)
    assert any("FULLY_CONNECTED 64>32" in line for line in said)
    assert len(quantize(float_model, "dynamic", plan=plan)) < len(float_model)


def test_tune_returns_smallest_if_none_is_small_enough(float_model: bytes) -> None:
    """Tune returns the smallest model if none is small enough."""
    plan, trials = tune(float_model, max_size_ratio=0.01, seconds=0.1)
    assert plan == min(trials, key=lambda trial: trial.size_ratio).plan


@pytest.mark.parametrize("mode", ["dynamic", "float16", "int8"])
def test_corrected_biases_undo_shift_of_rounded_weights(pictures: list[Frame], mode: str) -> None:
    """Corrected biases take off the shift of rounded weights."""
    layers = tf.keras.layers
    tf.keras.utils.set_random_seed(3)
    # Untrained biases are all zero, which the file stores once for both layers.
    body = (layers.Conv2D(64, 1, activation="relu6"), layers.Conv2D(64, 1))
    float_model = _with_head(*body, layers.GlobalAveragePooling2D())
    corrected = quantize(float_model, mode, calibration=pictures, io_dtype="float32")
    if mode == "int8":
        plain = integer(float_model, operators(float_model), pictures, "float32", None)
    else:
        plain = quantize(float_model, mode)
    fresh = _waves(40, seed=1)
    exact = np.array([_run(float_model, frame) for frame in fresh])

    def shift(model: bytes) -> float:
        found = np.array([_run(model, frame) for frame in fresh])
        return float(np.abs((found - exact).mean(axis=0)).mean())

    assert shift(corrected) < 0.7 * shift(plain)
    assert len(corrected) < 1.2 * len(plain)


def test_frames_that_can_not_correct_are_refused(float_model: bytes) -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, (10, 1, SIDE, SIDE, 3)).astype(np.float32)
    with pytest.raises(CalibrationError, match="10 noise"):
        quantize(float_model, "dynamic", calibration=list(noise))
