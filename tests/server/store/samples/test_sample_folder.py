"""The folder of samples: its cap, who goes first, and what is found after a cut of power."""

import logging
import os
from pathlib import Path
from typing import Any

import pytest
from images import encode, files, picture
from observations import jpeg, observation
from PIL import Image

from server.errors import NotFoundError, NotReadyError, StorageError
from server.observe.logs import LOGGER
from server.recognition.sample import labelled_samples
from server.store.samples.folder import SampleFolder, TooLargeError
from server.store.samples.index import Filter

EVERY = Filter()
BLOCK = 4096


def opened(path: Path, cap: int = 10_000_000) -> SampleFolder:
    folder = SampleFolder(path, cap)
    folder.open()
    return folder


def fill(folder: SampleFolder, count: int, **fields: Any) -> list[str]:
    """Adds `count` frames; the IDs that are there, oldest first."""
    start = int(ids(folder)[-1][:9]) if ids(folder) else 0
    for number in range(start, start + count):
        assert folder.add(observation(jpeg(number), **fields), "random")
    return ids(folder)


def ids(folder: SampleFolder, wanted: Filter = EVERY) -> list[str]:
    return [sample.id for sample in folder.find(wanted, "", 100_000)[0]][::-1]


def on_disk(path: Path) -> int:
    """Bytes of disk that the files in `path` take."""
    return sum(-(-file.stat().st_size // BLOCK) * BLOCK for file in path.iterdir())


def test_a_frame_is_kept_as_received_with_its_answer(tmp_path: Path) -> None:
    folder = opened(tmp_path / "data" / "samples")
    seen = observation(jpeg(1), label="dented", probability=0.4, camera="st4")
    assert folder.add(seen, "uncertain")
    [sample] = folder.find(EVERY, "", 10)[0]
    assert folder.image(sample) == seen.data
    assert (sample.reason, sample.camera, sample.part) == ("uncertain", "st4", "A-1")
    assert (sample.model, sample.model_version, sample.verdict) == ("parts", 1, "pass")
    assert sample.best == seen.answer.best
    assert sample.predictions == seen.answer.predictions
    assert (sample.at, sample.label) == (seen.at, None)
    assert {file.name for file in (tmp_path / "data" / "samples").iterdir()} == {
        f"{sample.id}.jpg",
        f"{sample.id}.json",
    }


def test_every_format_is_kept_under_its_own_type(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    for name, data in files(picture()).items():
        folder.add(observation(data), "random")
        [sample, *_] = folder.find(EVERY, "", 1)[0]
        assert sample.image.removeprefix("image/").split("-")[0] in (name.split("-")[0], "x")
        assert folder.image(sample) == data
    assert len(ids(opened(tmp_path))) == len(files(picture()))


def test_a_jpeg_with_several_pictures_is_kept_whole(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    several = encode(picture(), "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    assert folder.add(observation(several), "random")
    [sample] = folder.find(EVERY, "", 10)[0]
    assert sample.image == "image/jpeg"
    assert folder.image(sample) == several


def test_the_same_bytes_are_kept_once(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    assert folder.add(observation(jpeg(1)), "random")
    assert not folder.add(observation(jpeg(1)), "random")
    assert not opened(tmp_path).add(observation(jpeg(1)), "random")
    assert folder.contents().samples == 1


def test_oldest_unlabelled_goes_first_and_cap_holds(tmp_path: Path) -> None:
    """The oldest sample without a label goes first, and the cap holds."""
    folder = opened(tmp_path, cap=11 * BLOCK)
    first, second, *_ = fill(folder, 5)
    folder.label(first, "dented", 1.0)
    for number in range(5, 30):
        folder.add(observation(jpeg(number)), "random")
        assert on_disk(tmp_path) == folder.size <= folder.cap
    kept = ids(folder)
    assert len(kept) == 5
    assert first in kept
    assert second not in kept
    assert kept == sorted(kept)


def test_where_all_have_a_label_the_oldest_goes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, LOGGER)
    folder = opened(tmp_path, cap=7 * BLOCK)
    kept = fill(folder, 3)
    for name in kept:
        folder.label(name, "dented", 1.0)
    after = fill(folder, 1)
    assert after[:-1] == kept[1:] == ids(folder, Filter(labelled=True))
    fill(folder, 1)
    assert ids(folder, Filter(labelled=True)) == kept[1:]
    warned = [r for r in caplog.records if "labelled samples are removed" in r.getMessage()]
    assert len(warned) == 1


def test_image_above_the_cap_is_refused_others_stay(tmp_path: Path) -> None:
    """An image above the cap is refused and takes nothing with it."""
    folder = opened(tmp_path, cap=100_000)
    kept = fill(folder, 3)
    with pytest.raises(TooLargeError):
        folder.add(observation(jpeg(100, 100_000)), "random")
    assert ids(folder) == kept


def test_a_smaller_cap_holds_from_the_next_start_on(tmp_path: Path) -> None:
    kept = fill(opened(tmp_path), 10)
    smaller = opened(tmp_path, cap=8 * BLOCK)
    assert ids(smaller) == kept[-4:]
    assert on_disk(tmp_path) == smaller.size == smaller.cap


def test_restart_finds_samples_and_removes_partial_ones(tmp_path: Path) -> None:
    """All samples are found again, and unfinished ones are removed."""
    folder = opened(tmp_path)
    whole, no_image, short, empty, garbled, renamed = fill(folder, 6)
    folder.label(whole, "dented", 5.0)
    (tmp_path / f"{no_image}.jpg").unlink()
    (tmp_path / f"{short}.jpg").write_bytes(jpeg(2)[:-1])
    (tmp_path / f"{empty}.json").write_bytes(b"")
    (tmp_path / f"{garbled}.json").write_bytes(b'{"id": 7}')
    (tmp_path / f"{renamed}.json").rename(tmp_path / f"{whole[:-1]}x.json")
    (tmp_path / f".{whole}.json.new").write_bytes(b"{")
    (tmp_path / "000000099-0123456789abcdef.jpg").write_bytes(jpeg(99))
    (tmp_path / "notes.txt").write_text("a person's")
    (tmp_path / "folder").mkdir()
    again = opened(tmp_path)
    assert ids(again) == [whole]
    assert again.get(whole) == folder.get(whole)
    assert again.contents().labelled == 1
    left = {file.name for file in tmp_path.iterdir()}
    # What is not named as a sample is somebody else's.
    others = {"notes.txt", "folder", f"{whole[:-1]}x.json"}
    assert left == {f"{whole}.jpg", f"{whole}.json"} | others
    assert again.add(observation(jpeg(50)), "random")
    assert ids(again)[-1] > whole


def test_pages_follow_each_other_while_samples_come_and_go(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    kept = fill(folder, 25)
    first, cursor = folder.find(EVERY, "", 10)
    assert cursor is not None
    folder.delete(cursor)
    fill(folder, 3)
    second, cursor = folder.find(EVERY, cursor, 10)
    assert cursor is not None
    third, end = folder.find(EVERY, cursor, 10)
    assert [sample.id for sample in (*first, *second, *third)] == kept[::-1]
    assert end is None


def test_filters_choose(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    a, b = fill(folder, 1, label="good", camera="left"), fill(folder, 1, label="bad", model="iris")
    one, two = a[0], b[1]
    folder.label(two, "dented", 1.0)
    for wanted, found in (
        (Filter(camera="left"), [one]),
        (Filter(predicted="bad"), [two]),
        (Filter(label="dented"), [two]),
        (Filter(label="bad"), []),
        (Filter(model="parts"), [one]),
        (Filter(labelled=True), [two]),
        (Filter(labelled=False), [one]),
        (Filter(reason="random"), [one, two]),
        (Filter(reason="label"), []),
        (Filter(model="iris", labelled=False), []),
    ):
        assert ids(folder, wanted) == found


def test_label_is_changed_removed_and_read_by_training(tmp_path: Path) -> None:
    """A label is changed, taken back, and read by the training."""
    folder = opened(tmp_path)
    one, two = fill(folder, 2)
    folder.label(one, "dented", 5.0)
    folder.label(one, "scratched", 6.0)
    folder.label(two, "dented", 7.0)
    assert folder.label(two, None, 8.0).labelled_at is None
    [(path, sample)] = labelled_samples(tmp_path)
    assert (sample.label, sample.labelled_at) == ("scratched", 6.0)
    assert path.read_bytes() == jpeg(0)
    assert ids(folder) == [one, two]
    assert folder.contents().labelled == 1


def test_what_is_gone_is_not_found(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    one, two = fill(folder, 2)
    assert folder.delete(one).id == one
    (tmp_path / f"{two}.json").unlink()
    for name in (one, two, "../../etc/passwd", ""):
        with pytest.raises(NotFoundError, match="there is no sample"):
            folder.get(name)
    with pytest.raises(NotFoundError):
        folder.label(one, "dented", 1.0)
    with pytest.raises(NotFoundError):
        folder.delete(one)
    assert [sample.id for sample in folder.find(EVERY, "", 10)[0]] == []


def test_before_the_folder_was_read_nothing_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotReadyError):
        SampleFolder(tmp_path, 1000).find(EVERY, "", 10)


def test_unwritable_label_leaves_the_sample_as_it_was(tmp_path: Path) -> None:
    """A label that can't be written leaves the sample as it was."""
    folder = opened(tmp_path)
    [one] = fill(folder, 1)
    # A folder where the new file would go: an error of the disk that root meets too.
    (tmp_path / f".{one}.json.new").mkdir()
    with pytest.raises(StorageError, match="the label can't be kept: Is a directory"):
        folder.label(one, "dented", 1.0)
    assert folder.get(one).label is None
    os.rmdir(tmp_path / f".{one}.json.new")
    assert folder.label(one, "dented", 1.0).label == "dented"
