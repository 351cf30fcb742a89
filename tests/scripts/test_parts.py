"""The generator of parts and the simulated camera, on real renderings and a real server."""

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import cv2
import numpy as np
import pytest
from server_process import answering

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
KINDS = ("good", "scratched", "dented", "chipped", "missing_hole", "wrong_part")


@pytest.fixture(scope="module")
def scripts() -> Iterator[None]:
    """The scripts' folder on the path, as it is when one of them is run, and taken off after."""
    before = set(sys.modules)
    sys.path.insert(0, str(SCRIPTS))
    yield
    sys.path.remove(str(SCRIPTS))
    for name in set(sys.modules) - before:
        origin = getattr(sys.modules[name], "__file__", None)
        if origin and Path(origin).is_relative_to(SCRIPTS):
            del sys.modules[name]


@pytest.fixture(scope="module")
def parts(scripts: None) -> ModuleType:
    """scripts/parts.py"""
    return importlib.import_module("line_camera.parts")


@pytest.fixture(scope="module")
def pictures(scripts: None) -> ModuleType:
    """scripts/line_camera/pictures.py"""
    return importlib.import_module("line_camera.pictures")


@pytest.fixture(scope="module")
def camera(scripts: None) -> ModuleType:
    """scripts/camera.py"""
    return importlib.import_module("camera")


class Recogniser(BaseHTTPRequestHandler):
    """Calls every part good, and refuses whichever paths end in /busy."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    seen: ClassVar[list[tuple[str, str | None, bytes]]] = []

    def do_POST(self) -> None:
        """Answer one frame."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append((self.path, self.headers["Authorization"], body))
        busy = self.path.split("?")[0].endswith("/busy")
        answer: dict[str, object] = {"predictions": [{"label": "good", "probability": 0.9}]}
        if busy:
            answer = {"error": {"code": "OVERLOADED", "message": "too many frames"}}
        encoded = json.dumps(answer).encode()
        self.send_response(503 if busy else 200)
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    """Address of a running recogniser."""
    Recogniser.seen.clear()
    with answering(Recogniser) as url:
        yield url


