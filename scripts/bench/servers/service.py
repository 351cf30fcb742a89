"""A server under test: started, asked until it answers rightly, watched, stopped."""

import http.client
import json
import re
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from bench.clients.forms import Request
from bench.servers import processes

LABEL = re.compile(rb'label\\?":\s*\\?"([^"\\]*)')


class ServiceError(RuntimeError):
    """A server that did not come up, with the end of its log."""


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def first_label(body: bytes) -> str:
    """The first label in an answer, JSON or JSON within a JSON string; '' where there is none."""
    found = LABEL.search(body)
    return found.group(1).decode() if found else ""


def post(url: str, request: Request, timeout: float = 30.0) -> tuple[int, bytes]:
    """Status and body of one POST; status 0 where there was no answer."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    try:
        connection.request("POST", path, request.body, request.headers)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException) as error:
        return 0, str(error).encode()
    finally:
        connection.close()


class Service:
    """`command` in a process of its own until the end of the `with` block; `log` takes its output.

    `started` is the time.monotonic() of its start.
    """

    def __init__(
        self, command: list[str], env: dict[str, str], cwd: Path, url: str, log: Path
    ) -> None:
        self.url, self.log = url, log
        self._file = log.open("wb")
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=self._file,
            stderr=self._file,
            start_new_session=True,
        )

    def await_answer(self, request: Request, label: str, patience: float = 120.0) -> float:
        """Seconds from the process's start to the first answer 200 that names `label` first.

        Raises ServiceError where none comes within `patience` seconds or the process ends.
        """
        status, answer = 0, b""
        while time.monotonic() - self.started < patience and self.process.poll() is None:
            status, answer = post(self.url, request)
            if status == 200 and first_label(answer) == label:
                return time.monotonic() - self.started
            time.sleep(0.01)
        tail = self.log.read_text(errors="replace")[-600:]
        seconds = time.monotonic() - self.started
        raise ServiceError(
            f"no answer naming {label!r} in {seconds:.0f} s; the last was"
            f" {status} {json.dumps(answer[:200].decode(errors='replace'))}; the log ends: {tail}"
        )

    def cpu_seconds(self) -> tuple[float, float]:
        """User and system seconds of its processes so far."""
        return processes.cpu_seconds(processes.tree(self.process.pid))

    def memory(self) -> dict[str, float]:
        """`rss` and `pss` megabytes of its processes, and how many these are."""
        pids = processes.tree(self.process.pid)
        return {**processes.memory(pids), "processes": float(len(pids))}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        processes.stop(self.process)
        self._file.close()
