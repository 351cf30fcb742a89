"""Which frames are kept, how many a minute, and what a failing disk does."""

import logging
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from observations import jpeg, observation

from server.observe.logs import LOGGER
from server.recognition.manifest import VerdictPolicy
from server.store.samples.folder import SampleFolder
from server.store.samples.index import Filter
from server.store.samples.sampler import Policy, Sampler

VERDICT = VerdictPolicy(accept=("good",), min_probability=0.7)
ALL = Policy(share=1.0, per_minute=100_000)
# Some ninety times what a megabyte holds of those of the cap's test.
FRAMES = 3000


@pytest.fixture(autouse=True)
def whole_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop that keeps all that waits on a busy machine."""
    monkeypatch.setattr("server.store.samples.sampler.STOP_TIMEOUT_S", 60.0)


class Bench:
    """A sampler in `path`, whose time and chance the test sets, and what it told."""

    def __init__(self, path: Path, policy: Policy, cap: int = 100_000_000) -> None:
        self.now, self.chance = 1000.0, 0.0
        self.kept: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.sampler = Sampler(
            SampleFolder(path, cap),
            policy,
            lambda name, version: VERDICT if (name, version) == ("parts", 1) else None,
            lambda reason: self.kept.update([reason]),
            lambda reason: self.lost.update([reason]),
            clock=lambda: self.now,
            draw=lambda: self.chance,
        )

    def wait(self, done: Callable[[], bool]) -> None:
        until, pause = time.monotonic() + 30, threading.Event()
        while not done():
            assert time.monotonic() < until, (self.kept, self.lost)
            pause.wait(0.005)


@pytest.mark.parametrize(
    ("policy", "label", "probability", "reason"),
    [
        (Policy(below=0.5), "good", 0.49, "uncertain"),
        (Policy(below=0.5), "good", 0.5, None),
        (Policy(margin=0.1), "good", 0.61, "threshold"),
        (Policy(margin=0.1), "good", 0.79, "threshold"),
        (Policy(margin=0.1), "good", 0.59, None),
        (Policy(margin=0.0), "good", 0.7, None),
        (Policy(labels=frozenset({"dented"})), "dented", 1.0, "label"),
        (Policy(labels=frozenset({"dented"})), "good", 1.0, None),
        (Policy(share=0.3), "good", 1.0, "random"),
        (Policy(share=0.2), "good", 1.0, None),
        (Policy(share=0.0), "good", 1.0, None),
        (Policy(labels=frozenset({"good"}), margin=0.1, below=0.8), "good", 0.7, "label"),
        (Policy(margin=0.1, below=0.8, share=1), "good", 0.7, "threshold"),
    ],
)
def test_the_policy_names_the_first_reason(
    policy: Policy, label: str, probability: float, reason: str | None
) -> None:
    answer = observation(label=label, probability=probability).answer
    assert policy.reason(answer, VERDICT, 0.25) == reason


def test_a_model_without_a_verdict_policy_has_no_threshold() -> None:
    answer = observation(probability=0.7).answer
    assert Policy(margin=0.5).reason(answer, None, 0.9) is None


def test_the_threshold_is_that_of_the_models_bundle(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Policy(margin=0.05))
    bench.sampler(observation(jpeg(1), probability=0.7, version=2))
    bench.sampler(observation(jpeg(2), probability=0.7, model="iris"))
    bench.sampler(observation(jpeg(3), probability=0.7))
    bench.sampler.close()
    assert bench.kept == {"threshold": 1}


def test_tensors_and_answers_from_the_cache_are_not_kept(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ALL)
    bench.sampler(observation(None))
    bench.sampler(observation(jpeg(1), cached=True))
    bench.sampler.close()
    assert not bench.kept
    assert not list(tmp_path.iterdir())


def test_no_minute_has_more_than_the_rate(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Policy(share=1.0, per_minute=7))
    for number in range(2000):
        bench.now = 1000.0 + number * 0.25 + (40 if number > 1000 else 0)
        bench.sampler(observation(jpeg(number), at=bench.now))
    bench.sampler.close()
    when = [sample.at for sample in bench.sampler.folder.find(Filter(), "", 2000)[0]][::-1]
    assert when[0] == 1000.0
    # As often as may be: seven at once in each of the 540 seconds' minutes.
    assert len(when) == bench.kept["random"] == 7 * 9
    assert all(later - earlier >= 60 for earlier, later in zip(when, when[7:], strict=False))


def test_frames_that_are_kept_already_take_no_others_place(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Policy(share=1.0, per_minute=3))
    bench.sampler(observation(jpeg(0)))
    for number in range(1, 20):
        bench.sampler(observation(jpeg(0)))
        bench.wait(lambda: len(bench.sampler._times) == 1)
        if number == 10:
            bench.now += 30
    for number in range(1, 5):
        bench.sampler(observation(jpeg(number)))
    bench.sampler.close()
    assert bench.kept == {"random": 3}


def test_frames_are_answered_while_others_return_slots(tmp_path: Path) -> None:
    """Every frame is there already, so that the one place of the minute comes and goes."""
    bench = Bench(tmp_path, Policy(share=1.0, per_minute=1))
    seen = observation(jpeg(0))
    assert bench.sampler.folder.add(seen, "random")
    failures: list[Exception] = []

    def step(frame: FrameType, *_: Any) -> Any:
        frame.f_trace_opcodes = True
        return step

    def camera() -> None:
        sys.settrace(step)  # so that another thread may come in between any two instructions
        try:
            for _ in range(5000):
                bench.sampler(seen)
        except IndexError as error:
            failures.append(error)

    cameras = [threading.Thread(target=camera) for _ in range(2)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in cameras:
            thread.start()
        for thread in cameras:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    bench.sampler.close()
    assert failures == []


def test_thousands_of_frames_never_exceed_the_cap(tmp_path: Path) -> None:
    """Sizes differ by a factor of thirty; the folder is looked at all the while."""
    cap = 1_000_000
    bench = Bench(tmp_path, ALL, cap)
    most, over = 0, threading.Event()

    def look() -> None:
        nonlocal most
        while not over.is_set():
            size = 0
            for file in tmp_path.iterdir():
                try:
                    size += file.stat().st_size
                except FileNotFoundError:
                    continue  # it went while the folder was read
            most = max(most, size)
            over.wait(0.002)

    looking = threading.Thread(target=look)
    looking.start()
    for number in range(FRAMES):
        bench.sampler(observation(jpeg(number, (number * 7919) % 60_000)))
        if number % 100 == 99:
            expected = number + 1
            bench.wait(lambda: sum((bench.kept + bench.lost).values()) >= expected)  # noqa: B023
    bench.sampler.close()
    over.set()
    looking.join()
    assert bench.kept["random"] + bench.lost["busy"] == FRAMES
    assert bench.lost["disk"] == 0
    assert 0.5 * cap < most <= cap
    assert bench.sampler.folder.size <= cap


def test_frames_do_not_wait_for_a_slow_disk(tmp_path: Path) -> None:
    """While the folder is held, as a stuck disk holds it, frames are handed over and at last
    lost, and nothing waits."""
    bench = Bench(tmp_path, ALL)
    bench.sampler(observation(jpeg(1000)))
    bench.wait(lambda: bench.kept["random"] == 1)
    with bench.sampler.folder._lock:
        for number in range(100):
            bench.sampler(observation(jpeg(number, 1_000_000)))
        assert bench.lost["busy"] >= 60
    bench.sampler.close()
    assert sum((bench.kept + bench.lost).values()) == 101


def test_failing_folder_is_reported_once_and_heals(
    tmp_path: Path, departed: None, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder that can't be made is reported once and heals."""
    caplog.set_level(logging.INFO, LOGGER)
    above = tmp_path / "data"
    place = above / "samples"
    above.write_text("a file where the folder should be")
    bench = Bench(place, ALL)
    for number in range(5):
        bench.sampler(observation(jpeg(number)))
    bench.wait(lambda: bench.lost["disk"] == 5)
    above.unlink()
    bench.sampler(observation(jpeg(9)))
    bench.wait(lambda: bench.kept["random"] == 1)
    bench.sampler.close()
    events = [record.getMessage() for record in caplog.records]
    assert events == ["samples can't be kept", "samples are kept again"]


