"""Cross-validation: folds, the epochs that judge them, and real tiny networks."""

from pathlib import Path

import numpy as np
import pytest
from images import grainy_classes

from convert.data.dataset import Dataset, LabelledFrame, read_dataset
from convert.errors import ConvertError
from convert.sources import imagenet
from convert.terminal import Terminal
from convert.training.checkpoint import CHECKPOINT
from convert.training.cross_validation import (
    CrossValidation,
    OnProgress,
    Progress,
    cross_validate,
    judge,
)
from convert.training.folds import assign_folds, without
from convert.training.inputs import class_weights, labels_of, load_pixels
from convert.training.network import HEAD
from convert.training.train import Frames, Options, Training, prepare
from server.recognition.frame import Limits

TINY = Options(alpha=0.35, size=32, weights="none", epochs=0, batch=4)


def numbered(*counts: int) -> Dataset:
    """A data set of frames that are nowhere, `counts` of each class."""
    labels = np.repeat(np.arange(len(counts)), counts)
    frames = (LabelledFrame(Path(f"{i}.png"), int(label)) for i, label in enumerate(labels))
    return Dataset(tuple(f"class {n}" for n in range(len(counts))), tuple(frames))


def test_folds_have_all_classes_alike() -> None:
    dataset = numbered(50, 12, 6)
    folds = assign_folds(dataset, 5, seed=3)
    for label in range(3):
        held = np.bincount(folds[labels_of(dataset) == label], minlength=5)
        assert np.ptp(held) <= 1
    assert np.ptp(np.bincount(folds)) <= 1
    assert (folds == assign_folds(dataset, 5, seed=3)).all()
    assert (folds != assign_folds(dataset, 5, seed=4)).any()
    train, held_back = without(dataset, folds, 2)
    assert len(train.frames) == (folds != 2).sum()
    assert not set(train.frames) & set(held_back.frames)


def test_near_duplicates_stay_in_one_fold() -> None:
    """Frames of one number stay together, also of two classes, unless they are a whole class."""
    dataset = numbered(40, 9)
    groups = {item.path: row // 3 for row, item in enumerate(dataset.frames[:40])}
    groups |= {item.path: 99 for item in dataset.frames[40:]}
    groups[dataset.frames[0].path] = 12
    folds = assign_folds(dataset, 3, 0, groups)
    numbers = np.array([groups[item.path] for item in dataset.frames])
    for number in range(13):
        assert len(set(folds[numbers == number])) == 1
    assert np.bincount(folds[40:]).tolist() == [3, 3, 3]
    assert np.ptp(np.bincount(folds[:40])) <= 3


def test_fewer_groups_than_folds_are_refused() -> None:
    """Each fold needs a frame that differs, or nothing would be judged by it."""
    dataset = numbered(20, 20)
    groups = {item.path: row // 10 for row, item in enumerate(dataset.frames)}
    assert len(set(assign_folds(dataset, 4, 0, groups))) == 4
    with pytest.raises(ConvertError, match="into 5 folds: only 4 of them differ"):
        assign_folds(dataset, 5, 0, groups)


def test_a_class_that_a_fold_lacks_weighs_nothing() -> None:
    """Such a fold learns of the others, instead of weights that are not numbers."""
    weights = class_weights((25, 0, 100))
    assert weights[1] == 0
    assert weights[0] == pytest.approx(2 * weights[2])


@pytest.mark.parametrize(
    ("counts", "folds", "message"),
    [
        ((3, 1), 2, "class 1 has one frame"),
        ((3, 2), 6, "5 frames can't be divided into 6 folds: 2 to 5"),
        ((3, 2), 1, "into 1 folds: 2 to 5"),
    ],
)
def test_what_can_not_be_divided_is_refused(
    counts: tuple[int, ...], folds: int, message: str
) -> None:
    with pytest.raises(ConvertError, match=message):
        assign_folds(numbered(*counts), folds, 0)


def test_a_fold_is_judged_by_an_epoch_that_others_chose() -> None:
    """Of two classes by chance no epoch is right on more than half; an epoch's own fold would
    choose one that is."""
    shares, truth, folds = [], np.zeros(40, np.int64), np.arange(40) % 4
    for seed in range(40):
        rng = np.random.default_rng(seed)
        runs = [rng.normal(size=(20, 10, 2)).astype(np.float32) for _ in range(4)]
        shares.append(judge(runs, truth, folds, 0).top1["share"])
    assert np.mean(shares) == pytest.approx(0.5, abs=0.03)

    # The epochs 3 and 5 are right on all frames of three folds; on the last it is another one.
    runs = [np.tile([0.0, 1.0], (20, 10, 1)).astype(np.float32) for _ in range(4)]
    for run in runs[:3]:
        run[[3, 5], :, 0] = 2
        run[5, :, 0] = 3
    runs[3][7, :, 0] = 2
    found = judge(runs, truth, folds, 0)
    assert found.epochs == (5, 5, 5, 5)
    assert found.epoch == 5
    assert found.right.tolist() == (folds != 3).tolist()
    assert judge(runs, truth, folds, 8).top1["count"] == 0


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Grainy pictures of a dark and a light class, 5 of each."""
    return read_dataset(grainy_classes(tmp_path_factory.mktemp("pictures"), 5, (40, 40)))


def test_an_ended_cross_validation_goes_on(pictures: Dataset, tmp_path: Path) -> None:
    """What the callback raises comes out, and the same call later trains nothing twice. How a fold
    goes on in its middle is a matter of its training."""
    pytest.importorskip("tensorflow", reason="tensorflow trains")
    told: list[Progress] = []
    decoded = tmp_path / "decoded.npy"

    def run(on_progress: OnProgress) -> CrossValidation:
        return cross_validate(
            pictures,
            imagenet.recipe(32),
            TINY,
            tmp_path / "work",
            Terminal(),
            1,
            count=2,
            decoded=decoded,
            on_progress=on_progress,
        )

    def end(progress: Progress) -> None:
        told.append(progress)
        if progress.fold == 1:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run(end)
    assert [(each.fold, each.epoch) for each in told] == [(0, 0), (1, 0)]
    assert told[0].finished == ()
    assert told[1].finished == (told[0].top1,)
    states = {file: file.read_bytes() for file in (tmp_path / "work").rglob(CHECKPOINT)}
    assert len(states) == 2
    again: list[Progress] = []
    found = run(again.append)
    assert again == told
    assert {file: file.read_bytes() for file in states} == states
    assert decoded.exists()
    assert sum(each["frames"] for each in found.recalls) == found.top1["frames"] == 10
    tops = [found.right[found.folds == fold].mean() for fold in range(2)]
    assert tops == pytest.approx([each.top1 for each in told])


def test_frames_that_are_judged_do_not_end_the_head(pictures: Dataset, tmp_path: Path) -> None:
    """A fold's head is the same whatever the frames are that it is judged by."""
    pytest.importorskip("tensorflow", reason="tensorflow trains")
    heads = []
    learner = prepare(2, TINY)
    pixels = load_pixels(pictures, imagenet.recipe(32), Limits(), tmp_path / "pixels.npy")
    labels = labels_of(pictures)
    for held in (labels, 1 - labels):
        learner.reset()
        training = Training(
            pictures,
            pictures,
            imagenet.recipe(32),
            TINY,
            tmp_path,
            Terminal(),
            1,
            frames=(Frames(pixels, labels), Frames(pixels, held)),
            chooses=False,
            learner=learner,
        )
        training._train_head()
        heads.append(training.model.get_layer(HEAD).get_weights())
    for one, other in zip(*heads, strict=True):
        np.testing.assert_array_equal(one, other)
