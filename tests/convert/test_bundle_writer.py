"""A bundle is written whole and servable, or not at all."""

from dataclasses import replace
from pathlib import Path

import pytest

from convert import bundle_writer as bundle
from convert.data.dataset import labelled
from convert.errors import ConvertError, GateError
from convert.pipeline import Request, build
from server.errors import BundleError
from server.recognition.answers import Options
from server.recognition.manifest import Golden, Manifest, VerdictPolicy, read_bundle
from server.values.labels import Label


def silent(_: str) -> None:
    """Takes a line of progress."""


def left_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_versions_count_up(request_of: Request) -> None:
    assert build(request_of, silent) == request_of.out / "colours" / "1"
    assert build(replace(request_of, version=7), silent).name == "7"
    assert build(request_of, silent).name == "8"
    assert sorted(p.name for p in (request_of.out / "colours").iterdir()) == ["1", "7", "8"]


def test_a_taken_version_is_refused(request_of: Request) -> None:
    build(request_of, silent)
    before = left_in(request_of.out)
    with pytest.raises(ConvertError, match="colours/1 exists already"):
        build(replace(request_of, version=1), silent)
    assert left_in(request_of.out) == before


def test_the_server_reads_what_was_written(request_of: Request) -> None:
    policy = VerdictPolicy(accept=("green",), min_probability=0.7)
    request = replace(request_of, verdict=policy, source="a test", license="Apache-2.0")
    folder = build(request, silent)
    read = read_bundle(folder)
    assert read.manifest.verdict == policy
    assert (read.manifest.name, read.manifest.version) == ("colours", 1)
    assert (read.manifest.quantization, read.manifest.source) == ("dynamic", "a test")
    assert set(read.manifest.sha256) == {"model.tflite", "labels.txt"}
    assert read.labels == request.labels


def test_every_file_is_guarded(request_of: Request, colours_frames: Path) -> None:
    validation = labelled(colours_frames, request_of.labels)
    folder = build(replace(request_of, validation=validation, samples=2), silent)
    guarded = {*read_bundle(folder).manifest.sha256, "bundle.json"}
    assert set(left_in(folder)) == guarded
    victim = next((folder / "golden").iterdir())
    victim.write_bytes(victim.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"golden/.* is damaged"):
        read_bundle(folder)


def test_a_golden_frame_that_fails_leaves_nothing(
    request_of: Request, colours_frames: Path
) -> None:
    frame = next((colours_frames / "red").glob("0.*"))
    file = f"golden/blue{frame.suffix}"
    manifest = Manifest(
        name="colours",
        version=1,
        sha256={},
        recipe=request_of.recipe,
        quantization="float32",
        golden=(Golden(file=file, label="blue", probability=0.9),),
    )
    with pytest.raises(ConvertError, match=r"should be blue at 0\.900"):
        bundle.write_bundle(
            request_of.out, manifest, request_of.float_model, request_of.labels, {file: frame}
        )
    assert list(request_of.out.iterdir()) == []


def test_a_file_in_the_place_of_the_folder_is_named(request_of: Request) -> None:
    taken = request_of.out / "taken"
    taken.write_bytes(b"")
    with pytest.raises(ConvertError, match="taken/colours/1 can't be written: Not a directory"):
        build(replace(request_of, out=taken), silent)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "a b"}, "name 'a b' is not usable"),
        ({"version": -1}, "version -1 should be a whole number"),
        ({"labels": (Label("one"), Label("two"))}, "2 labels, but the model answers 3"),
        ({"mode": "int4"}, "--mode int4 should be one of dynamic, float16, int8, float32"),
        ({"mode": "int8"}, "give --calibrate FOLDER"),
        ({"io_dtype": "int16"}, "--io int16 should be one of"),
        ({"mode": "float16", "tune": True}, "--tune is for --mode dynamic"),
        (
            {"verdict": VerdictPolicy(accept=("pink",))},
            "--accept pink is not one of the labels blue",
        ),
    ],
)
def test_a_request_that_contradicts_itself(
    request_of: Request, change: dict[str, object], message: str
) -> None:
    with pytest.raises(ConvertError, match=message):
        build(replace(request_of, **change), silent)  # type: ignore[arg-type]
    assert left_in(request_of.out) == []


def test_gates_leave_no_bundle(request_of: Request, colours_frames: Path) -> None:
    with pytest.raises(GateError, match=r"size, more than --max-size-ratio 0\.1"):
        build(replace(request_of, max_size_ratio=0.1), silent)
    validation = labelled(colours_frames, request_of.labels)
    # No model gains what this asks for, so that the gate must close.
    strict = replace(request_of, validation=validation, max_accuracy_drop=-50.0)
    with pytest.raises(GateError, match="more than --max-accuracy-drop -50"):
        build(strict, silent)
    assert left_in(request_of.out) == []


def test_too_few_frames_skip_the_correction_of_biases(
    request_of: Request, colours_frames: Path
) -> None:
    frames, said = tuple(sorted(colours_frames.rglob("*.*")))[:3], list[str]()
    folder = build(replace(request_of, calibration=frames), said.append)
    assert said[0].startswith("biases not corrected: calibration needs at least 8 different")
    plain = build(request_of, silent)
    assert (folder / "model.tflite").read_bytes() == (plain / "model.tflite").read_bytes()
    with pytest.raises(ConvertError, match="of 3 given, 3 will do"):
        build(replace(request_of, mode="int8", calibration=frames), silent)


@pytest.mark.parametrize("io_dtype", ["uint8", "int8", "float32"])
def test_int8_is_fed_what_its_recipe_says(
    request_of: Request, colours_frames: Path, io_dtype: str
) -> None:
    frames = tuple(sorted(colours_frames.rglob("*.*")))
    request = replace(request_of, mode="int8", io_dtype=io_dtype, calibration=frames)
    recognizer = bundle.load(build(request, silent))
    assert recognizer.recipe.dtype == recognizer.pool.inputs[0].dtype == io_dtype
    data = next((colours_frames / "red").glob("0.*")).read_bytes()
    assert recognizer.recognize(data, Options()).label == "red"
