"""What is found in labelled photographs before a training: duplicates, wrong labels, a curve."""

from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest

from convert.__main__ import main
from convert.data.dataset import Dataset, LabelledFrame, read_dataset, split
from convert.folder_check.checking import check_folder, check_recipe, grouped, read_fingerprints
from convert.folder_check.curve import Gain, learning_curve
from convert.folder_check.judge import FOLDS, folds_by_class, suspected
from convert.folder_check.near_duplicates import fingerprint, groups, near_duplicates
from convert.folder_check.result import FolderCheck, advice, details, lines
from convert.terminal import Terminal
from server.recognition.frame import Pixels


def surface(seed: int, blur: float = 2.0) -> Pixels:
    """A grainy grey surface of its own, uint8 [96, 96, 3]."""
    noise = np.random.default_rng(seed).normal(0, 1, (96, 96)).astype(np.float32)
    smooth = np.asarray(cv2.GaussianBlur(noise, (0, 0), blur), np.float32)
    grey = np.clip(128 + 40 * smooth / smooth.std(), 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def darker(pixels: Pixels) -> Pixels:
    """The same with a shorter exposure, some grain, and moved by a pixel."""
    grain = np.random.default_rng(9).normal(0, 4, pixels.shape)
    moved = np.roll(pixels, 1, axis=1)
    return np.clip(moved * 0.6 + grain, 0, 255).astype(np.uint8)


def test_two_exposures_are_nearly_the_same_picture() -> None:
    pictures = [surface(seed) for seed in range(20)]
    pictures += [darker(pictures[3]), darker(pictures[7])]
    pairs = near_duplicates([fingerprint(each) for each in pictures])
    assert pairs is not None
    assert sorted(pairs) == [(3, 20), (7, 21)]
    assert len(set(groups(len(pictures), pairs).tolist())) == 20


def test_parts_that_lie_alike_are_not_nearly_the_same() -> None:
    """The outline that all pictures share says nothing."""
    outline = np.zeros((96, 96, 3), np.uint8)
    cv2.circle(outline, (48, 48), 30, (255, 255, 255), 3)
    pictures = [cv2.addWeighted(surface(seed), 0.3, outline, 0.7, 0) for seed in range(20)]
    assert near_duplicates([fingerprint(np.asarray(each, np.uint8)) for each in pictures]) == []


def test_even_pictures_have_no_duplicates() -> None:
    even = np.full((40, 40, 3), 90, np.uint8)
    assert near_duplicates([fingerprint(even)] * 12) == []


def test_what_can_not_be_told_is_not_called_no_duplicate() -> None:
    assert near_duplicates([fingerprint(surface(1))] * 5) is None
    halves = [surface(seed) for seed in (1, 2)] * 6
    assert near_duplicates([fingerprint(each) for each in halves]) is None
    frames = tuple(LabelledFrame(Path(f"a/{i}.png"), 0) for i in range(5))
    found = FolderCheck(("a", "b"), frames, 2, None)
    assert "near-duplicates not looked for" in lines(found)[0]
    assert (found.across, details(found)["near_duplicates"]) == ((), None)


def test_a_split_keeps_groups_on_one_side() -> None:
    frames = [LabelledFrame(Path(f"a/{i}"), 0) for i in range(40)]
    frames += [LabelledFrame(Path(f"b/{i}"), 1) for i in range(10)]
    whole = Dataset(("a", "b"), tuple(frames))
    numbers = {item.path: 100 * item.label + int(item.path.name) // 4 for item in frames}
    for seed in range(5):
        kept, held = split(whole, 0.2, seed, numbers)
        assert not {numbers[f.path] for f in kept.frames} & {numbers[f.path] for f in held.frames}
        assert set(kept.frames) | set(held.frames) == set(frames)
        assert min(held.counts()) >= 1
        assert 4 <= held.counts()[0] <= 12
    # Most of a class is one group: it is held out only if no other has so few frames.
    large = {item.path: -1 if 12 <= place < 36 else place for place, item in enumerate(frames)}
    for seed in range(5):
        assert split(whole, 0.2, seed, large)[1].counts() == (8, 2)
    alone = {item.path: place for place, item in enumerate(frames)}
    assert split(whole, 0.2, 3, alone) == split(whole, 0.2, 3)
    # One group is the whole class: its frames are divided after all.
    kept, held = split(whole, 0.2, 3, dict.fromkeys(alone, 0))
    assert (kept.counts(), held.counts()) == ((32, 8), (8, 2))


def clouds(count: int, spread: float, seed: int = 0) -> tuple[Any, Any]:
    """Features around a centre for each of three classes, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), count)
    features = np.eye(3, 16)[labels] + rng.normal(0, spread, (len(labels), 16))
    return np.asarray(features, np.float32), np.asarray(labels, np.intp)


def test_planted_labels_are_listed_first() -> None:
    features, labels = clouds(60, 0.2)
    assert len(suspected(features, labels, 3)) <= 9
    planted = [3, 70, 111, 150]
    wrong = labels.copy()
    wrong[planted] = (labels[planted] + 1) % 3
    found = suspected(features, wrong, 3)
    assert {each.frame for each in found[:6]} >= set(planted)
    assert all(found[i].margin <= found[i + 1].margin for i in range(len(found) - 1))
    for each in found[:4]:
        assert each.other_probability > each.own_probability
        assert each.frame not in planted or each.other == labels[each.frame]


def test_a_class_of_two_is_not_judged() -> None:
    features, labels = clouds(20, 0.2)
    few, some = np.append(features, features[:2], axis=0), np.append(labels, [3, 3])
    assert not {60, 61} & {each.frame for each in suspected(few, some, 5)}


def test_folds_keep_groups_together_and_classes_apart() -> None:
    labels = np.repeat(np.arange(2), 50).astype(np.intp)
    own = np.arange(100, dtype=np.intp) // 2
    fold = folds_by_class(labels, own, seed=1)
    assert (fold[::2] == fold[1::2]).all()
    for label in range(2):
        counts = np.bincount(fold[labels == label], minlength=FOLDS)
        assert counts.min() >= 8


def test_a_curve_says_if_more_frames_help() -> None:
    features, labels = clouds(15, 0.45)
    every = np.arange(len(labels), dtype=np.intp)
    steep = learning_curve(features, labels, 3, every)
    assert [point.share for point in steep.points] == [0.25, 0.5, 0.75, 1.0]
    assert steep.points[-1].right > steep.points[0].right
    easy, known = clouds(60, 0.05)
    flat = learning_curve(easy, known, 3, np.arange(len(known), dtype=np.intp))
    assert flat.points[-1].right == 1.0
    assert not flat.gain.helps
    assert "would likely change little" in advice(flat, ("a", "b", "c"))
    few = learning_curve(easy[::15], known[::15], 3, np.arange(12, dtype=np.intp))
    assert "too few frames to say" in advice(few, ("a", "b", "c"))
    # Two groups are in two of the five folds; the others count for nothing.
    pairs = np.array([0, 0, 1, 1], np.intp)
    assert learning_curve(easy[58:62], known[58:62], 3, pairs).points[-1].frames == 2
    gains = tuple(Gain(c, 30, 0.6 + c / 10, (0.4, 0.8), 0.1, (0.02 - c, 0.2)) for c in range(3))
    told = advice(type(flat)(flat.points, gains[0], gains), ("a", "b", "c"))
    assert told.startswith(
        "more photographs would likely help: the second half of them added +10.0"
    )
    assert "first of all of a (60% right" in told
    assert " b (" not in told


def test_gains_of_few_groups_claim_no_certainty() -> None:
    """One group of a class that all of the frames name right, and half of them do not."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(2), (6, 24)).astype(np.intp)
    features = np.asarray(rng.normal(0, 1, (30, 8)), np.float32)
    for each in (np.arange(30), np.where(labels == 0, 0, np.arange(30)), np.zeros(30)):
        curve = learning_curve(features, labels, 2, each.astype(np.intp))
        groups_judged = len(np.unique(each))
        low, high = curve.points[-1].interval
        assert high - low > 1.2 / np.sqrt(groups_judged + 4)
        for gain in (curve.gain, *curve.classes):
            assert gain.gain_interval[1] - gain.gain_interval[0] > 0.1
        assert not curve.classes[0].helps


def write_surfaces(root: Path) -> None:
    """Twelve surfaces of each of two classes, fine and coarse, of which fine/0 is coarse/0 too."""
    for name, blur in (("fine", 1.0), ("coarse", 4.0)):
        (root / name).mkdir(parents=True)
        for seed in range(12):
            pixels = surface(seed + 100 * int(blur), blur)
            cv2.imwrite(str(root / name / f"{seed}.png"), pixels)
    again = darker(np.asarray(cv2.imread(str(root / "fine" / "0.png")), np.uint8))
    cv2.imwrite(str(root / "coarse" / "0.png"), again)


def test_one_picture_of_two_labels_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "nothing"))
    write_surfaces(tmp_path / "frames")
    dataset = read_dataset(tmp_path / "frames")
    recipe, terminal = check_recipe(), Terminal()
    prints = read_fingerprints([item.path for item in dataset.frames], recipe, terminal)
    assert len(set(grouped(dataset, prints).values())) == 23
    found = check_folder(dataset, None, prints, recipe, terminal, download=False)
    told = "\n".join(lines(found))
    assert "nearly the same picture, but another label (1):\n" in told
    assert "coarse/0.png (coarse) and fine/0.png (fine)" in told
    assert "labels not looked at: ImageNet's weights" in told
    assert details(found)["contradictory"] == [["coarse/0.png", "fine/0.png"]]


