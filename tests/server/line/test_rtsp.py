"""RTSP cameras that fail: the reader comes back, and judges no old or damaged frame."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from job_workers import await_that, children
from rtsp_cameras import Wire, made_at, missing, rtsp_camera

from server.config.cameras import CameraTable, RtspCamera
from server.config.load import load
from server.errors import LinesideError
from server.line.cameras.camera import Camera
from server.line.cameras.captures import StreamClock
from server.line.cameras.judge import Judge
from server.line.cameras.process import ReaderProcess
from server.line.cameras.sources import SourceError
from server.recognition.answers import Options

INTERVAL_S = 0.5
needs_rtsp = pytest.mark.skipif(bool(missing()), reason=missing())


class Inspector:
    """Looks at each frame in place of a model. frames: of each the time at which it was made, and
    the one at which the reader says that it was captured."""

    def __init__(self) -> None:
        self.frames: list[tuple[float, float]] = []

    def recognize(self, table: CameraTable, data: bytes, options: Options, request_id: str) -> Any:
        assert options.deadline is not None
        self.frames.append((made_at(data), options.deadline - table.interval_s))
        raise LinesideError("no model")

    def judge(self) -> Judge:
        return Judge(load({}), self.recognize, lambda _: None, lambda _: None)

    def await_frame(self, after: float) -> None:
        await_that(lambda: any(made > after for made, _ in self.frames[-3:]), "a new frame")


@pytest.fixture
def inspector() -> Inspector:
    return Inspector()


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire()
    yield wire
    wire.close()


@needs_rtsp
def test_rtsp_camera_that_fails_is_judged_afresh(wire: Wire, inspector: Inspector) -> None:
    url = f"rtsp://127.0.0.1:{wire.port}/line"
    table = RtspCamera(name="a", url=url, interval_s=INTERVAL_S, stall_s=2)
    camera = Camera(table, inspector.judge())
    before, pause = set(children(os.getpid())), threading.Event()
    with rtsp_camera() as (wire.to, process):
        camera.start()
        inspector.await_frame(0.0)
        # The network holds frames up, then delivers all.
        wire.held.set()
        pause.wait(1.2)
        wire.held.clear()
        inspector.await_frame(time.monotonic())
        process.send_signal(signal.SIGSTOP)
        await_that(lambda: camera.state().state == "lost", "the loss")
        process.send_signal(signal.SIGCONT)
        inspector.await_frame(time.monotonic())
        wire.cut()
        inspector.await_frame(time.monotonic())
        wire.spoil.set()
        pause.wait(0.3)
        wire.spoil.clear()
        inspector.await_frame(time.monotonic())
    await_that(lambda: camera.state().state == "lost", "the loss")
    with rtsp_camera(width=640, height=480, codec="jpeg") as (wire.to, _):
        inspector.await_frame(time.monotonic())
        camera.stop("the test ends")
        camera.join(60)
    assert not set(children(os.getpid())) - before
    # Made before it was captured, by at most the way to the reader.
    assert max(captured - made for made, captured in inspector.frames) < INTERVAL_S


def test_rtsp_camera_that_answers_garbage_is_lost() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(bytes(range(256)) * 400)

        threading.Thread(target=answer, daemon=True).start()
        url = f"rtsp://127.0.0.1:{server.getsockname()[1]}/line"
        with (
            ReaderProcess(RtspCamera(name="a", url=url)) as reader,
            pytest.raises(SourceError, match="can't be opened"),
        ):
            await_that(lambda: reader.take(0.0, 1.0, 60), "an error")


def test_frame_that_was_held_up_is_as_old_as_it_is() -> None:
    clock = StreamClock()
    times = [clock.captured(at - 0.1, at, 5 + n / 10) for n, at in enumerate((9.0, 9.1, 9.2))]
    assert times == [None, pytest.approx(9.0), pytest.approx(9.1)]
    # Those of 9.3 to 12.2 come together.
    late = [clock.captured(12.2, 12.2, 5.3 + n / 10) for n in range(30)]
    assert late == [pytest.approx(9.3 + n / 10, abs=0.01) for n in range(30)]


def test_frames_that_waited_for_the_start_are_not_used() -> None:
    clock = StreamClock()
    assert [clock.captured(9.0, 9.01, n / 10) for n in range(5)] == [None] * 5
    assert clock.captured(9.01, 9.1, 0.5) == pytest.approx(9.01)


def test_camera_whose_times_begin_again_is_used() -> None:
    clock = StreamClock()
    for n in range(5):
        clock.captured(9 + n / 10, 9.1 + n / 10, 700 + n / 10)
    assert clock.captured(9.5, 9.6, 0.0) == pytest.approx(9.5)
    assert clock.captured(9.6, 9.7, 0.1) == pytest.approx(9.6)
