"""Frames that a server kept, labelled by a person, in a training."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import requests
from images import encode, picture
from job_workers import await_that
from observations import observation
from server_process import live_server
from tiny_models import MakeModel, write_bundle

from convert.__main__ import main
from convert.data.checks import check_dataset
from convert.data.dataset import read_dataset, with_samples
from convert.errors import DatasetError
from server.recognition.frame import Limits
from server.recognition.manifest import read_bundle
from server.store.samples.folder import SampleFolder
from server.store.samples.index import Filter

TINY = ("--alpha", "0.35", "--size", "32", "--weights", "none", "--epochs", "0", "--seconds", "0.1")


def png(seed: int) -> bytes:
    return encode(picture(32, 24, seed), "PNG")


def keep(folder: SampleFolder, seed: int, label: str | None, model: str = "parts") -> None:
    assert folder.add(observation(png(seed), model=model), "random")
    if label is not None:
        folder.label(folder.find(Filter(), "", 1)[0][0].id, label, 1.0)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of four different pictures."""
    for label, name in enumerate(("bad", "good")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(4):
            (tmp_path / "photos" / name / f"{i}.png").write_bytes(png(10 * label + i))
    return tmp_path / "photos"


@pytest.fixture
def samples(tmp_path: Path) -> SampleFolder:
    """Kept frames: two labelled, one not, and a labelled one of another model."""
    folder = SampleFolder(tmp_path / "samples", 1_000_000)
    folder.open()
    keep(folder, 100, "good")
    keep(folder, 101, "bad")
    keep(folder, 102, None)
    keep(folder, 103, "setosa", model="iris")
    return folder


def test_labelled_samples_of_the_model_join_their_classes(
    photos: Path, samples: SampleFolder
) -> None:
    found = with_samples(read_dataset(photos), samples.folder, "parts")
    assert found.classes == ("bad", "good")
    assert found.counts() == (5, 5)
    added = [item for item in found.frames if item.path.parent == samples.folder]
    assert [(item.path.read_bytes(), item.label) for item in added] == [
        (png(100), 1),
        (png(101), 0),
    ]
    check_dataset(found, None, Limits())


def test_a_new_label_is_a_new_class(photos: Path, samples: SampleFolder) -> None:
    keep(samples, 104, "bent")
    found = with_samples(read_dataset(photos), samples.folder, "parts")
    assert found.classes == ("bad", "bent", "good")
    assert found.counts() == (5, 1, 5)
    with pytest.raises(DatasetError, match="class bent has 1 image to train on: at least 2"):
        check_dataset(found, None, Limits())


def test_a_sample_that_is_there_already_is_refused(
    photos: Path, samples: SampleFolder, tmp_path: Path
) -> None:
    (photos / "good" / "copy.png").write_bytes(png(100))
    (tmp_path / "val" / "bad").mkdir(parents=True)
    (tmp_path / "val" / "good").mkdir()
    (tmp_path / "val" / "good" / "1.png").write_bytes(png(200))
    (tmp_path / "val" / "bad" / "leak.png").write_bytes(png(101))
    found = with_samples(read_dataset(photos), samples.folder, "parts")
    with pytest.raises(DatasetError) as caught:
        check_dataset(found, read_dataset(tmp_path / "val", found.classes), Limits())
    message = str(caught.value)
    assert "the same picture more than once in the training set (1)" in message
    assert "in the training set and in the validation set (1)" in message
    assert str(samples.folder) in message


def test_a_folder_without_what_is_wanted_says_what_it_has(
    photos: Path, samples: SampleFolder, tmp_path: Path
) -> None:
    train = read_dataset(photos)
    with pytest.raises(DatasetError, match=r"no labelled samples of the model nuts \(it has 1 of"):
        with_samples(train, samples.folder, "nuts")
    with pytest.raises(DatasetError, match="no-such-folder is not a folder"):
        with_samples(train, tmp_path / "no-such-folder", "parts")
    (samples.folder / "000000009-0123456789abcdef.json").write_text("{")
    with pytest.raises(DatasetError, match=r"000000009-0123456789abcdef\.json is not a sample"):
        with_samples(train, samples.folder, "parts")


@pytest.mark.usefixtures("without_weights")
def test_from_the_line_to_the_next_version(
    tiny_model: MakeModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Frames that a model answered wrong are labelled, and its next version learns them."""
    rng = np.random.default_rng(0)

    def grainy(level: int) -> bytes:
        noise = rng.normal(level, 60, (48, 40, 3)).clip(0, 255).astype(np.uint8)
        return cv2.imencode(".png", cv2.GaussianBlur(noise, (0, 0), 2))[1].tobytes()

    for name, level in (("dark", 50), ("light", 190)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(6):
            (tmp_path / "photos" / name / f"{i}.png").write_bytes(grainy(level))
    models, data = tmp_path / "models", tmp_path / "data"
    command = ["train", str(tmp_path / "photos"), "--out", str(models), "--name", "tiny", *TINY]
    # So few frames teach nothing; what is shown is which frames it was given.
    command += ["--max-accuracy-drop", "100"]
    write_bundle(models / "tiny" / "1", tiny_model("colors"))
    with live_server(
        models=models, data=data, samples="on", samples_share=1, samples_per_minute=100
    ) as server:
        sent = {}
        for label, level in (("dark", 40), ("light", 200), ("middle", 120), ("middle", 125)):
            frame = grainy(level)
            sent[server.recognize(frame).json()["request_id"]] = label
        url = server.url + "/v1/samples"

        def kept() -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = requests.get(url, timeout=60).json()["samples"]
            return found if len(found) >= len(sent) else []

        page = await_that(kept, "all frames in the folder of samples")
        for sample in page:
            body: Any = {"label": sent[sample["request_id"]], "new": True}
            done = requests.post(f"{url}/{sample['id']}/label", json=body, timeout=60)
            assert done.status_code == 200
    capsys.readouterr()
    assert main([*command, "--labelled", str(data / "samples")]) == 0
    assert "4 labelled samples from" in capsys.readouterr().out
    bundle = read_bundle(models / "tiny" / "2")
    assert [label.name for label in bundle.labels] == ["dark", "light", "middle"]
    assert bundle.manifest.source == "trained on photos and a server's samples, 13 frames"
