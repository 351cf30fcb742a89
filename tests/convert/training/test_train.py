"""Training: real tiny networks on a few generated pictures."""

import json
import math
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.tools import flatbuffer_utils
from images import grainy_classes
from numpy.typing import NDArray
from server_process import ROOT, environ_without_coverage
from tiny_models import write_bundle

from convert.__main__ import main, parser_for
from convert.cli.train import normalisation_of, options_from
from convert.data.dataset import read_dataset
from convert.errors import ConvertError
from convert.sources import imagenet
from convert.sources import keras as sources
from convert.terminal import Terminal, suppress_native_output, tensorflow
from convert.training import distill, network, train
from convert.training.checkpoint import CHECKPOINT, Checkpoint, exclusive_lock, fingerprint
from convert.training.epochs import hits_of_others_choice
from convert.training.inputs import Augmentation, augment, class_weights, mixed
from convert.training.network import schedule
from server.errors import BundleError
from server.recognition.admission import Admission
from server.recognition.answers import Options
from server.recognition.frame import Limits
from server.recognition.interpreter import InterpreterPool
from server.recognition.manifest import MODEL, Recipe, read_bundle
from server.recognition.recognizer import Recognizer

pytest.importorskip("tensorflow", reason="tensorflow trains")

TINY = ("--alpha", "0.35", "--size", "32", "--weights", "none", "--batch", "4", "--seconds", "0.1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grainy pictures of a dark and a light class, 8 of each."""
    return grainy_classes(tmp_path_factory.mktemp("pictures") / "train", 8, (48, 40), blur=2)


def command(folder: Path, out: Path, *more: str) -> list[str]:
    return ["train", str(folder), "--out", str(out), "--name", "tiny", *TINY, *more]


# `python -m convert` that ends by SIGKILL when it has told of its third and last epoch. When it has
# told of its first one it copies the folder `out`: what a kill would have left then. It does both
# itself, since another process might be late.
KILLED = """
import os, shutil, signal, sys
from convert.__main__ import main
from convert.terminal import Terminal

say, out, copy = Terminal.say, sys.argv.pop(1), sys.argv.pop(1)

def say_and_die(terminal, line):
    say(terminal, line)
    if line.startswith("epoch 1 of 3"):
        shutil.copytree(out, copy)
    if line.startswith("epoch 3 of 3"):
        os.kill(os.getpid(), signal.SIGKILL)

Terminal.say = say_and_die
sys.exit(main())
"""


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Options of a training with all that it may have: a teacher, which is the bundle of a small
    network, pruned kernels, smoothed labels, mixed frames, and a verdict."""
    layers, folder = tensorflow().keras.layers, tmp_path_factory.mktemp("teacher")
    inner = [layers.Input((32, 32, 3)), layers.Flatten(), layers.Dense(2, activation="softmax")]
    model = folder / "model.tflite"
    model.write_bytes(sources.from_keras(tensorflow().keras.Sequential(inner)))
    teacher = write_bundle(folder / "teacher" / "1", model, ("dark", "light"), imagenet.recipe(32))
    more = ("--teacher", str(teacher), "--sparsity", "0.8", "--seed", "1")
    soft = ("--smoothing", "0.1", "--mixup", "0.2")
    return ("--epochs", "3", "--accept", "light", *more, *soft)


@pytest.fixture(scope="module")
def killed(
    folder: Path,
    options: tuple[str, ...],
    no_weights: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Path]:
    """Models folders of a training that was killed: after its third and last epoch, and as it was
    after the first, so that both epochs that may be chosen follow."""
    root = tmp_path_factory.mktemp("killed")
    last, first = root / "last", root / "first"
    run = subprocess.run(
        [sys.executable, "-c", KILLED, str(last), str(first), *command(folder, last, *options)],
        cwd=ROOT,
        env=environ_without_coverage() | {"KERAS_HOME": str(no_weights)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert not (last / "tiny").exists()
    return last, first


@pytest.fixture(scope="module")
def bundles(
    folder: Path, options: tuple[str, ...], no_weights: Path, killed: tuple[Path, Path]
) -> Path:
    """A models folder with tiny/1, trained for three epochs without a break, then killed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_HOME", str(no_weights))
        assert main(command(folder, killed[0], *options)) == 0
    return killed[0]


def test_a_training_ends_in_a_bundle_that_serves(bundles: Path, folder: Path) -> None:
    bundle = read_bundle(bundles / "tiny" / "1")
    manifest = bundle.manifest
    assert [label.name for label in bundle.labels] == ["dark", "light"]
    assert manifest.quantization == "dynamic"
    assert manifest.report is not None
    assert manifest.report.images == 4
    assert manifest.baseline is not None
    assert manifest.verdict is not None
    assert manifest.verdict.accept == ("light",)
    assert not list((bundles / ".training").iterdir())
    page = (bundle.folder / "report.html").read_text("utf-8")
    assert "also chose the epoch" in page
    assert "judged by the epoch that the other half chooses" in page
    assert "Labels that may be wrong" in page
    pool = InterpreterPool(bundle.model_path, 1)
    recognizer = Recognizer(bundle, pool, Admission(1, 1), Limits())
    try:
        recognizer.check_golden()
    except BundleError as error:
        pytest.fail(str(error))
    answer = recognizer.recognize((folder / "dark" / "0.png").read_bytes(), Options())
    assert sum(p.probability for p in answer.predictions) == pytest.approx(1, abs=1e-3)


def constants(model: Path) -> list[tuple[tuple[int, ...], bytes]]:
    """Shape and content of every constant tensor of a .tflite. The converter orders the file's
    sections and names its tensors anew in each run."""
    parsed = flatbuffer_utils.read_model_from_bytearray(bytearray(model.read_bytes()))
    buffers = parsed.buffers
    return sorted(
        (tuple(int(n) for n in tensor.shape), bytes(buffers[tensor.buffer].data))
        for tensor in parsed.subgraphs[0].tensors
        if tensor.shape is not None and buffers[tensor.buffer].data is not None
    )


@pytest.mark.usefixtures("without_weights")
def test_killed_training_resumes_to_the_same_model(
    bundles: Path,
    folder: Path,
    options: tuple[str, ...],
    killed: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A training that goes on after its first epoch ends in the model of one that had all three in
    one process."""
    out = killed[1]
    assert not (out / "tiny").exists()
    assert main(command(folder, out, *options)) == 0
    said = capsys.readouterr().out
    assert "resuming after epoch 1 of 3" in said
    assert "epoch 1 of 3:" not in said
    resumed, whole = (p / "tiny" / "1" / MODEL for p in (out, bundles))
    assert constants(resumed) == constants(whole)
    assert not list((out / ".training").iterdir())


def test_pruned_kernels_are_zero(bundles: Path) -> None:
    """Four of five weights are zero in the kernels that pruning reaches: in this network nearly
    all of the constants."""
    data = b"".join(content for _, content in constants(bundles / "tiny" / "1" / MODEL))
    values = np.frombuffer(data, np.int8)
    assert 0.6 < (values == 0).mean() < 0.85


def test_a_full_disk_is_named_and_nothing_stays(tmp_path: Path) -> None:
    file = tmp_path / CHECKPOINT
    file.with_suffix(".part").symlink_to("/dev/full")
    with pytest.raises(ConvertError, match=r"checkpoint\.npz can't be written: No space left"):
        Checkpoint(weights=[np.zeros(100_000)]).save(file)
    assert list(tmp_path.iterdir()) == []


def test_a_work_folder_is_one_trainings(tmp_path: Path) -> None:
    work = tmp_path / "a" / "b"
    at_work = pytest.raises(ConvertError, match="the same training is at work in")
    with exclusive_lock(work), at_work, exclusive_lock(work):
        pass
    file = work / "lock" / "c"
    with (
        exclusive_lock(work),
        pytest.raises(ConvertError, match="can't be used: Not a dir"),
        exclusive_lock(file),
    ):
        pass


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--accept", "shiny"), "--accept shiny is not one of the labels dark, light"),
        (("--mode", "int4"), "--mode int4 should be one of"),
        (("--mode", "int8", "--io", "foo"), "--io foo should be one of"),
        (("--mode", "int8", "--light", "even"), "--light even can't be with --mode int8"),
        (("--mode", "int8", "--tune"), "--tune is for --mode dynamic"),
        (("--min-probability", "3"), "--min-probability 3 should be in 0..1"),
        (("--min-probability", "0.9"), "--min-probability does nothing without --accept LABEL"),
        (("--calibrate", "/nowhere"), "/nowhere is not a folder"),
        (("--max-size-ratio", "nan"), "--max-size-ratio nan should be"),
        (("--sparsity", "1.5"), "--sparsity 1.5 should be from 0 to 0.99"),
        (("--epochs", "-1"), "--epochs -1 should be from 0"),
        (("--normalisation", "learn"), "--normalisation learn does nothing with --weights none"),
        (
            ("--weights", "imagenet", "--normalisation", "learn", "--batch", "3"),
            "--batch 3 should be at least 4",
        ),
        (("--folds", "1"), "--folds 1 should be from 2 to 20"),
        (("--similar-apart",), "--similar-apart does nothing without --folds K"),
        (("--frozen", "18"), "--frozen 18 should be from 0 to 17"),
        (("--smoothing", "1"), "--smoothing 1 should be from 0 to 0.9"),
        (("--mixup", "-1"), "--mixup -1 should be from 0 to 10"),
        (("--teacher", "nowhere"), "--teacher nowhere is neither a bundle's folder"),
        (("--size", "16"), "--size 16 is too small"),
        (("--weights", "imagenet"), "no ImageNet weights for alpha 0.35 at 32 pixels"),
    ],
)
def test_what_can_not_be_trained_is_refused_in_one_sentence(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    message: str,
) -> None:
    assert main(command(folder, tmp_path, *more)) == 1
    ended = capsys.readouterr()
    assert message in ended.err
    assert "epoch" not in ended.out
    assert not (tmp_path / "tiny").exists()


@pytest.mark.usefixtures("without_weights")
def test_folds_judge_a_model_of_all_frames(folder: Path, tmp_path: Path) -> None:
    """Its report has the figures of the folds, and says that its frames were learned from."""
    assert main(command(folder, tmp_path, "--folds", "2", "--epochs", "0")) == 0
    bundle = tmp_path / "tiny" / "1"
    found = json.loads((bundle / "report.json").read_bytes())
    crossed = found["crossed"]
    assert (found["learned"], found["chose_epoch"], found["frames"]) == (True, False, 16)
    assert (crossed["folds"], crossed["epoch"], crossed["top1"]["frames"]) == (2, 0, 16)
    counts = [(each["label"], each["frames"]) for each in crossed["classes"]]
    assert counts == [("dark", 8), ("light", 8)]
    page = (bundle / "report.html").read_text("utf-8")
    assert "2 float models were each trained on all frames but those of a fold" in page
    assert "The model learned from these frames" in page
    manifest = read_bundle(bundle).manifest
    assert manifest.source == "trained on train, 16 frames"
    assert manifest.report is not None
    assert manifest.report.top1 == manifest.report.top1_float == crossed["top1"]["share"]
    recalls = [each.recall for each in manifest.report.classes.values()]
    assert recalls == [each["share"] for each in crossed["classes"]]


def test_random_weights_are_never_kept() -> None:
    """By chance they may name more frames right than later ones."""
    assert train.Options(weights="none", epochs=3).first_epoch == 1
    assert train.Options(weights="slice", epochs=3).first_epoch == 1
    assert train.Options(weights="none", epochs=0).first_epoch == 0
    assert train.Options(epochs=3).first_epoch == 0


def test_a_teacher_of_other_classes_is_refused(
    bundles: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder, tmp_path / "renamed")
    (tmp_path / "renamed" / "dark").rename(tmp_path / "renamed" / "black")
    teacher = ("--teacher", str(bundles / "tiny" / "1"))
    assert main(command(tmp_path / "renamed", tmp_path, *teacher)) == 1
    assert "knows dark, light, but the images are of black, light" in capsys.readouterr().err


def test_a_teacher_answers_probabilities(tmp_path: Path) -> None:
    keras, recipe = tensorflow().keras, Recipe(width=8, height=8)
    layers = [keras.layers.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(2)]
    for name, more in (("logits", []), ("good", [keras.layers.Softmax()])):
        with suppress_native_output():
            keras.Sequential([*layers, *more]).save(tmp_path / f"{name}.keras")
    teacher = distill.load_teacher(tmp_path / "good.keras", recipe, ("a", "b"), 1)
    assert teacher(np.zeros((3, 8, 8, 3), np.uint8)).shape == (3, 2)
    with pytest.raises(ConvertError, match=r"logits\.keras answers .* end it with a softmax"):
        distill.load_teacher(tmp_path / "logits.keras", recipe, ("a", "b"), 1)


def test_unusable_images_are_refused_before_training(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder, tmp_path / "train")
    broken = tmp_path / "train" / "dark" / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    assert main(command(tmp_path / "train", tmp_path)) == 1
    assert str(broken) in capsys.readouterr().err
    leak = shutil.copytree(folder, tmp_path / "val")
    assert main(command(folder, tmp_path, "--validate", str(leak))) == 1
    assert str(leak / "dark" / "0.png") in capsys.readouterr().err


def test_frames_are_judged_by_the_epoch_that_others_choose() -> None:
    # Twenty epochs, each right on half of the frames by chance: the best of them flatters.
    flattering, fair = [], []
    for seed in range(30):
        right = np.random.default_rng(seed).integers(0, 2, (20, 60)).astype(np.float32)
        flattering.append(right.sum(axis=1).max())
        fair.append(hits_of_others_choice(right, 1 - right, 0))
    assert np.mean(flattering) > 36
    assert np.mean(fair) == pytest.approx(30, abs=2)
    # One epoch is the best by far, whoever chooses.
    right[7] = 1
    assert hits_of_others_choice(right, 1 - right, 0) == pytest.approx(60)
    assert hits_of_others_choice(right, 1 - right, 8) < 60


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    arrays: list[NDArray[Any]] = [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.array(7, np.int64),
    ]
    Checkpoint(3, 2, 0.7, 0.1 + 0.2, arrays, arrays[:1], arrays[1:]).save(tmp_path / CHECKPOINT)
    back = Checkpoint.load(tmp_path / CHECKPOINT)
    assert back is not None
    assert (back.epoch, back.best_epoch, back.best_top1, back.best_loss) == (3, 2, 0.7, 0.1 + 0.2)
    assert [a.tobytes() for a in back.weights] == [a.tobytes() for a in arrays]
    assert back.optimizer[0].dtype == np.int64


def test_a_damaged_checkpoint_counts_as_none(tmp_path: Path) -> None:
    file = tmp_path / CHECKPOINT
    assert Checkpoint.load(file) is None
    Checkpoint(1, 0, 0.5, 1.0, [np.zeros(1000)], [], []).save(file)
    file.write_bytes(file.read_bytes()[:500])
    assert Checkpoint.load(file) is None


def test_the_fingerprint_follows_options_labels_and_bytes(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "train")
    one, two = read_dataset(folder), read_dataset(tmp_path / "train")
    same = fingerprint(Augmentation(), one)
    assert fingerprint(Augmentation(), two) == same
    assert fingerprint(Augmentation(flips=False), one) != same
    assert fingerprint(Augmentation(), read_dataset(folder, ("light", "dark"))) != same
    (tmp_path / "train" / "dark" / "0.png").write_bytes(b"other")
    assert fingerprint(Augmentation(), two) != same


def test_augmentation_keeps_shape_and_repeats_for_a_seed() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (33, 20, 3), np.uint8)
    one, two, other = (augment(pixels, np.random.default_rng(s), Augmentation()) for s in (1, 1, 2))
    assert one.shape == pixels.shape
    assert one.dtype == np.uint8
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


def test_augmentation_mirrors_nothing_at_the_edge() -> None:
    """A dark edge on a light part stays one edge, at the border."""
    pixels = np.full((64, 64, 3), 200, np.uint8)
    pixels[:, :6] = 20
    bounds = Augmentation(flips=False, noise=0, blur=0.3)
    for seed in range(50):
        out = augment(pixels, np.random.default_rng(seed), bounds)
        middle = (int(out.max()) + int(out.min())) / 2
        dark = out[8:-8, :, 0] < middle
        assert (np.diff(dark.astype(np.int8), axis=1) != 0).sum(axis=1).tolist() == [1] * len(dark)


def test_class_weights_favour_rare_and_average_to_one() -> None:
    """Class weights favour rare classes by the square root and average to one."""
    weights = class_weights((100, 25))
    assert weights[1] / weights[0] == pytest.approx(2)
    assert (weights * (100, 25)).sum() == pytest.approx(125)


def test_the_pruning_schedule_rises_over_the_first_half() -> None:
    shares = [schedule(step, 100, 0.8) for step in range(101)]
    assert shares[0] == 0
    assert shares == sorted(shares)
    assert shares[50] == shares[100] == 0.8
    assert shares[25] == pytest.approx(0.8 * (1 - 0.5**3))


def test_mixed_frames_are_mostly_themselves() -> None:
    pixels = np.zeros((50, 2, 2, 3), np.uint8)
    pixels += np.arange(50, dtype=np.uint8)[:, None, None, None] * 5
    out, targets = mixed(pixels, np.eye(50, dtype=np.float32), np.random.default_rng(0), 0.5)
    assert out.dtype == np.uint8
    assert (targets.argmax(axis=1) == np.arange(50)).all()
    np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-6)
    assert 0.5 <= targets.max(axis=1).min() < 0.9
    # A frame is mixed as its target is.
    np.testing.assert_allclose(out[:, 0, 0, 0], targets @ (np.arange(50) * 5), atol=0.51)


def test_a_scaled_augmentation_of_0_changes_nothing() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (33, 20, 3), np.uint8)
    none = Augmentation(flips=False).scaled(0)
    assert np.array_equal(augment(pixels, np.random.default_rng(1), none), pixels)
    assert Augmentation().scaled(2).rotation == 6


@pytest.mark.parametrize(("blocks", "first"), [(0, "Conv1"), (3, "block_3_expand"), (17, "Conv_1")])
def test_frozen_blocks_do_not_learn(blocks: int, first: str) -> None:
    model = network.build(2, 0.35, 32, "none")
    network.freeze(model, pretrained=True, blocks=blocks)
    learning = [layer.name for layer in model.layers if layer.trainable and layer.weights]
    assert learning[0] == first
    assert learning[-1] == network.HEAD
    assert not any("BN" in name or "bn" in name for name in learning)


@pytest.mark.parametrize(
    ("words", "frames", "learns", "patience", "rate"),
    [
        ((), 149, False, 6, 3e-5),
        ((), 150, True, math.inf, 1e-3),
        (("--patience", "3"), 200, True, 3, 1e-3),
        (("--normalisation", "keep"), 200, False, 6, 3e-5),
        (("--normalisation", "learn"), 20, True, math.inf, 1e-3),
        (("--batch", "3"), 200, False, 6, 3e-5),
        (("--folds", "5"), 187, False, 6, 3e-5),
        (("--folds", "5"), 188, True, math.inf, 1e-3),
        (("--weights", "none"), 200, False, 6, 1e-3),
    ],
)
def test_normalisation_suits_the_number_of_frames(
    words: tuple[str, ...], frames: int, learns: bool, patience: float, rate: float
) -> None:
    args = parser_for("train").parse_args(["train", "folder", *words])
    options = replace(options_from(args), normalisation=normalisation_of(args, frames))
    assert (options.pretrained and not options.keeps) is learns
    assert (options.idle_epochs, options.peak_rate) == (patience, rate)


def test_a_head_begins_anew_if_normalisation_learns(
    keras_home: Path, folder: Path, tmp_path: Path
) -> None:
    """It is kept beside, in case that no epoch is better."""
    options = train.Options(
        size=32, weights="imagenet-224", epochs=1, batch=4, normalisation="learn"
    )
    dataset, terminal = read_dataset(folder), Terminal()
    training = train.Training(
        dataset, dataset, imagenet.recipe(32), options, tmp_path, terminal, 1, stop_after=0
    )
    begun = training.fit()
    head = [values.shape for values in training.model.get_layer(network.HEAD).get_weights()]
    assert [values.shape for values in begun.best[-2:]] == head
    assert all(np.any(values) for values in begun.best[-2:])
    assert not any(np.any(values) for values in begun.weights[-2:])
    whole = train.Training(
        dataset,
        dataset,
        imagenet.recipe(32),
        options,
        tmp_path,
        terminal,
        1,
        learner=training.learner,
    ).fit()
    changed = [
        not np.array_equal(one, other)
        for one, other in zip(begun.weights, whole.weights, strict=True)
    ]
    assert 150 < sum(changed) < len(changed)
    assert np.isfinite(whole.logits[1]).all()


def test_normalisation_learns_if_asked_to() -> None:
    """From the first block that learns on, with statistics that follow a few steps."""
    model = network.build(2, 0.35, 32, "none")
    network.freeze(model, pretrained=True, blocks=3, normalisation="learn")
    norms = [layer for layer in model.layers if "BN" in layer.name]
    learning = [layer for layer in norms if layer.trainable]
    assert 0 < len(learning) < len(norms)
    assert {layer.momentum for layer in learning} == {network.STATISTICS_MOMENTUM}


def test_weights_of_224_pixels_fit_another_size(keras_home: Path) -> None:
    small, large = (network.build(2, 1.0, size, "imagenet-224") for size in (64, 224))
    for one, other in zip(small.get_weights(), large.get_weights(), strict=True):
        assert np.array_equal(one, other)
