"""`python -m convert` as it is called."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server_process import ROOT

from convert.__main__ import COMMANDS, main
from convert.pipeline import Request, build
from convert.terminal import suppress_native_output
from server.recognition.manifest import read_bundle


def test_help_needs_none_of_the_heavy_packages() -> None:
    code = (
        "import sys\n"
        "from convert.__main__ import parser_for\n"
        "[parser_for(name).format_help() for name in [None, 'imagenet', 'keras', 'compare']]\n"
        "print(sorted({'tensorflow', 'cv2', 'numpy', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_environment_without_the_packages_is_told(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "sys.modules['rich'] = None\n"
        "from convert.__main__ import main\n"
        f"sys.exit(main(['train', {str(tmp_path)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: rich is not installed in {sys.prefix}: pip install -r")


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for name in COMMANDS:
        with pytest.raises(SystemExit) as ended:
            main([name, "--help"])
        assert ended.value.code == 0
        assert f"convert {name}" in capsys.readouterr().out


def test_no_command_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_keras_says_how_the_model_is_fed(
    colours_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["keras", str(colours_files / "colours.h5"), "--out", str(tmp_path)]
    command += ["--labels", str(colours_files / "labels.txt")]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: the model does not show how its pixels are scaled")
    assert "--scale 1/127.5 --offset -1 (pixels scaled to -1..1)" in error
    assert main([*command, "--scale", "1/127.5", "--offset", "-1"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == (
        "input 32 x 32 rgb, stretch; pixels * 0.00784314 + -1 as given; output taken as"
        " probabilities"
    )
    assert "no --accept: the verdict of every answer will be null" in "\n".join(out)
    assert out[-2] == f"wrote {tmp_path / 'colours' / '1'}"
    assert out[-1].endswith(f"LINESIDE_MODELS={tmp_path} LINESIDE_MODEL=colours scripts/serve")
    scaled = ["--scale", "1", "0.5", "2", "--offset", "0", "--resize", "letterbox"]
    assert main([*command, *scaled]) == 0
    assert "pixels * 1, 0.5, 2 + 0 as given" in capsys.readouterr().out
    recipe = read_bundle(tmp_path / "colours" / "2").manifest.recipe
    assert recipe is not None
    assert (recipe.scale, recipe.offset, recipe.resize) == ((1.0, 0.5, 2.0), 0.0, "letterbox")
    assert main([*command, "--scale", "0.25"]) == 0
    assert "pixels * 0.25 + 0 as given" in capsys.readouterr().out


def test_a_process_shows_our_lines_alone(colours_files: Path, tmp_path: Path) -> None:
    labels = str(colours_files / "labels.txt")
    command = [sys.executable, "-m", "convert", "saved-model", str(colours_files / "saved")]
    done = subprocess.run(
        [*command, "--labels", labels, "--out", str(tmp_path), "--scale", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 6


def test_mode_all_prints_one_table(
    colours_files: Path, colours_frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["tflite", str(colours_files / "colours.tflite"), "--mode", "all"]
    command += ["--labels", str(colours_files / "labels.txt"), "--out", str(tmp_path)]
    command += ["--validate", str(colours_frames), "--seconds", "0.2"]
    command += ["--calibrate", str(colours_frames), "--scale", "0.00784314", "--offset", "-1"]
    assert main([*command, "--plot", str(tmp_path / "plot.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("model "))
    rows = [line.split()[0] for line in lines[head + 1 : head + 5]]
    assert rows == ["float32", "float16", "dynamic", "int8"]
    assert "top-1" in lines[head]
    assert [path.name for path in tmp_path.iterdir()] == ["plot.png"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--max-size-ratio", "0.1"], 3, "more than --max-size-ratio 0.1"),
        (["--mode", "int8"], 1, "give --calibrate FOLDER"),
        (["--validate", "nowhere"], 1, "nowhere is neither a folder of classes nor a CSV"),
        (["--accept", "red", "--min-probability", "7"], 1, "--min-probability 7 should be in 0..1"),
        (["--scale", "1", "2"], 1, "the recipe is not usable"),
        (["--offset", "-1"], 1, "--offset needs --scale too"),
        (["--mean", "123.675"], 1, "--mean 123.675 should be from -1 to 1"),
        (["--std", "0.2", "0"], 1, "--std takes numbers above 0"),
        (["--mean", "0.5", "--scale", "1"], 1, "give one pair"),
        (["--mean", "0.5", "0.5", "--std", "1", "1", "1"], 1, "one a channel each"),
        (["--mean", "nan"], 1, "--mean nan should be from -1 to 1"),
        (["--scale", "0", "--offset", "1"], 1, "a scale is not 0"),
        (["--scale", "nan", "--offset", "1"], 1, "--scale and --offset take finite numbers"),
        (["--max-accuracy-drop", "0"], 1, "--max-accuracy-drop needs labelled frames"),
        (["--max-accuracy-drop", "nan"], 1, "--max-accuracy-drop nan should be a number"),
        (["--max-size-ratio", "nan"], 1, "--max-size-ratio nan should be a number above 0"),
        (["--mode", "all", "--max-size-ratio", "0.5"], 1, "--mode all writes no bundle that"),
        (["--min-probability", "0.9"], 1, "--min-probability does nothing without --accept LABEL"),
        (["--io", "int8"], 1, "--io does nothing without --mode int8"),
        (["--plot", "a.png"], 1, "--plot does nothing without --mode all"),
        (["--region", "a=0,0,1,1", "--region", "0,0,1,1"], 1, "several regions needs a name"),
        (["--tiles", "2x2"], 1, "--tiles is for detectors"),
        (["--tile-overlap", "0.1"], 1, "--tile-overlap does nothing without --tiles"),
        (["--region", "0.5,0,0.6,1"], 1, "recipe.region reaches beyond the frame"),
        (["--frames", "."], 1, "--frames does nothing without --mode all"),
        (["--accept", "gren"], 1, "--accept gren is not one of the labels blue, green, red"),
    ],
)
def test_what_goes_wrong_is_one_sentence_and_a_code(
    colours_files: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    command = ["tflite", str(colours_files / "colours.tflite"), "--out", str(tmp_path)]
    command += ["--labels", str(colours_files / "labels.txt"), *arguments]
    if not {"--scale", "--offset", "--mean", "--std"} & set(arguments):
        command += ["--scale", "1"]
    assert main(command) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert list(tmp_path.rglob("*.tflite")) == []


def test_one_value_is_no_classifiers_answer(
    tf: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layers = tf.keras.layers
    features = [layers.Input((16, 16, 3)), layers.GlobalAveragePooling2D()]
    with suppress_native_output():
        tf.keras.Sequential([*features, layers.Dense(1, "sigmoid")]).save(tmp_path / "one.keras")
    (tmp_path / "labels.txt").write_text("bad\ngood\n")
    command = ["keras", str(tmp_path / "one.keras"), "--labels", str(tmp_path / "labels.txt")]
    assert main([*command, "--scale", "1", "--out", str(tmp_path)]) == 1
    assert "with Dense(2, softmax)" in capsys.readouterr().err


@pytest.mark.parametrize("region", ["0,0,1", "0,0,1,2", "0,0,nan,1", "a,0,1,1"])
def test_region_that_is_none_is_refused(
    region: str, colours_files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["tflite", str(colours_files / "colours.tflite"), "--labels", "labels.txt"]
    with pytest.raises(SystemExit):
        main([*command, "--region", region])
    assert "argument --region: " in capsys.readouterr().err


def test_region_is_in_the_recipe(
    colours_files: Path, colours_frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["tflite", str(colours_files / "colours.tflite"), "--out", str(tmp_path)]
    command += ["--labels", str(colours_files / "labels.txt"), "--scale", "1"]
    assert main([*command, "--region", "1/2,0,1/2,1"]) == 0
    assert main([*command, "--region", "up=0,0,1,1/2", "--region", "down=0,1/2,1,1/2"]) == 0
    one, several = (read_bundle(tmp_path / "colours" / n).manifest.recipe for n in "12")
    assert one is not None
    assert several is not None
    assert one.region == (0.5, 0, 0.5, 1)
    assert [(each.name, each.box) for each in several.regions] == [
        ("up", (0, 0, 1, 0.5)),
        ("down", (0, 0.5, 1, 0.5)),
    ]
    validated = ["--region", "up=0,0,1,1/2", "--validate", str(colours_frames)]
    assert main([*command, *validated]) == 1
    assert "say nothing of several regions" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "colours" / "2"), str(tmp_path)]) == 1
    assert "several regions of a frame, each on its own" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["1/0", "1/", "/2", "half"])
def test_scale_that_is_no_number_is_refused(
    number: str, colours_files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["tflite", str(colours_files / "colours.tflite"), "--labels", "labels.txt"]
    with pytest.raises(SystemExit):
        main([*command, "--scale", number])
    assert f"{number} is not a number or a fraction" in capsys.readouterr().err


def test_missing_bundle_lists_those_there(
    request_of: Request, colours_frames: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = build(request_of, lambda _: None)
    for missing in (folder.with_name("2"), folder.parent, folder.parents[1] / "other" / "1"):
        assert main(["evaluate", str(missing), str(colours_frames)]) == 1
        assert f"{missing} is not a bundle" in (error := capsys.readouterr().err)
        assert f"; there are {folder}\n" in error


@pytest.mark.parametrize("number", ["0", "-1", "x"])
def test_versions_begin_at_one(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["iris", "--version", number])
    assert "is no whole number from 1 on" in capsys.readouterr().err


def test_calibrating_on_noise_is_refused(
    colours_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import cv2

    noise = tmp_path / "noise"
    noise.mkdir()
    rng: Any = np.random.default_rng(0)
    for number in range(12):
        cv2.imwrite(str(noise / f"{number}.png"), rng.integers(0, 256, (32, 32, 3), np.uint8))
    command = ["tflite", str(colours_files / "colours.tflite"), "--out", str(tmp_path)]
    command += ["--labels", str(colours_files / "labels.txt"), "--mode", "int8", "--scale", "1"]
    assert main([*command, "--calibrate", str(noise)]) == 1
    assert "12 noise" in capsys.readouterr().err
