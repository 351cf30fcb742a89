"""The plant of a run: the server with its worker, Redis, MQTT broker, PLC and pulled cameras."""

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from chaos.frames import Frame
from chaos.history import History
from chaos.mqtt_tap import MqttTap
from chaos.processes import Process, children, command_line, free_port, listens

ROOT = Path(__file__).parents[2]
MODEL = "parts"
# Megabytes of the tmpfs that holds `data`, if this process may mount one.
DISK_MB = 96
PULL_INTERVAL_S = 1.0
PROBE_TIMEOUT_S = 5.0
JOURNAL_TIMEOUT_S = 60.0
# The name of a pulled camera is this and the name of the frame that it shows.
PULLED = "pull-"


def program(name: str) -> str | None:
    """Return the path of a Debian program, also of those in /usr/sbin; None if it is absent."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin")


class Plant:
    """All processes of a run, with their files in `folder`. `missing` says why a part is absent,
    by the part's name. `data_on_tmpfs`: `data` is a file system of its own."""

    def __init__(self, folder: Path, history: History, frames: dict[str, Frame]) -> None:
        self.folder = folder
        self.history = history
        self.missing: dict[str, str] = {}
        self.data, self.models = folder / "data", folder / "models"
        taken: set[int] = set()
        self.port, self.grpc_port = free_port(taken), free_port(taken)
        self._ports = taken
        self.plc_history = folder / "plc.jsonl"
        self.data_on_tmpfs = self._mount()
        shutil.copytree(ROOT / "models" / MODEL, self.models / MODEL)
        self._cameras = [PulledCamera(frames[name]) for name in ("good", "scratched")]
        self._tap: MqttTap | None = None
        self.redis = self._make_redis()
        self.mosquitto = self._make_mosquitto()
        self.plc = self._make_plc()
        self.server = Process(
            "server",
            [sys.executable, "-m", "server"],
            folder / "server.log",
            self.is_ready,
            self._settings(),
            ROOT,
        )
        self.worker = self._make_worker()

    def _mount(self) -> bool:
        self.data.mkdir()
        if os.geteuid() != 0:
            self.missing["disk"] = "not root, so no file system can be mounted for data"
            return False
        options = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(self.data)]
        done = subprocess.run(options, capture_output=True, text=True, check=False)
        if done.returncode:
            self.missing["disk"] = f"no tmpfs can be mounted: {done.stderr.strip()}"
        return done.returncode == 0

    def _make_redis(self) -> Process | None:
        command = program("redis-server")
        if command is None:
            self.missing["redis"] = "redis-server is not installed"
            return None
        folder, port = self.folder / "redis", free_port(self._ports)
        folder.mkdir()
        self.redis_url = f"redis://127.0.0.1:{port}/0"
        words = [*(command, "--port", str(port), "--bind", "127.0.0.1", "--appendonly", "yes")]
        words += ["--save", "", "--dir", str(folder)]
        return Process("redis", words, self.folder / "redis.log", lambda: _answers_ping(port))

    def _make_mosquitto(self) -> Process | None:
        command = program("mosquitto")
        if command is None or find_spec("paho") is None:
            self.missing["mosquitto"] = "mosquitto or paho-mqtt is not installed"
            return None
        port, self.mqtt_port = free_port(self._ports), free_port(self._ports)
        config = self.folder / "mosquitto.conf"
        config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nuser root\n", "utf-8")
        self._tap = MqttTap(self.mqtt_port, port, self.history)
        return Process(
            "mosquitto",
            [command, "-c", str(config)],
            self.folder / "mosquitto.log",
            lambda: listens(port),
        )

    def _make_plc(self) -> Process | None:
        if find_spec("pymodbus") is None:
            self.missing["plc"] = "pymodbus is not installed"
            return None
        port = self.plc_port = free_port(self._ports)
        words = [sys.executable, "-m", "chaos.plc", str(port), str(self.plc_history)]
        env = os.environ | {"PYTHONPATH": str(ROOT / "scripts")}
        log = self.folder / "plc.log"
        return Process("plc", words, log, lambda: listens(port), env)

    def _settings(self) -> dict[str, str]:
        outputs: list[dict[str, object]] = []
        if self.mosquitto is not None:
            outputs.append(_output("broker", "mqtt", self.mqtt_port))
        if self.plc is not None:
            outputs.append(_output("plc", "modbus-client", self.plc_port))
        cameras = [
            {
                "name": PULLED + camera.frame.name,
                "kind": "http",
                "url": camera.url,
                "interval_s": PULL_INTERVAL_S,
                "stall_s": 2.0,
            }
            for camera in self._cameras
        ]
        settings: dict[str, object] = {
            "port": self.port,
            "models": self.models,
            "model": MODEL,
            "data": self.data,
            "watch_models_s": 1,
            "output": json.dumps(outputs),
            "camera": json.dumps(cameras),
            "samples": "on",
            "samples_mb": 5,
        }
        if find_spec("grpc") is None:
            self.missing["grpc"] = "grpcio is not installed"
        else:
            settings["grpc_port"] = self.grpc_port
        if self.redis is not None:
            settings |= {"broker_url": self.redis_url, "job_workers": 0}
        return _environment(settings)

    def _make_worker(self) -> Process | None:
        if self.redis is None:
            return None
        log = self.folder / "worker.log"
        data = self.folder / "worker-data"
        settings = {
            "models": self.models,
            "model": MODEL,
            "data": data,
            "broker_url": self.redis_url,
            "interpreters": 1,
        }
        command = [sys.executable, "-m", "server", "worker"]
        env = _environment(settings)
        worker = Process("worker", command, log, lambda: _says_ready(log, worker.pid), env, ROOT)
        return worker

    def parts(self) -> list[Process]:
        """Return its processes."""
        all_parts = (self.redis, self.mosquitto, self.plc, self.server, self.worker)
        return [part for part in all_parts if part is not None]

    def start(self) -> None:
        """Start everything. Raises NotReadyError."""
        for part in self.parts():
            part.begin()
        self.await_ready()

    def web_pids(self) -> list[int]:
        """Return the process of the server that answers, without its supervisor."""
        return children(self.server.pid) if self.server.alive else []

    def job_worker_pids(self) -> list[int]:
        """Return the processes that work on jobs: those of the worker, or else of the server."""
        if self.worker is not None:
            return self.worker.pids()
        return [pid for pid in self.server.pids()[2:] if " worker" in command_line(pid)]

    def is_ready(self) -> bool:
        """Return whether the server says that it can judge."""
        return self.get("/readyz")[0] == 200

    def await_ready(self) -> None:
        """Return once every part runs and the server can judge. Raises NotReadyError."""
        for part in self.parts():
            part.await_ready()

    def get(self, path: str, timeout_s: float = PROBE_TIMEOUT_S) -> tuple[int, bytes]:
        """Return status and body of a GET; status 0 if there is no answer."""
        return self.ask("GET", path, timeout_s=timeout_s)

    def ask(
        self, method: str, path: str, body: bytes | None = None, timeout_s: float = PROBE_TIMEOUT_S
    ) -> tuple[int, bytes]:
        """Return status and body of a request; status 0 if there is no answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()

    def outputs_are_empty(self) -> bool:
        """Return whether no message waits for an output."""
        status, body = self.get("/v1/outputs")
        return status == 200 and not any(one["waiting"] for one in json.loads(body)["outputs"])

    def note_journal(self) -> bool:
        """Note the journal's rows in the history. Return whether it can be read."""
        status, body = self.get("/v1/journal?format=jsonl", JOURNAL_TIMEOUT_S)
        for line in body.splitlines() if status == 200 else ():
            row = json.loads(line)
            self.history.record(row["request_id"], "journal", "row", row=row)
        return status == 200

    def close(self) -> None:
        """End every process, and unmount `data`."""
        for part in self.parts():
            part.terminate()
        for part in reversed(self.parts()):
            part.stop()
        for camera in self._cameras:
            camera.close()
        if self._tap is not None:
            self._tap.close()
        if self.data_on_tmpfs:
            subprocess.run(["umount", "--lazy", str(self.data)], check=False)


def _output(name: str, kind: str, port: int) -> dict[str, object]:
    return {"name": name, "kind": kind, "host": "127.0.0.1", "port": port}


def _environment(settings: dict[str, object]) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("LINESIDE_", "COVERAGE_"))}
    return env | {f"LINESIDE_{name.upper()}": str(value) for name, value in settings.items()}


def _answers_ping(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 2) as client:
        client.sendall(b"PING\r\n")
        return client.recv(100).startswith(b"+PONG")
    return False


def _says_ready(log: Path, pid: int) -> bool:
    """Return whether the worker that was started as `pid` has logged that it takes frames."""
    with contextlib.suppress(OSError):
        for line in log.read_text("utf-8", "replace").splitlines():
            if '"worker ready"' in line and json.loads(line).get("pid") == pid:
                return True
    return False


class PulledCamera:
    """An HTTP server that answers each GET with the same frame."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "image/jpeg")
                self.send_header("Content-Length", str(len(frame.data)))
                self.end_headers()
                with contextlib.suppress(ConnectionError):
                    self.wfile.write(frame.data)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/snapshot"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