def test_frames_to_validate_on_that_were_seen_are_counted() -> None:
    frames = tuple(LabelledFrame(Path(f"a/{i}.png"), 0) for i in range(6))
    found = FolderCheck(("a", "b"), frames, 2, ((0, 4), (1, 4), (2, 3)))
    assert (found.across, found.repeated) == (((0, 4),), ((0, 4), (2, 3)))
    assert "1 of 2 frames to validate on are nearly the same as one to train on" in lines(found)[1]
    # Many frames of one thing are as many rows, not as many as they have pairs.
    alike = tuple((i, j) for j in range(6) for i in range(j))
    told = details(FolderCheck(("a", "b"), frames, 2, alike))
    assert [len(told[name]) for name in ("near_duplicates", "across")] == [5, 2]


@pytest.mark.usefixtures("keras_home")
def test_check_lists_what_is_wrong_in_a_folder(
    tf: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_surfaces(tmp_path / "frames")
    moved = tmp_path / "frames" / "fine" / "moved.png"
    (tmp_path / "frames" / "coarse" / "5.png").rename(moved)
    assert main(["check", str(tmp_path / "frames"), "--report", str(tmp_path / "report")]) == 0
    out = capsys.readouterr().out
    listed = out[out.index("labels that may be wrong, the most") :].splitlines()[1:3]
    assert any("fine/moved.png: fine" in line and "or coarse" in line for line in listed)
    assert "a simple classifier is right on" in out
    found = msgspec.json.decode((tmp_path / "report" / "report.json").read_bytes())
    assert found["counts"] == {"coarse": 11, "fine": 13}
    assert found["curve"]["points"][-1]["right"] > 0.7
    page = (tmp_path / "report" / "report.html").read_text("utf-8")
    assert "Labels that may be wrong" in page
    assert "Would more photographs help?" in page
    assert page.count("data:image/jpeg") == len(found["suspects"]) + 2
    assert main(["check", str(tmp_path / "frames" / "fine")]) == 1
