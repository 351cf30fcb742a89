"""Every way in which a verdict can be missing: the PLC sees no pass, and sees that it is so."""

import io
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from images import encode, plain
from job_workers import await_that
from pymodbus.client import ModbusTcpClient
from pymodbus.exceptions import ModbusException
from server_process import free_port
from tiny_models import MakeModel, write_bundle

from server.app import AT_END, create_app, shut_down
from server.config.load import load
from server.engine import Engine
from server.line.outputs.modbus import (
    ACKNOWLEDGED,
    BEATS,
    PART,
    PASS,
    READY,
    REGISTERS,
    RESULT,
    SEQ,
    STATUS,
    VALID,
)
from server.recognition.manifest import Familiarity

GREEN = encode(plain((0, 255, 0)), "JPEG")
DARK = encode(plain((0, 40, 0)), "JPEG")
GREY = encode(plain((200, 200, 200)), "JPEG")
POLICY = {"accept": ["red", "green", "blue"], "min_probability": 0.1}
# Registers of a result that is no verdict.
PASSED, UNSURE, ERROR, NO_POLICY = 1, 3, 4, 5
BEAT_S = 0.1
FAMILIARITY = Familiarity(
    false_unfamiliar=0.005, learned_from=100, held_back=100, held_back_unfamiliar=0.0
)


class Line:
    """An application in this process, with a PLC that takes each result."""

    def __init__(self, folder: Path) -> None:
        self.port, self.folder = free_port(), folder
        output = {"name": "plc", "kind": "modbus-server", "port": self.port, "heartbeat_s": BEAT_S}
        away = {"name": "away", "kind": "modbus-server", "port": free_port(), "max_waiting": 2}
        away |= {"cameras": ["away"]}
        vote = {"name": "v", "cameras": ["voting"], "frames": 2, "timeout_s": 0.2}
        gone = {"name": "gone", "kind": "folder", "path": str(folder / "gone"), "trigger": "post"}
        self.away_port = int(str(away["port"]))
        environ = {
            "LINESIDE_MODELS": str(folder / "models"),
            "LINESIDE_MODEL": "colors",
            "LINESIDE_DATA": str(folder / "data"),
            "LINESIDE_KEYS_FILE": str(folder / "keys.jsonl"),
            "LINESIDE_MAX_WAIT_MS": "60000",
            "LINESIDE_MAX_WAITING": "0",
            "LINESIDE_FRAMES_AT_ONCE": "1",
            "LINESIDE_INTERPRETERS": "1",
            "LINESIDE_OUTPUT": json.dumps([output, away]),
            "LINESIDE_VOTE": json.dumps([vote]),
            "LINESIDE_CAMERA": json.dumps([gone]),
            "LINESIDE_PRODUCT": json.dumps([{"name": "only", "model": "colors"}]),
        }
        settings = load(environ)
        self.engine = Engine(settings)
        self.app = create_app(settings, engine=self.engine)
        self.client = self.app.test_client()
        self.plc = ModbusTcpClient("127.0.0.1", port=self.port, timeout=10)
        await_that(lambda: self.client.get("/readyz").status_code == 200, "a loaded model")
        await_that(self.plc.connect, "the PLC's connection")

    def post(self, data: bytes, query: str) -> Any:
        return self.client.post(f"/v1/recognize?{query}", data=data, content_type="image/jpeg")

    def registers(self) -> list[int]:
        return list(self.plc.read_input_registers(0, count=REGISTERS).registers)

    def result(self) -> tuple[str, int]:
        """The part and the result that the PLC sees next; it takes it."""

        def shown() -> list[int]:
            registers = self.registers()
            return registers if registers[STATUS] >> VALID & 1 else []

        registers = await_that(shown, "a result")
        assert (registers[STATUS] >> PASS & 1) == (registers[RESULT] == PASSED)
        self.plc.write_register(ACKNOWLEDGED, registers[SEQ + 1])
        await_that(lambda: not self.registers()[STATUS] >> VALID & 1, "a result taken")
        part = b"".join(each.to_bytes(2, "big") for each in registers[PART : PART + 16])
        return part.rstrip(b"\0").decode(), registers[RESULT]

    def await_ready(self, ready: bool) -> None:
        await_that(lambda: bool(self.registers()[STATUS] >> READY & 1) is ready, "the ready bit")


