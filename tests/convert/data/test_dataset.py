"""Reading, checking and dividing labelled images."""

import os
import shutil
from pathlib import Path

import pytest
from fuzz import tiff_files
from images import encode, picture

from convert.data.checks import check_dataset
from convert.data.dataset import Dataset, LabelledFrame, read_dataset, split
from convert.data.labels import similar_classes
from convert.errors import DatasetError
from server.recognition.frame import Limits


def write(file: Path, seed: int, kind: str = "PNG") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(encode(picture(32, 24, seed), kind))
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of four different pictures."""
    for label, name in enumerate(("bad", "good")):
        for i in range(4):
            write(tmp_path / "train" / name / f"{i}.png", 10 * label + i)
    return tmp_path / "train"


def refusal(train: Path, validation: Path | None = None) -> str:
    read = read_dataset(train)
    other = read_dataset(validation, read.classes) if validation else None
    with pytest.raises(DatasetError) as caught:
        check_dataset(read, other, Limits())
    return str(caught.value)


def test_a_folder_gives_its_sub_folders_as_classes_in_order(folder: Path) -> None:
    write(folder / "good" / "deeper" / "9.jpg", 9, "JPEG")
    (folder / "good" / ".DS_Store").write_bytes(b"x")
    (folder / "good" / "Thumbs.db").write_bytes(b"x")
    (folder / ".cache").mkdir()
    found = read_dataset(folder)
    assert found.classes == ("bad", "good")
    assert found.counts() == (4, 5)
    assert LabelledFrame(folder / "good" / "deeper" / "9.jpg", 1) in found.frames
    check_dataset(found, None, Limits())


def test_given_classes_set_the_order_and_admit_no_other(folder: Path) -> None:
    assert read_dataset(folder, ("good", "bad")).frames[0].path.parent.name == "good"
    with pytest.raises(DatasetError, match="has the class good, which is not one of bad, worse"):
        read_dataset(folder, ("bad", "worse"))


@pytest.mark.parametrize("name", ["two\nlines", "split\u2028line", " led", "tab\tbed"])
def test_a_class_that_labels_txt_can_not_hold(folder: Path, name: str) -> None:
    write(folder / name / "1.png", 30)
    with pytest.raises(DatasetError, match=r"has the class '.*': a name can't begin or end"):
        read_dataset(folder)


def test_splits_are_no_classes(folder: Path, tmp_path: Path) -> None:
    for part in ("train", "val"):
        shutil.copytree(folder, tmp_path / "set" / part)
    with pytest.raises(DatasetError, match="folders train, val, which look like parts"):
        read_dataset(tmp_path / "set")


def test_a_link_to_a_folder_of_pictures(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "elsewhere")
    inside = next(path for path in folder.iterdir() if path.is_dir())
    (inside / "day1").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match="day1 is a link to a folder"):
        read_dataset(folder)


def test_a_name_that_is_no_text(folder: Path) -> None:
    inside = next(path for path in folder.iterdir() if path.is_dir())
    Path(os.fsdecode(os.fsencode(inside) + b"/gr\xfcn.png")).write_bytes(b"")
    with pytest.raises(DatasetError, match="whose name is not UTF-8"):
        read_dataset(folder)


def test_no_picture_is_left_out_without_a_word(folder: Path) -> None:
    (folder / "notes.txt").write_text("of the line")
    assert read_dataset(folder).counts() == (4, 4)
    write(folder / "loose.png", 30)
    with pytest.raises(DatasetError, match=r"has loose\.png beside the folders of its classes"):
        read_dataset(folder)
    (folder / "loose.png").unlink()
    (folder / "good" / "gone.png").symlink_to(folder / "nowhere.png")
    with pytest.raises(DatasetError, match=r"gone\.png is a link to a file that does not exist"):
        read_dataset(folder)


def test_a_nul_in_a_csv_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "frames.csv").write_text("path,label\na\0.png,ok\n")
    with pytest.raises(DatasetError, match=r"frames\.csv line 2 has a NUL"):
        read_dataset(tmp_path / "frames.csv")


def test_a_csv_names_files_relative_to_itself(folder: Path) -> None:
    table = folder.parent / "frames.csv"
    table.write_text("label,path,station\nok,train/good/0.png,4\nnok,train/bad/1.png,4\n")
    found = read_dataset(table)
    assert found.classes == ("nok", "ok")
    assert [item.path for item in found.frames] == [folder / "bad/1.png", folder / "good/0.png"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,class\na.png,ok\n", "columns path and label"),
        ("path,label\na.png,ok\nb.png,\n", "line 3 lacks its path or its label"),
        ("", "columns path and label"),
    ],
)
def test_a_csv_that_is_not_one_is_refused(tmp_path: Path, text: str, message: str) -> None:
    table = tmp_path / "frames.csv"
    table.write_text(text)
    with pytest.raises(DatasetError, match=message):
        read_dataset(table)


def test_a_path_that_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="neither a folder of classes nor a CSV"):
        read_dataset(tmp_path / "nothing")
    with pytest.raises(DatasetError, match="has no sub-folders"):
        read_dataset(tmp_path)


def test_every_file_that_does_not_decode_is_listed(folder: Path) -> None:
    cut = encode(picture(64, 64), "JPEG")
    (folder / "bad" / "cut.jpg").write_bytes(cut[: len(cut) // 2])
    (folder / "good" / "notes.txt").write_text("not a picture")
    (folder / "good" / "empty.png").write_bytes(b"")
    message = refusal(folder)
    assert "not readable as an image (3)" in message
    for name in ("bad/cut.jpg", "good/notes.txt", "good/empty.png"):
        assert str(folder / name) in message


@pytest.mark.parametrize("compression", ["lzw", "deflate", "packbits", "group4"])
def test_tiff_with_empty_strips_is_listed(folder: Path, compression: str) -> None:
    bits = 1 if compression == "group4" else 8
    samples = picture(64, 48)[..., :1].astype(int) >> (8 - bits)
    right = tiff_files.write(samples, bits, tiff_files.BLACK_IS_ZERO, compression, rows=8)
    data = bytearray(right.data)
    for at, size in right.parts[3:]:
        data[at : at + size] = bytes(size)
    (folder / "good" / "right.tif").write_bytes(right.data)
    (folder / "bad" / "zeros.tif").write_bytes(data)
    message = refusal(folder)
    assert "not readable as an image (1)" in message
    assert str(folder / "bad" / "zeros.tif") in message


def test_a_missing_file_of_a_csv_is_listed(folder: Path) -> None:
    table = folder / "frames.csv"
    rows = [f"{name}/{i}.png,{name}" for name in ("bad", "good") for i in range(4)]
    table.write_text("\n".join(["path,label", *rows, "good/gone.png,good"]))
    assert str(folder / "good/gone.png") in refusal(table)


def test_duplicates_found_by_content_in_and_across_classes(folder: Path) -> None:
    """Duplicates are found by content within and across classes."""
    first = write(folder / "good" / "again.png", 10)
    second = write(folder / "good" / "contradiction.bmp", 1, "BMP")
    message = refusal(folder)
    assert "more than once in the training set (2)" in message
    assert f"{folder / 'good/0.png'} (good) = {first} (good)" in message
    assert f"{folder / 'bad/1.png'} (bad) = {second} (good)" in message


def test_a_leak_is_found_also_in_another_format(folder: Path) -> None:
    held = folder.parent / "val"
    write(held / "bad" / "x.png", 100)
    leak = write(held / "good" / "x.tiff", 12, "TIFF")
    message = refusal(folder, held)
    assert "in the training set and in the validation set (1)" in message
    assert f"{folder / 'good/2.png'} (good) = {leak} (good)" in message
    assert "more than once" not in message


def test_empty_class_and_single_image_are_refused_by_name(folder: Path) -> None:
    """An empty class and a single image are refused by name."""
    (folder / "worn").mkdir()
    write(folder / "bent" / "0.png", 50)
    message = refusal(folder)
    assert "class worn has no images to train on" in message
    assert "class bent has 1 image to train on" in message


def test_a_class_that_is_not_validated_is_refused(folder: Path) -> None:
    write(folder.parent / "val" / "good" / "x.png", 100)
    assert "class bad has no images to validate on" in refusal(folder, folder.parent / "val")


def test_one_class_only_is_refused(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / "good" / f"{i}.png", i)
    assert "only one class (good)" in refusal(tmp_path)


def test_all_problems_come_in_one_message(folder: Path) -> None:
    (folder / "worn").mkdir()
    (folder / "bad" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    write(folder / "good" / "again.png", 10)
    message = refusal(folder)
    assert "worn" in message
    assert "broken.png" in message
    assert "again.png" in message


def test_progress_is_told_of_every_image(folder: Path) -> None:
    seen: list[int] = []
    check_dataset(read_dataset(folder), None, Limits(), lambda: seen.append(1))
    assert len(seen) == 8


def test_a_split_takes_the_share_of_each_class_and_repeats() -> None:
    frames = [LabelledFrame(Path(f"a/{i}"), 0) for i in range(50)]
    frames += [LabelledFrame(Path(f"b/{i}"), 1) for i in range(2)]
    whole = Dataset(("a", "b"), tuple(frames))
    kept, held = split(whole, 0.2, seed=3)
    assert held.counts() == (10, 1)
    assert kept.counts() == (40, 1)
    assert set(kept.frames) | set(held.frames) == set(frames)
    assert split(whole, 0.2, seed=3) == (kept, held)
    assert split(whole, 0.2, seed=4) != (kept, held)


ALIKE = [
    ("good", 4, "Good", 4),
    ("good part", 4, "good_part", 4),
    ("gr\u00fcn", 4, "gru\u0308n", 4),
    ("stra\u00dfe", 4, "STRASSE", 4),
    ("crack", 40, "crak", 3),
    ("crack", 40, "carck", 3),
    ("scratch", 20, "scratchs", 3),
    ("missing hole", 30, "mising holle", 2),
]
DIFFERENT = [
    ("crack", 10, "crak", 9),
    ("class 1", 40, "class 2", 3),
    ("side a", 40, "side b", 3),
    ("ok", 40, "nok", 3),
    ("complete", 40, "incomplete", 3),
    ("dented", 40, "good", 2),
]


@pytest.mark.parametrize(("one", "many", "other", "few"), ALIKE)
def test_similar_names_are_found(one: str, many: int, other: str, few: int) -> None:
    assert len(list(similar_classes({one: many, other: few, "quite another": 30}))) == 1


@pytest.mark.parametrize(("one", "many", "other", "few"), DIFFERENT)
def test_different_names_are_left_alone(one: str, many: int, other: str, few: int) -> None:
    assert not list(similar_classes({one: many, other: few}))


def test_similar_classes_are_asked_about(folder: Path) -> None:
    for i in range(3):
        write(folder / "Good" / f"{i}.png", 40 + i)
    message = refusal(folder)
    assert "classes whose names look like one (1):" in message
    assert "'Good' (3 images) and 'good' (4 images)" in message
    assert "--allow-similar-classes" in message
    check_dataset(read_dataset(folder), None, Limits(), allow_similar=True)


def test_accents_match_however_they_are_written(folder: Path) -> None:
    write(folder / "gru\u0308n" / "1.png", 40)
    found = read_dataset(folder, ("bad", "good", "gr\u00fcn"))
    assert found.counts() == (4, 4, 1)
