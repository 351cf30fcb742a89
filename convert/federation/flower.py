"""Flower's own programs, started for one federation and ended with it.

They talk to nobody but the other side: no telemetry, no question for updates, no packages that a
run asks for. Their state is in a folder of the federation, not in the user's home.
"""

import json
import os
import socket
import ssl
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from convert.errors import ConvertError

ROOT = Path(__file__).parents[2]
INSTALL = (
    "pip install -r convert/requirements-federate.txt, in a virtual environment of its own:"
    " docs/guide.md, Several sites, one model"
)
# What a server sends to the sites as its program: the names of what they have already.
APP = """\
[project]
name = "lineside-federate"
version = "1.0.0"
description = "Lineside's federated training"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "lineside"

[tool.flwr.app.components]
serverapp = "convert.federation.server.app:app"
clientapp = "convert.federation.site.app:app"
"""
APP_FILE = "pyproject.toml"
_CONNECTION = """\
[superlink]
default = "server"

[superlink.server]
address = "{address}"
{security}
"""
_START_SECONDS, _STOP_SECONDS = 120, 20
# Those that Flower starts to run what comes to it.
_PROGRAMS = (
    "flwr-agentapp",
    "flwr-clientapp",
    "flwr-connector",
    "flwr-model",
    "flwr-serverapp",
    "flwr-simulation",
)


@dataclass(frozen=True, slots=True)
class Security:
    """Secures what the two sides say to each other. A server has `certificate`, `key` and the
    `authority` that signed it, a site the authority, all PEM files; without one there is no TLS."""

    authority: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def server_words(self) -> list[str]:
        """Return the options of flower-superlink."""
        if self.certificate is None:
            return ["--insecure"]
        files = (self.certificate, self.key, self.authority)
        names = ("--ssl-certfile", "--ssl-keyfile", "--ssl-ca-certfile")
        return [word for pair in zip(names, map(str, files), strict=True) for word in pair]

    def site_words(self) -> list[str]:
        """Return the options of flower-supernode."""
        if self.authority is None:
            return ["--insecure"]
        return ["--root-certificates", str(self.authority)]


def is_installed() -> bool:
    """Return True if Flower can be imported."""
    return find_spec("flwr") is not None


def require() -> None:
    """Raise ConvertError if Flower is not installed."""
    if not is_installed():
        raise ConvertError(f"flwr is not installed: {INSTALL}")


def environment(home: Path, **ours: str) -> dict[str, str]:
    """Return the environment for Flower's programs with their state in `home`."""
    paths = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    python = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PATH": os.pathsep.join(paths),
        "PYTHONPATH": os.pathsep.join(filter(None, python)),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
        **ours,
    }


def free_port() -> int:
    """Return a port of 127.0.0.1 where nobody listens at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(
    host: str, port: int, security: Security, env: Mapping[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run flower-superlink, which listens at host:port, until the block ends.

    Raises ConvertError if it does not start.
    """
    command = ["flower-superlink", "--host", host, "--port", str(port)]
    with _running([*command, *security.server_words()], env, log) as process:
        _await_start(process, port, security, log)
        yield process


@contextmanager
def site(
    address: str, security: Security, env: Mapping[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run flower-supernode, which connects to the server at `address`, until the block ends."""
    command = ["flower-supernode", "--superlink", address, *security.site_words()]
    command += ["--host", "127.0.0.1", "--port", str(free_port())]
    with _running(command, env, log) as process:
        yield process


def start_run(port: int, security: Security, env: Mapping[str, str], home: Path) -> str:
    """Start the training on the server of this machine; return the run's number.

    Raises ConvertError with Flower's words if it can't be started.
    """
    app = home / "app"
    app.mkdir(parents=True, exist_ok=True)
    (app / APP_FILE).write_text(APP)
    how = f'root-certificates = "{security.authority}"' if security.certificate else ""
    connection = _CONNECTION.format(address=f"127.0.0.1:{port}", security=how or "insecure = true")
    (home / "config.toml").write_text(connection)
    return str(_asked(["flwr", "run", str(app), "server", "--format", "json"], env)["run-id"])


def run_status(run: str, env: Mapping[str, str]) -> str:
    """Return the run's status, such as `running` or `finished:failed`; empty if Flower is too busy
    to say, which a later question finds out."""
    try:
        found = _asked(["flwr", "ls", "server", "--run-id", run, "--format", "json"], env)
    except ConvertError:
        return ""
    return str(found["runs"][0]["status"])


def with_own_programs(env: Mapping[str, str], folder: Path, side: str) -> dict[str, str]:
    """Return the environment with `folder` first in its PATH: Flower's program of the `side`, site
    or server, as it is in `convert.federation.SIDE.process`, and none of its others.

    Flower starts these by their names, and would run what comes over the network.
    """
    folder.mkdir(parents=True, exist_ok=True)
    own = {"site": "flwr-clientapp", "server": "flwr-serverapp"}[side]
    for name in _PROGRAMS:
        script = folder / name
        if name == own:
            text = f"from convert.federation.{side}.process import main\n\nmain()\n"
        else:
            text = f'raise SystemExit("{name} is not run here")\n'
        script.write_text(f"#!{sys.executable}\n{text}")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return {**env, "PATH": os.pathsep.join([str(folder), env["PATH"]])}


def _asked(command: list[str], env: Mapping[str, str]) -> dict[str, Any]:
    done = subprocess.run(command, env=dict(env), capture_output=True, text=True, check=False)
    # Notes may stand before it.
    start = done.stdout.find("{")
    if done.returncode or start < 0:
        said = (done.stderr + done.stdout).strip().splitlines()
        raise ConvertError(f"{' '.join(command[:2])} failed: {said[-1] if said else 'no answer'}")
    answer: dict[str, Any] = json.loads(done.stdout[start:])
    if not answer.get("success", True):
        raise ConvertError(f"{' '.join(command[:2])} failed: {answer.get('error-message')}")
    return answer


@contextmanager
def _running(
    command: list[str], env: Mapping[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as output:
        # A group of its own, so that its children end with it and Ctrl-C reaches us first.
        process = subprocess.Popen(
            command, env=dict(env), stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield process
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()


def _await_start(
    process: subprocess.Popen[bytes], port: int, security: Security, log: Path
) -> None:
    context, scheme = None, "http"
    if security.certificate is not None:
        context, scheme = ssl.create_default_context(cafile=security.authority), "https"
        # The certificate is for the name by which the sites know this machine.
        context.check_hostname = False
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError):
            # The address is this machine's own.
            urllib.request.urlopen(  # nosec B310
                f"{scheme}://127.0.0.1:{port}/health", timeout=5, context=context
            ).close()
            return
        time.sleep(0.2)
    raise ConvertError(f"Flower's server did not start; {log} has its words")
