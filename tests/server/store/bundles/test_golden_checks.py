"""Golden frames of a model that serves, checked again: misses take it out of service."""

import logging
import shutil
import threading
import time
from pathlib import Path

import pytest

from server.app import AT_END, create_app, shut_down
from server.config.settings import Settings
from server.engine import Engine, make_store, repeat
from server.errors import NotReadyError
from server.observe.metrics import Metrics
from server.recognition.admission import Admission
from server.store.bundles.golden_checks import RETRY_S, GoldenChecks, Result
from server.store.bundles.repository import BundleRepository

HOUR_S = 3600.0


class Line:
    """A repository in which parts/1 serves, and golden checks that tests run by the hour."""

    def __init__(self, models: Path) -> None:
        self.admission = Admission(1, 4)
        settings = Settings(models=str(models), interpreters=1, wide_interpreter=False)
        self.metrics = Metrics()
        self.store: BundleRepository = make_store(settings, self.metrics, self.admission)
        self.store.load("parts")
        self.results: list[tuple[str, Result]] = []
        on_checked = lambda *result: self.results.append(result)  # noqa: E731
        self.checks = GoldenChecks(self.store.served, HOUR_S, on_checked)
        self.stop = threading.Event()
        self.now = 0.0
        self.checks.run(self.now, self.stop)

    def after(self, seconds: float) -> list[Result]:
        """The results of the checks that are due `seconds` later."""
        self.now += seconds
        self.results.clear()
        self.checks.run(self.now, self.stop)
        return [result for _, result in self.results]


@pytest.fixture
def models(shipped: Path, tmp_path: Path) -> Path:
    """A models folder with a copy of the shipped bundle, for a test to spoil."""
    shutil.copytree(shipped, tmp_path / "models" / "parts" / "1")
    return tmp_path / "models"


@pytest.fixture
def line(models: Path) -> Line:
    return Line(models)


@pytest.fixture
def golden(models: Path) -> Path:
    """One golden frame's file."""
    return models / "parts" / "1" / "golden" / "good.jpg"


def spoil(golden: Path) -> bytes:
    """Puts another part's picture in place of a golden frame; returns the frame."""
    content = golden.read_bytes()
    golden.write_bytes(golden.with_name("scratched.jpg").read_bytes())
    return content


def test_golden_frames_are_checked_each_interval(line: Line) -> None:
    assert line.results == []
    assert line.after(HOUR_S - 1) == []
    assert line.after(1) == ["passed"]
    assert line.after(RETRY_S) == []
    assert line.after(HOUR_S) == ["passed"]


