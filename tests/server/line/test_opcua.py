"""Verdicts to a client of the OPC UA server, a real one."""

import json
import threading
from pathlib import Path
from typing import Any

from asyncua import ua
from asyncua.sync import Client
from images import encode, plain
from job_workers import await_that
from line_outputs import check_stream, kill_worker, tables
from server_process import free_port, live_server

from server.line.outputs.opcua import NAMESPACE

GREEN = encode(plain((0, 255, 0)), "PNG")


class Reader:
    """A client that takes each result, and acknowledges it; it waits for a server."""

    def __init__(self, port: int) -> None:
        self._url = f"opc.tcp://127.0.0.1:{port}/lineside"
        self._client: Client | None = None
        self.taken: list[dict[str, Any]] = []

    def node(self, *names: str) -> Any:
        pause = threading.Event()
        while self._client is None:
            client = Client(self._url, timeout=10)
            try:
                client.connect()
                self._client = client
            except OSError:
                client.tloop.stop()
                pause.wait(0.05)
        space = self._client.get_namespace_index(NAMESPACE)
        return self._client.nodes.objects.get_child([f"{space}:{name}" for name in names])

    def take(self, count: int) -> None:
        """Takes results up to the one with the number `count`."""
        content = self.node("VisionSystem", "ResultManagement", "Results", "Result")
        content = content.get_child(f"{content.nodeid.NamespaceIndex}:resultContent")
        acknowledged = self.node("VisionSystem", "ResultManagement", "Acknowledged")
        last = self.taken[-1]["seq"] if self.taken else 0
        while last < count:
            text = content.read_value()
            message = json.loads(text) if text else {"seq": 0}
            if message["seq"] and (not self.taken or message != self.taken[-1]):
                self.taken.append(message)
                last = message["seq"]
                acknowledged.write_value(last, ua.VariantType.UInt32)

    def close(self) -> None:
        if self._client is not None:
            self._client.disconnect()
            self._client = None


def test_client_misses_nothing_after_absence_and_kill(colors: Path, tmp_path: Path) -> None:
    """The client is away, and the worker is killed in between."""
    port, parts = free_port(), [f"P{number}" for number in range(9)]
    table: dict[str, object] = {"name": "scada", "kind": "opcua", "port": port}
    with live_server(models=colors, data=tmp_path, output=tables(table), traced=True) as server:
        reader = Reader(port)

        def send(some: list[str]) -> None:
            for part in some:
                assert server.recognize(GREEN, camera="st4", part=part).status_code == 200

        state = reader.node("VisionSystem", "VisionStateMachine", "CurrentState")
        await_that(lambda: state.read_value() == "Operational", "a state")
        beat = reader.node("VisionSystem", "Heartbeat")
        first = beat.read_value()
        await_that(lambda: beat.read_value() > first, "a heartbeat")
        send(parts[:3])
        reader.take(3)
        reader.close()
        send(parts[3:5])
        kill_worker(server)
        send(parts[5:])
        reader.take(len(parts))
        reader.close()
        check_stream(reader.taken, parts)
        texts = [line["text"] for line in server.lines if "text" in line]
        # The libraries of OPC UA say nothing beside the log.
        assert not [text for text in texts if "XNNPACK" not in text and "SIGKILL" not in text]
