"""Our own side: the server with its default settings, and the bare limit beside it."""

import json
import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.clients.load import Figures, per_frame, watch_cpu
from bench.inputs import ROOT, Model
from bench.servers import processes
from bench.servers.service import Service, free_port


def environment(**more: str) -> dict[str, str]:
    """This process's environment without any setting of the server, the project importable."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("LINESIDE_")}
    return {**env, "PYTHONPATH": f"{ROOT}:{ROOT / 'scripts'}", **more}


def start_server(python: Path, model: Model, log: Path, **settings: str) -> Service:
    """`python -m server` on a free port: its default settings, but for the folder of models and
    `settings`; what it keeps lies beside its log."""
    port = free_port()
    given = {"models": str(model.models), "data": str(log.with_suffix(".data")), **settings}
    own = {"LINESIDE_" + name.upper(): value for name, value in given.items()}
    env = environment(LINESIDE_PORT=str(port), **own)
    del env["PYTHONPATH"]
    url = f"http://127.0.0.1:{port}/v1/recognize"
    return Service([str(python), "-m", "server"], env, ROOT, url, log)


class Bare:
    """bench.servers.bare in a process of its own, until the end of the `with` block."""

    def __init__(self, python: Path, bundle: Path, engine: str = "auto") -> None:
        self.process = subprocess.Popen(
            [str(python), "-m", "bench.servers.bare", str(bundle), engine],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def measure(self, frame: Path, seconds: float, *, exact: bool = False) -> Figures:
        """Frames a second (`fps`) and CPU ms a frame with every core at work; and the `label`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        command = {"frame": str(frame), "seconds": seconds, "exact": exact}
        self.process.stdin.write(json.dumps(command).encode() + b"\n")
        self.process.stdin.flush()
        rates = watch_cpu(lambda: processes.cpu_seconds([self.process.pid]), seconds)
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError("the bare limit's process ended; its error stands above")
        return per_frame(json.loads(answer), rates)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.communicate()


def added_latency(python: Path, model: Model, url: str, frame: Path, rounds: int) -> dict[str, Any]:
    """Return what bench.latency measures against the server at `url`."""
    arguments = [str(model.models), url, str(frame), str(rounds)]
    done = subprocess.run(
        [str(python), "-m", "bench.latency", *arguments],
        env=environment(),
        check=True,
        stdout=subprocess.PIPE,
    )
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures
