"""Image health: problems of a camera's pictures, and what was learned of it."""

from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from images import encode, plain
from job_workers import await_that
from line_scenes import HEIGHT, SCENES, WIDTH, WITHOUT_REFERENCE, video
from server_process import ROOT
from sites import Site

from server.config.image_health import CameraLimits
from server.config.settings import Settings
from server.errors import CameraNotFoundError
from server.line.health.monitor import LEARNING_MAX, STALLED_S, HealthMonitor
from server.line.health.storage import FILE
from server.recognition.answers import Answer, ImageHealth, Options, RegionAnswer
from server.recognition.images.measurement import measure

LEARNED = 20
FAULTS = ("frozen", "black", "dark", "bright", "blurred", "shifted", "covered")
# The problems by which each fault may show: a lens that is covered far away is a blurred picture.
PROBLEMS = {
    "frozen": {"frozen"},
    "black": {"too_dark"},
    "dark": {"too_dark"},
    "bright": {"too_bright", "covered"},
    "blurred": {"blurred"},
    "shifted": {"shifted"},
    "covered": {"covered", "blurred"},
}


class Monitor:
    """A monitor whose background tasks run after each frame."""

    def __init__(self, data: Path, *limits: CameraLimits, frames: int = LEARNED) -> None:
        self._tasks: deque[Callable[[], None]] = deque()
        settings = Settings(
            image_health="on",
            image_health_frames=frames,
            image_health_limits=limits,
            data=str(data),
        )
        self.now = 0.0
        self.monitor = HealthMonitor(settings, self._submit, clock=lambda: self.now)

    def _submit(self, task: Callable[[], None]) -> bool:
        self._tasks.append(task)
        return True

    def judge(
        self, data: bytes, camera: str = "gate", *, in_order: bool = True, pulled: bool = False
    ) -> Answer:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        assert pixels is not None
        measured = measure(np.asarray(pixels, np.uint8), pixels.shape[1::-1])
        region = RegionAnswer("left", (0, 0, 9, 9), None, (), "pass", "accept", None)
        answer = Answer("parts", 1, None, (), "pass", {}, regions=(region,), measured=measured)
        options = Options(camera=camera, pulled=pulled)
        judged = self.monitor.judge(answer, options, in_order=in_order)
        while self._tasks:
            self._tasks.popleft()()
        return judged

    def health(self, data: bytes, camera: str = "gate", **how: Any) -> ImageHealth:
        health = self.judge(data, camera, **how).health
        assert health is not None
        return health


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    """Good frames of one camera."""
    return [data for _, data in video("still", 3, LEARNED + 5, 0, ())]


def blurred(data: bytes) -> bytes:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert pixels is not None
    return encode(np.asarray(cv2.GaussianBlur(pixels, (0, 0), 3), np.uint8))


@pytest.mark.parametrize("kind", SCENES)
def test_faults_of_a_video_are_noticed(kind: str, tmp_path: Path) -> None:
    """At least 95% of the frames of each fault, with under 1% false alarms."""
    monitor = Monitor(tmp_path)
    frames: Counter[str] = Counter()
    flagged: Counter[str] = Counter()
    for number, (fault, data) in enumerate(video(kind, 1, LEARNED + 10, 4, FAULTS)):
        health = monitor.health(data)
        if number < LEARNED:
            assert (health.learning, health.ok) == (True, True)
            continue
        frames[fault] += 1
        hit = PROBLEMS[fault] & set(health.problems) if fault else health.problems
        flagged[fault] += bool(hit)
    assert flagged[""] <= 0.01 * frames[""]
    for fault in FAULTS:
        if fault != "shifted" or kind not in WITHOUT_REFERENCE:
            assert flagged[fault] >= 0.95 * frames[fault], (fault, flagged, frames)


def test_unhealthy_frame_is_unsure(pictures: list[bytes], tmp_path: Path) -> None:
    monitor = Monitor(tmp_path)
    for data in pictures[:LEARNED]:
        assert monitor.judge(data).verdict == "pass"
    answer = monitor.judge(blurred(pictures[-1]))
    assert (answer.verdict, answer.verdict_reason) == ("unsure", "image_blurred")
    assert [each.verdict for each in answer.regions] == ["unsure"]
    assert answer.measured is None


def test_frame_of_another_format_is_not_compared(pictures: list[bytes], tmp_path: Path) -> None:
    """One that is decoded at another scale neither passes nor makes what is usual forgotten."""
    monitor = Monitor(tmp_path)
    for data in pictures[:LEARNED]:
        monitor.judge(data)
    pixels = cv2.imdecode(np.frombuffer(blurred(pictures[-1]), np.uint8), cv2.IMREAD_COLOR_RGB)
    assert pixels is not None
    for _ in range(2):
        assert monitor.judge(encode(np.asarray(pixels, np.uint8), "PNG")).verdict == "unsure"
        assert "blurred" in monitor.health(blurred(pictures[-1])).problems


def test_shift_is_measured_in_pixels(pictures: list[bytes], tmp_path: Path) -> None:
    monitor = Monitor(tmp_path)
    for data in pictures[:LEARNED]:
        monitor.judge(data)
    pixels = cv2.imdecode(np.frombuffer(pictures[-1], np.uint8), cv2.IMREAD_COLOR_RGB)
    assert pixels is not None
    move = np.array([[1, 0, 12], [0, 1, -8]], np.float64)
    moved = cv2.warpAffine(pixels, move, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REFLECT)
    health = monitor.health(encode(np.asarray(moved, np.uint8)))
    assert "shifted" in health.problems
    assert health.shift == pytest.approx((12, -8), abs=1.5)


def test_frame_of_another_size_is_noticed(pictures: list[bytes], tmp_path: Path) -> None:
    monitor = Monitor(tmp_path)
    for data in pictures[:LEARNED]:
        monitor.judge(data)
    pixels = cv2.imdecode(np.frombuffer(pictures[-1], np.uint8), cv2.IMREAD_COLOR_RGB)
    assert pixels is not None
    assert "wrong_size" in monitor.health(encode(np.asarray(pixels[:-16], np.uint8))).problems


def test_restart_keeps_what_was_learned(pictures: list[bytes], tmp_path: Path) -> None:
    first = Monitor(tmp_path)
    for data in pictures[:LEARNED]:
        first.judge(data)
    again = Monitor(tmp_path)
    assert again.health(blurred(pictures[-1])).problems == ("blurred",)
    again.monitor.forget("gate")
    assert again.health(blurred(pictures[-2])).learning
    assert Monitor(tmp_path).health(blurred(pictures[-1])).learning
    with pytest.raises(CameraNotFoundError):
        again.monitor.forget("unknown")


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"format": 2}', b'{"format": 1, "cameras": [{}]}']
)
def test_damaged_file_is_set_aside(
    content: bytes, pictures: list[bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE).write_bytes(content)
    assert Monitor(tmp_path).health(pictures[0]).learning
    assert next(path.name for path in tmp_path.iterdir()).startswith(f"{FILE}.damaged-")
    assert "cameras learn anew" in caplog.text


def test_covered_lens_is_not_learned_from(pictures: list[bytes], tmp_path: Path) -> None:
    monitor = Monitor(tmp_path, frames=10)
    rng = np.random.default_rng(0)
    for _ in range(15):
        noise = rng.normal(2, 1, (HEIGHT, WIDTH, 3)).clip(0, 255).astype(np.uint8)
        assert monitor.health(encode(noise)).problems == ("too_dark",)
    [state] = monitor.monitor.states()
    assert (state.learning, state.learned_frames) == (True, 0)
    assert monitor.health(pictures[0]).ok


def test_limits_that_are_set_replace_learned_ones(pictures: list[bytes], tmp_path: Path) -> None:
    limits = CameraLimits(name="gate", ignore=("frozen",), brightness_max=50, width=100)
    monitor = Monitor(tmp_path, limits)
    for _ in range(2):
        assert monitor.health(pictures[0]).problems == ("wrong_size", "too_bright")
        assert monitor.health(pictures[0], "other").problems in ((), ("frozen",))
    assert monitor.health(pictures[0], "other").problems == ("frozen",)


def test_frames_out_of_order_are_not_learned(pictures: list[bytes], tmp_path: Path) -> None:
    monitor = Monitor(tmp_path)
    for _ in range(2):
        assert monitor.health(pictures[0], in_order=False).ok
    assert monitor.monitor.states()[0].learned_frames == 0


def test_unnamed_frames_have_limits_of_any_camera(pictures: list[bytes], tmp_path: Path) -> None:
    monitor = Monitor(tmp_path)
    black = encode(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    assert [monitor.health(pictures[0], "").ok for _ in range(2)] == [True, True]
    assert monitor.health(black, "").problems == ("too_dark",)
    assert monitor.monitor.states() == []


def test_many_names_keep_no_place_of_a_camera(pictures: list[bytes], tmp_path: Path) -> None:
    """Callers choose the names: no more than LEARNING_MAX learn at once."""
    monitor = Monitor(tmp_path)
    for data in pictures[:LEARNED]:
        monitor.judge(data)
    for number in range(LEARNING_MAX + 20):
        monitor.judge(pictures[0], f"name {number}")
    assert len(monitor.monitor.states()) == 1 + LEARNING_MAX
    assert monitor.health(blurred(pictures[-1])).problems == ("blurred",)


def test_camera_that_learns_nothing_gives_its_place(pictures: list[bytes], tmp_path: Path) -> None:
    """Also if it sends frames all the time, such as black ones; one that learns keeps its own."""
    monitor = Monitor(tmp_path)
    black = encode(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    for number in range(LEARNING_MAX):
        monitor.judge(black if number else pictures[0], f"name {number}")
    monitor.judge(pictures[0], "late")
    assert len(monitor.monitor.states()) == LEARNING_MAX
    monitor.now += STALLED_S
    monitor.judge(pictures[1], "name 0")
    monitor.judge(black, "name 1")
    monitor.judge(pictures[0], "late")
    names = [each.camera for each in monitor.monitor.states()]
    assert len(names) == LEARNING_MAX
    assert {"late", "name 0"} <= set(names)


def test_camera_that_the_server_reads_always_learns(pictures: list[bytes], tmp_path: Path) -> None:
    """And one whose limits are set; frames of jobs, which teach nothing, keep no place."""
    monitor = Monitor(tmp_path, CameraLimits(name="limited"))
    monitor.judge(pictures[0], "of a job", in_order=False)
    for number in range(LEARNING_MAX + 1):
        monitor.judge(pictures[0], f"name {number}")
    monitor.judge(pictures[0], "read", pulled=True)
    monitor.judge(pictures[0], "limited")
    names = {each.camera for each in monitor.monitor.states()}
    assert names == {"read", "limited", *(f"name {number}" for number in range(LEARNING_MAX))}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    made = Site(
        ROOT / "models",
        tmp_path_factory.mktemp("health"),
        image_health="on",
        image_health_frames=10,
        cache=True,
        samples="on",
    )
    await_that(lambda: made.get("/readyz").status_code == 200, "the model serves")
    return made


def post(site: Site, data: bytes, camera: str) -> Any:
    path = f"/v1/recognize?model=parts&camera={camera}"
    headers = {
        "Authorization": f"Bearer {site.keys['recognize']}",
        "Content-Type": "image/jpeg",
    }
    answer = site.app.test_client().post(path, data=data, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.get_json()


def test_routes_answer_and_count_health(site: Site) -> None:
    """A blurred frame, and one that comes again out of the cache, are never `pass`."""
    good = cv2.imread(str(ROOT / "models" / "parts" / "1" / "samples" / "good.jpg"))
    rng = np.random.default_rng(0)

    def noisy(picture: Any) -> bytes:
        return encode(np.clip(picture + rng.normal(0, 2, picture.shape), 0, 255).astype(np.uint8))

    rgb = np.asarray(good)[..., ::-1].astype(np.float32)
    for _ in range(10):
        answer = post(site, noisy(rgb), "st4")
        assert (answer["verdict"], answer["health"]["learning"]) == ("pass", True)
    admin = site.keys["admin"]
    [state] = site.bearer(admin, "/v1/image_health").get_json()["cameras"]
    assert (state["camera"], state["model"], state["learning"]) == ("st4", "parts", False)
    last = noisy(rgb)
    assert post(site, last, "st4")["verdict"] == "pass"
    again = post(site, last, "st4")
    assert (again["cached"], again["verdict"]) == (True, "unsure")
    assert again["verdict_reason"] == "image_frozen"
    answer = post(site, noisy(cv2.GaussianBlur(rgb, (0, 0), 5)), "st4")
    assert answer["health"]["problems"] == ["blurred"]
    assert answer["verdict_reason"] == "image_blurred"
    metrics = site.bearer(site.keys["metrics"], "/metrics").text
    assert 'lineside_camera_image_problems_total{camera="st4",problem="blurred"} 1.0' in metrics
    rows = site.bearer(admin, "/v1/journal?limit=2").get_json()
    assert [row["problems"] for row in rows["rows"]] == ["blurred", "frozen"]


def test_camera_learns_anew_on_request(site: Site) -> None:
    post(site, encode(plain((90, 120, 40))), "st5")
    path = "/v1/image_health?camera=st5"
    assert site.bearer(site.keys["recognize"], path, "DELETE").status_code == 403
    answer = site.bearer(site.keys["admin"], path, "DELETE")
    assert "st5" in [state["camera"] for state in answer.get_json()["cameras"]]
    [change] = site.bearer(site.keys["admin"], "/v1/audit?limit=1").get_json()["changes"]
    assert (change["action"], change["camera"], change["caller"]) == (
        "image_health",
        "st5",
        "admin",
    )
    unnamed = site.bearer(site.keys["admin"], "/v1/image_health", "DELETE")
    assert unnamed.status_code == 400, unnamed.text
    unknown = site.bearer(site.keys["admin"], "/v1/image_health?camera=nobody", "DELETE")
    assert unknown.get_json()["error"]["code"] == "CAMERA_NOT_FOUND"