@pytest.fixture(scope="module")
def line(tiny_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    folder = tmp_path_factory.mktemp("missing")
    for name in ("colors", "nan_if_bright"):
        write_bundle(folder / "models" / name / "1", tiny_model(name), verdict=POLICY)
    known = folder / "models" / "familiar" / "1"
    write_bundle(known, tiny_model("familiar"), familiarity=FAMILIARITY, verdict=POLICY)
    write_bundle(folder / "models" / "plain" / "1", tiny_model("colors"))
    made = Line(folder)
    yield made
    made.plc.close()
    shut_down(made.app.extensions[AT_END])


def busy(line: Line, part: str) -> None:
    """Posts a frame while another one has the only slot."""
    started, free = threading.Event(), threading.Event()

    def work(_: float) -> None:
        started.set()
        free.wait(60)

    holder = threading.Thread(target=line.engine.admission.run, args=(work, float("inf")))
    holder.start()
    started.wait(60)
    try:
        line.post(GREEN, f"part={part}")
    finally:
        free.set()
        holder.join()


def trigger(line: Line, part: str) -> None:
    line.client.post(f"/v1/cameras/gone/trigger?part={part}")


def batch(line: Line, part: str) -> None:
    data = {"file": (io.BytesIO(GREEN[:60]), "a.jpg"), "part": part}
    line.client.post("/v1/recognize/batch", data=data)


def old_job(line: Line, part: str) -> None:
    path = f"/v1/jobs?part={part}&captured_at=1000"
    assert line.client.post(path, data=GREEN, content_type="image/jpeg").status_code == 202


def posted(data: bytes, query: str = "") -> Callable[[Line, str], object]:
    return lambda line, part: line.post(data, f"part={part}&{query}")


# What happens, and what the PLC sees of it.
WAYS: dict[str, tuple[Callable[[Line, str], object], int]] = {
    "a damaged frame": (posted(GREEN[:60]), ERROR),
    "no image": (posted(b"text"), ERROR),
    "an empty body": (posted(b""), ERROR),
    "a damaged frame of a batch": (batch, ERROR),
    "an old frame": (posted(GREEN, "captured_at=1000&deadline_ms=100"), ERROR),
    "an old frame of a job": (old_job, UNSURE),
    "a deadline that passes meanwhile": (posted(GREEN, "deadline_ms=0.001"), ERROR),
    "no free slot": (busy, ERROR),
    "a model that fails": (posted(GREY, "model=nan_if_bright"), ERROR),
    "no bundle": (posted(GREEN, "model=none"), ERROR),
    "no such version": (posted(GREEN, "version=9"), ERROR),
    "no such product": (posted(GREEN, "product=none"), ERROR),
    "a wrong field": (posted(GREEN, "top_k=0"), ERROR),
    "a camera that is not there": (trigger, ERROR),
    "no policy": (posted(GREEN, "model=plain"), NO_POLICY),
    "an unfamiliar frame": (posted(DARK, "model=familiar"), UNSURE),
    "a vote without all frames": (posted(GREEN, "camera=voting"), UNSURE),
}


@pytest.mark.parametrize("way", WAYS)
def test_missing_verdict_is_never_a_pass(line: Line, way: str) -> None:
    happen, shown = WAYS[way]
    part = f"W-{list(WAYS).index(way)}"
    happen(line, part)
    assert line.result() == (part, shown)
    line.post(GREEN, "part=next")
    assert line.result() == ("next", PASSED)


def spoil_golden(line: Line) -> Callable[[], object]:
    """A serving model that misses its golden frames."""
    model = line.engine.store.served()["colors"]
    model.golden_misses = 3
    return lambda: setattr(model, "golden_misses", 0)


def lose_version(line: Line) -> Callable[[], object]:
    """An active product whose model does not serve."""
    serving = line.engine.store._serving._serving
    model = serving.pop("colors")
    return lambda: serving.setdefault("colors", model)


def hold_slots(line: Line) -> Callable[[], object]:
    """A recognizer that does not come back, for longer than is normal."""
    admission, started, free = line.engine.admission, threading.Event(), threading.Event()

    def work(_: float) -> None:
        started.set()
        free.wait(60)

    holder = threading.Thread(target=admission.run, args=(work, float("inf")))
    holder.start()
    started.wait(60)
    line.engine.stuck_after_s = 0.05

    def end() -> None:
        free.set()
        holder.join()

    return end


STOPS = {
    "golden frames are missed": spoil_golden,
    "no model serves": lose_version,
    "the recognizer is stuck": hold_slots,
}


@pytest.mark.parametrize("way", STOPS)
def test_heartbeat_stops_while_nothing_can_judge(line: Line, way: str) -> None:
    mend = STOPS[way](line)
    try:
        line.await_ready(False)
        beats = line.registers()[BEATS]
        assert line.client.get("/readyz").status_code == 503
        # Two heartbeats' time on the server's own clock: its page of outputs is asked meanwhile.
        pause = threading.Event()
        pause.wait(3 * BEAT_S)
        assert line.registers()[BEATS] == beats
    finally:
        mend()
    line.await_ready(True)
    await_that(lambda: line.registers()[BEATS] != beats, "a heartbeat")


def test_full_outbox_leaves_a_gap(line: Line) -> None:
    """What is dropped since the PLC was away is no result, and its numbers are missing."""
    for number in range(4):
        line.post(GREEN, f"camera=away&part=P-{number}")
        assert line.result() == (f"P-{number}", PASSED)

    def waiting() -> int:
        outputs = line.client.get("/v1/outputs").get_json()["outputs"]
        return next(int(each["waiting"]) for each in outputs if each["name"] == "away")

    await_that(lambda: waiting() == 2, "the oldest dropped")
    plc = ModbusTcpClient("127.0.0.1", port=line.away_port, timeout=10)
    assert plc.connect()
    numbers: list[int] = []

    def newest() -> bool:
        registers = plc.read_input_registers(0, count=REGISTERS).registers
        if registers[STATUS] >> VALID & 1:
            numbers.append(registers[SEQ + 1])
            plc.write_register(ACKNOWLEDGED, registers[SEQ + 1])
        return numbers[-1:] == [4]

    await_that(newest, "the last number")
    plc.close()
    assert set(numbers) <= {1, 3, 4}


def test_dead_server_answers_no_plc(line: Line, tiny_model: MakeModel, tmp_path: Path) -> None:
    write_bundle(tmp_path / "models" / "colors" / "1", tiny_model("colors"), verdict=POLICY)
    other = Line(tmp_path)
    other.post(GREEN, "part=last")
    shut_down(other.app.extensions[AT_END])
    with pytest.raises(ModbusException):
        other.registers()
    other.plc.close()
