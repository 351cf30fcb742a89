"""The port: one server's alone."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from job_workers import await_that
from server_process import ROOT, free_port


def test_one_of_two_started_at_once_serves(colors: Path, tmp_path: Path) -> None:
    """Of two servers that start at once, one serves and the other says why it does not."""
    port = free_port()
    env = {name: value for name, value in os.environ.items() if not name.startswith("LINESIDE_")}
    env |= {"LINESIDE_PORT": str(port), "LINESIDE_MODELS": str(colors)}
    servers = [
        subprocess.Popen(
            [sys.executable, "-m", "server"],
            cwd=ROOT,
            env=env | {"LINESIDE_DATA": str(tmp_path / name)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "other")
    ]
    # Whichever has lost ends by itself; the other goes on until it is told to stop.
    ended = await_that(lambda: [each for each in servers if each.poll() is not None], "an end")[0]
    (serving,) = [server for server in servers if server is not ended]
    serving.send_signal(signal.SIGTERM)
    told = {server: server.communicate(timeout=60)[1] for server in servers}
    assert (ended.returncode, serving.returncode) == (1, 0)
    assert told[ended].endswith(
        f"can't listen on 127.0.0.1:{port} (host, port): Address already in use\n"
    )