def test_the_classes_are_the_six(parts: ModuleType) -> None:
    assert parts.CLASSES == KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_is_rgb_bytes_and_the_same_for_a_seed(parts: ModuleType, kind: str) -> None:
    first = parts.render(kind, np.random.default_rng(5))
    again = parts.render(kind, np.random.default_rng(5))
    other = parts.render(kind, np.random.default_rng(6))
    assert first.shape == (480, 640, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("kind", KINDS)
def test_fifty_seeds_render(parts: ModuleType, kind: str) -> None:
    for seed in range(50):
        picture = parts.render(kind, np.random.default_rng(seed), 320, 240)
        assert picture.shape == (240, 320, 3)
        assert picture.std() > 8, f"seed {seed} is next to blank"


@pytest.mark.parametrize("size", [(64, 64), (65, 131), (333, 97), (224, 224), (480, 640)])
def test_any_size_from_the_smallest_renders(parts: ModuleType, size: tuple[int, int]) -> None:
    width, height = size
    for kind in KINDS:
        picture = parts.render(kind, np.random.default_rng(3), width, height)
        assert picture.shape == (height, width, 3)


def test_an_unknown_kind_names_the_known_ones(parts: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"'bent'.*good, scratched, dented, chipped, missing_hole"):
        parts.render("bent", np.random.default_rng(0))


def test_a_tiny_picture_is_refused(parts: ModuleType) -> None:
    with pytest.raises(ValueError, match="63x480"):
        parts.render("good", np.random.default_rng(0), 63, 480)


def test_a_drawn_scratch_lies_on_metal(scripts: None) -> None:
    ring = importlib.import_module("line_camera.ring")
    for seed in range(100):
        part = ring.make("scratched", np.random.default_rng(seed))
        for path, _ in part.scratches:
            length = np.hypot(*np.diff(path, axis=0).T).sum()
            assert ring.on_metal(part, path, 0.03).mean() * length > 0.45


def test_write_makes_a_folder_a_class(
    camera: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = ["--width", "160", "--height", "120"]
    assert camera.main(["write", str(tmp_path), "--per-class", "2", "--seed", "9", *size]) == 0
    files = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.jpg"))
    assert files == sorted(f"{k}/{k}_{n:05d}.jpg" for k in KINDS for n in (1, 2))
    picture = cv2.imread(str(tmp_path / "good" / "good_00001.jpg"))
    assert picture is not None
    assert picture.shape == (120, 160, 3)
    assert capsys.readouterr().out.startswith("12 pictures in ")


def test_writing_fewer_writes_the_same_pictures(pictures: ModuleType, tmp_path: Path) -> None:
    for name, count in (("one", 1), ("two", 2)):
        pictures.write(tmp_path / name, count, 4, 64, 64, 90)
    first, second = (tmp_path / n / "dented" / "dented_00001.jpg" for n in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()


def test_write_says_why_it_cannot(
    camera: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert camera.main(["write", str(tmp_path / "file"), "--per-class", "1"]) == 1
    assert "cannot write the pictures" in capsys.readouterr().err


@pytest.mark.parametrize("extra", [[], ["--bursts"]])
def test_post_counts_right_and_wrong(
    camera: ModuleType,
    pictures: ModuleType,
    server: str,
    capsys: pytest.CaptureFixture[str],
    extra: list[str],
) -> None:
    arguments = [
        "post",
        f"{server}/v1/recognize?top_k=1",
        "--rate",
        "200",
        "--count",
        "12",
        "--camera",
        "st4 top",
        "--api-key",
        "k1",
        "--width",
        "64",
        "--height",
        "64",
        "--timeout",
        "60",
    ]
    assert camera.main([*arguments, *extra]) == 0
    truth = [frame.kind for frame in pictures.frames(12, 1, 64, 64, 90)]
    lines = capsys.readouterr().out.splitlines()
    good = truth.count("good")
    assert lines[-1].startswith(f"right {good}, wrong {12 - good}, refused 0, failed 0")
    assert len(lines) == 13
    paths = sorted(path for path, _, _ in Recogniser.seen)
    assert paths[0] == "/v1/recognize?top_k=1&camera=st4+top&part=1-00001"
    assert {key for _, key, _ in Recogniser.seen} == {"Bearer k1"}
    assert all(body[:2] == b"\xff\xd8" for _, _, body in Recogniser.seen)


def test_post_sends_each_camera_and_deadline(
    camera: ModuleType, server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rate = ["--rate", "200", "--count", "2", "--timeout", "60", "--width", "64", "--height", "64"]
    asked = ["--cameras", "20", "--camera", "st4", "--deadline-ms", "60000"]
    assert camera.main(["post", server, *rate, *asked]) == 0
    sent = sorted(path for path, _, _ in Recogniser.seen)
    assert len(sent) == 40
    assert sent[0] == "/v1/recognize?deadline_ms=60000&camera=st4-01&part=1-00001"
    assert sent[-1] == "/v1/recognize?deadline_ms=60000&camera=st4-20&part=1-00002"
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("st4-07 1-0000") for line in lines) == 2
    assert "later than 60000 ms 0" in lines[-1]


def test_camera_names_a_missing_module(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-E", str(SCRIPTS / "camera.py"), "post"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert "camera.py needs the Python module cv2" in done.stderr
    assert "Traceback" not in done.stderr


def test_post_prints_refusals(
    camera: ModuleType, server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "post",
        f"{server}/busy",
        "--rate",
        "200",
        "--count",
        "3",
        "--width",
        "64",
        "--height",
        "64",
        "--timeout",
        "60",
    ]
    assert camera.main(arguments) == 1
    out = capsys.readouterr().out
    assert out.count("refused 503 OVERLOADED: too many frames") == 3
    assert "refused 3, failed 0" in out


def test_post_goes_on_when_the_server_is_away(
    camera: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "post",
        "http://127.0.0.1:9/v1/recognize",
        "--rate",
        "200",
        "--count",
        "4",
        "--width",
        "64",
        "--height",
        "64",
    ]
    assert camera.main(arguments) == 1
    out = capsys.readouterr().out
    assert out.count("no answer from http://127.0.0.1:9/v1/recognize") == 1
    assert "failed 4" in out


def test_due_times_keep_the_mean_rate(scripts: None) -> None:
    posting = importlib.import_module("line_camera.posting")
    assert posting.due_times(3, 10.0, False) == [0.0, 0.1, 0.2]
    bursts = posting.due_times(17, 10.0, True)
    assert bursts[1] == pytest.approx(0.025)
    assert bursts[8] == pytest.approx(0.8)
    assert bursts[16] == pytest.approx(1.6)
