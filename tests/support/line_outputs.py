"""Other sides of outputs, for tests: Debian's mosquitto, a subscriber, and a cable to cut."""

import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from job_workers import await_that, children
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion
from server_process import LiveServer, free_port

MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")


def tables(*outputs: dict[str, object]) -> str:
    """The setting `output` as the environment has it."""
    return json.dumps(outputs)


def text_at(registers: list[int], start: int) -> str:
    """The text of a result's registers from `start` on."""
    data = b"".join(value.to_bytes(2, "big") for value in registers[start : start + 16])
    return data.rstrip(b"\0").decode()


class Cable:
    """A TCP forwarder from a port of its own to `target`, that can be cut and mended."""

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self._target = target
        self._ends: list[socket.socket] = []
        self._listener: socket.socket | None = None
        self.mend()

    def mend(self) -> None:
        """Takes connections again."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self._target), 10)
                except OSError:
                    near.close()
                    continue
                far.settimeout(None)
                self._ends += [near, far]
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._copy, args=(one, other), daemon=True).start()

    @staticmethod
    def _copy(one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
        for end in (one, other):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Ends all connections and refuses new ones."""
        if self._listener is not None:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._ends.clear()


@contextmanager
def cable(target: int) -> Iterator[Cable]:
    """A cable to the port `target` for the block."""
    one = Cable(target)
    try:
        yield one
    finally:
        one.cut()


def need_mosquitto() -> str:
    """The broker's program; skips without one."""
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed (Debian: apt install mosquitto)")
    return MOSQUITTO


@contextmanager
def mosquitto(folder: Path, *lines: str) -> Iterator[int]:
    """The port of a broker for the block, with further `lines` of its settings; skips without
    one."""
    program, port = need_mosquitto(), free_port()
    config = folder / f"mosquitto-{port}.conf"
    text = [f"listener {port} 127.0.0.1", *(lines or ("allow_anonymous true",)), "user root", ""]
    config.write_text("\n".join(text), "utf-8")
    with (folder / "mosquitto.log").open("w") as log:
        process = subprocess.Popen([program, "-c", str(config)], stderr=log, stdout=log)
    try:
        await_that(lambda: _listens(port), "an answer from mosquitto")
        yield port
    finally:
        process.terminate()
        process.wait(30)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except OSError:
        return False
    return True


class Subscriber:
    """Collects what a broker publishes: `next` waits for a message of JSON."""

    def __init__(self, port: int, topic: str, **login: str) -> None:
        self.messages: queue.Queue[Any] = queue.Queue()
        subscribed = threading.Event()
        self._client = Client(CallbackAPIVersion.VERSION2)
        if login:
            self._client.username_pw_set(login["username"], login["password"])
        self._client.on_connect = lambda client, *_: client.subscribe(topic, 1)
        self._client.on_subscribe = lambda *_: subscribed.set()
        self._client.on_message = lambda _, __, message: self.messages.put(message)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert subscribed.wait(60)

    def next(self, timeout: float = 60) -> Any:
        """The next message, as the client has it."""
        return self.messages.get(timeout=timeout)

    def take(self, count: int) -> list[dict[str, Any]]:
        """The payloads of messages up to the one with the sequence number `count`."""
        taken: list[dict[str, Any]] = []
        while not taken or taken[-1]["seq"] < count:
            taken.append(json.loads(self.next().payload))
        return taken

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@contextmanager
def subscriber(port: int, topic: str = "lineside/#", **login: str) -> Iterator[Subscriber]:
    one = Subscriber(port, topic, **login)
    try:
        yield one
    finally:
        one.close()


def kill_worker(server: LiveServer) -> None:
    """Ends the worker as nothing can catch it, and waits for the next one."""
    before = server.worker_pid()
    os.kill(before, signal.SIGKILL)
    await_that(
        lambda: [pid for pid in children(server.process.pid) if pid != before], "a new worker"
    )
    server.await_ready()


def check_stream(taken: Sequence[dict[str, Any]], parts: Sequence[str]) -> None:
    """Fails unless each of `parts` has its message, in order, and those that came twice are marked
    and have the number of the first."""
    first: dict[int, dict[str, Any]] = {}
    for message in taken:
        again = first.setdefault(message["seq"], message)
        if again is not message:
            assert message["redelivered"], message
            assert message["request_id"] == again["request_id"]
    assert [message["part"] for message in first.values()] == list(parts)
    assert list(first) == list(range(1, len(parts) + 1))
    assert len({message["stream"] for message in taken}) == 1