def test_a_frame_that_nobody_foresaw_ends_nothing(
    tmp_path: Path, departed: None, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(tmp_path, ALL)
    bench.sampler(observation(b"no image at all"))
    bench.sampler(observation(jpeg(1)))
    bench.sampler.close()
    assert (bench.kept, bench.lost) == ({"random": 1}, {"error": 1})
    [record] = caplog.records
    assert record.exc_info or record.exc_text, "why is in the log"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB; skips where this user may mount none."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_loses_samples_only_and_heals(small_disk: Path) -> None:
    other = small_disk / "other"
    other.write_bytes(bytes(900_000))
    bench = Bench(small_disk / "samples", ALL)
    for number in range(20):
        bench.sampler(observation(jpeg(number, 50_000)))
    bench.wait(lambda: sum((bench.kept + bench.lost).values()) == 20)
    assert bench.kept["random"] >= 1
    assert bench.lost["disk"] >= 15
    kept = {file.name for file in (small_disk / "samples").iterdir()}
    assert len(kept) == 2 * bench.kept["random"], "half a sample is left"
    other.unlink()
    before = bench.kept["random"]
    bench.sampler(observation(jpeg(99, 50_000)))
    bench.wait(lambda: bench.kept["random"] == before + 1)
    bench.sampler.close()


def test_a_read_only_disk_loses_samples_only_and_heals(small_disk: Path) -> None:
    bench = Bench(small_disk / "samples", ALL)
    bench.sampler(observation(jpeg(0)))
    bench.wait(lambda: bench.kept["random"] == 1)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    bench.sampler(observation(jpeg(1)))
    bench.wait(lambda: bench.lost["disk"] == 1)
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    bench.sampler(observation(jpeg(2)))
    bench.wait(lambda: bench.kept["random"] == 2)
    bench.sampler.close()