def test_three_misses_in_a_row_end_readiness(
    line: Line, golden: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frame = spoil(golden)
    assert line.after(HOUR_S) == ["missed"]
    assert line.store.ready() == (True, "")
    assert line.after(RETRY_S - 1) == []
    assert line.after(1) == ["missed"]
    assert line.store.get("parts").golden_misses == 2
    assert line.after(RETRY_S) == ["missed"]
    ready, reason = line.store.ready()
    assert not ready
    assert "version 1 of parts missed its golden check 3 times in a row" in reason
    assert "good.jpg should be good at" in reason
    with pytest.raises(NotReadyError, match="missed its golden check"):
        line.store.get()
    missed = [each for each in caplog.records if each.getMessage() == "golden check missed"]
    assert [each.levelno for each in missed] == [logging.WARNING] * 2 + [logging.ERROR]
    assert "lineside_ready 0.0" in line.metrics.render().decode()
    assert 'lineside_golden_misses{model="parts"} 3.0' in line.metrics.render().decode()

    assert line.after(RETRY_S) == ["missed"]
    golden.write_bytes(frame)
    assert line.after(RETRY_S) == ["passed"]
    assert line.store.ready() == (True, "")
    assert line.store.get("parts").golden_misses == 0
    assert line.after(RETRY_S) == []


def test_a_miss_between_two_successes_changes_nothing(line: Line, golden: Path) -> None:
    for _ in range(3):
        frame = spoil(golden)
        line.after(HOUR_S)
        golden.write_bytes(frame)
        assert line.after(RETRY_S) == ["passed"]
    assert line.store.ready() == (True, "")


def test_a_golden_frame_that_is_gone_is_a_miss(line: Line, golden: Path) -> None:
    golden.unlink()
    assert line.after(HOUR_S) == ["missed"]
    assert "good.jpg can't be used" in line.store.get().golden_fault


def test_golden_frames_are_checked_after_a_swap(line: Line, models: Path) -> None:
    shutil.copytree(models / "parts" / "1", models / "parts" / "2")
    manifest = models / "parts" / "2" / "bundle.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"version": 1,', b'"version": 2,'))
    assert line.store.refresh("parts").manifest.version == 2
    assert line.after(RETRY_S) == ["passed"]
    assert line.after(RETRY_S) == []


def test_an_unfit_version_is_loaded_anew_on_request(line: Line, golden: Path) -> None:
    frame = spoil(golden)
    for seconds in (HOUR_S, RETRY_S, RETRY_S):
        line.after(seconds)
    golden.write_bytes(frame)
    assert line.store.activate("parts", 1).unfit == ""
    assert line.store.ready() == (True, "")


def test_a_golden_frame_waits_for_a_free_slot(line: Line) -> None:
    taken, free = threading.Event(), threading.Event()

    def work(_: float) -> None:
        taken.set()
        free.wait(60)

    frame = threading.Thread(target=line.admission.run, args=(work, time.monotonic() + 60))
    frame.start()
    taken.wait(60)
    with line.admission.idle_slot() as is_free:
        assert not is_free
    check = threading.Thread(target=line.after, args=(HOUR_S,))
    check.start()
    assert line.results == []
    free.set()
    check.join(60)
    frame.join(60)
    assert line.results == [("parts", "passed")]
    assert line.admission.busy == 0


def test_a_check_that_is_stopped_is_no_miss(line: Line) -> None:
    with line.admission.idle_slot():
        threading.Timer(0.05, line.stop.set).start()
        assert line.after(HOUR_S) == ["skipped"]
    assert line.store.get().golden_misses == 0


def test_frames_get_not_ready_while_checks_miss(
    models: Path, golden: Path, sample: bytes, tmp_path: Path
) -> None:
    """An application in the process: checks in its own thread, its routes, its metrics."""
    settings = Settings(
        models=str(models), data=str(tmp_path / "data"), interpreters=1, golden_check_s=0.01
    )
    engine = Engine(settings)
    app = create_app(settings, engine=engine)
    try:
        client = app.test_client()
        engine.await_model(60)
        frame = spoil(golden)
        await_ready(engine, ready=False)
        for answer in (client.get("/readyz"), client.post("/v1/recognize", data=sample)):
            error = (answer.json or {})["error"]
            assert (answer.status_code, error["code"]) == (503, "NOT_READY")
            assert "missed its golden check" in error["message"]
        golden.write_bytes(frame)
        await_ready(engine, ready=True)
        assert client.get("/readyz").status_code == 200
        text = client.get("/metrics").text
        assert 'lineside_golden_checks_total{model="parts",result="missed"}' in text
        assert 'lineside_golden_checks_total{model="parts",result="passed"}' in text
    finally:
        shut_down(app.extensions[AT_END])
        engine.stop()


def await_ready(engine: Engine, *, ready: bool) -> None:
    until = time.monotonic() + 60
    while engine.store.ready()[0] is not ready:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_tasks_of_zero_seconds_are_never_called() -> None:
    stop, calls = threading.Event(), []

    def task() -> None:
        calls.append(time.monotonic())
        if len(calls) == 3:
            stop.set()

    repeat([(0.0, stop.set), (0.001, task)], stop)
    assert len(calls) == 3
    repeat([(0.0, task)], threading.Event())
    assert len(calls) == 3
