"""The end of a server: its parts close in one order."""

import io
from pathlib import Path

import pytest
from images import encode, plain
from server_process import free_port, live_server

from server.app import AT_END, create_app, shut_down
from server.config.outputs import ModbusServerOutput
from server.config.settings import Settings
from server.observe.logs import LogWriter
from server.store.journal.reader import Filter, JournalReader
from server.store.journal.schema import FILE

GREEN = encode(plain((0, 255, 0)), "PNG")


def test_parts_of_a_server_end_in_one_order(colors: Path, tmp_path: Path) -> None:
    """What has frames judged ends before those that hear of it, and the log after all others."""
    output = ModbusServerOutput(name="plc", port=free_port())
    settings = Settings(models=str(colors), data=str(tmp_path), samples="on", output=(output,))
    app = create_app(settings, log=LogWriter(io.StringIO()))
    names = [step.__qualname__ for step in app.extensions[AT_END]]
    shut_down(app.extensions[AT_END])
    assert names == [
        "Cameras.close",
        "Jobs.close",
        "Products.close",
        "ThreadPoolExecutor.shutdown",
        "BackgroundQueue.flush",
        "Sampler.close",
        "Journal.close",
        "Outputs.close",
        "LogThrottle.summarize",
        "LogWriter.stop",
    ]


def test_step_that_fails_keeps_no_other_from_its_turn(
    departed: None, caplog: pytest.LogCaptureFixture
) -> None:
    done: list[str] = []
    shut_down([lambda: done.append("a"), lambda: [].pop(), lambda: done.append("b")])
    assert done == ["a", "b"]
    assert caplog.messages == ["a part could not be closed"]


def test_stop_keeps_all_that_was_answered(colors: Path, tmp_path: Path) -> None:
    """The row and the sample of a frame that was answered just before a stop, and the count of
    lines that were left out."""
    with live_server(
        models=colors, data=tmp_path, samples="on", samples_share=1, log_repeats=1, traced=True
    ) as server:
        for _ in range(3):
            assert server.recognize(b"no image").status_code == 415
        answer = server.recognize(GREEN)
        assert answer.status_code == 200
    reader = JournalReader(tmp_path / FILE, Filter())
    rows = reader.page("newest", 10)
    reader.close()
    assert [row.status for row in rows] == [200, 415, 415, 415]
    assert rows[0].request_id == answer.json()["request_id"]
    assert len(list((tmp_path / "samples").glob("*.json"))) == 1
    omitted = [line for line in server.lines if line["event"].startswith("requests without")]
    assert [line["requests"] for line in omitted] == [2]
