"""A process of the plant that can be killed, stopped, continued and started again."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

READY_TIMEOUT_S = 60.0
POLL_INTERVAL_S = 0.05


class NotReadyError(RuntimeError):
    """A process did not come up in time; the message names it and its log."""


def free_port(taken: set[int]) -> int:
    """Return a port of 127.0.0.1 below those that Linux gives to outgoing connections, which stays
    free while its process is away. It is added to `taken`."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    start = 10_000 + os.getpid() * 16 % max(1, first - 10_000 - 64)
    for port in range(start, first):
        with socket.socket() as probe, contextlib.suppress(OSError):
            if port not in taken:
                probe.bind(("127.0.0.1", port))
                taken.add(port)
                return port
    raise OSError("no port is free")


def listens(port: int) -> bool:
    """Return whether a connection to `port` of 127.0.0.1 is taken."""
    try:
        socket.create_connection(("127.0.0.1", port), 2).close()
    except OSError:
        return False
    return True


def await_that(done: Callable[[], bool], what: str, timeout_s: float = READY_TIMEOUT_S) -> None:
    """Return once `done` is true. Raises NotReadyError."""
    until = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > until:
            raise NotReadyError(f"not within {timeout_s:g} s: {what}")
        time.sleep(POLL_INTERVAL_S)


def children(pid: int) -> list[int]:
    """Return the processes that `pid` started, from any of its threads."""
    found: list[int] = []
    for task in _tasks(pid):
        with contextlib.suppress(OSError):
            found += map(int, (task / "children").read_text().split())
    return found


def descendants(pid: int) -> list[int]:
    """Return the processes that `pid` and its children started, parents first."""
    return [each for child in children(pid) for each in (child, *descendants(child))]


def _tasks(pid: int) -> list[Path]:
    with contextlib.suppress(OSError):
        return list(Path(f"/proc/{pid}/task").iterdir())
    return []


def command_line(pid: int) -> str:
    """Return the words of a process's command; empty once it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def send(pids: Sequence[int], number: signal.Signals) -> None:
    """Send a signal to those of `pids` that still are there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


class Process:
    """The command of one part of the plant, called `name`, whose output goes to `log`.

    ready: whether it can be used, asked after each start.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        ready: Callable[[], bool],
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.name = name
        self.command = list(command)
        self.log = log
        self.env = dict(env) if env is not None else None
        self._cwd = cwd
        self._ready = ready
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, and return once it is ready. Raises NotReadyError."""
        self.begin()
        self.await_ready()

    def begin(self) -> None:
        """Start it."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                cwd=self._cwd,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def await_ready(self) -> None:
        await_that(self._ready, f"{self.name} is ready, see {self.log}")

    def pids(self) -> list[int]:
        """Return its processes, parents first."""
        return [self.pid, *descendants(self.pid)] if self.alive else []

    def kill(self) -> None:
        """kill -9 of all its processes, and not back before they are gone."""
        pids = self.pids()
        send(pids, signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
        await_that(lambda: not any(map(command_line, pids)), f"the end of {self.name}")

    def terminate(self) -> None:
        """Ask it to end, as its operator would."""
        if self.alive:
            assert self._process is not None
            self._process.terminate()

    def stop(self, timeout_s: float = 40.0) -> None:
        """End it as its operator would; by kill if it takes longer than `timeout_s`."""
        if self.alive:
            assert self._process is not None
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout_s)
            self.kill()
