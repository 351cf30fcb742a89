"""The fleet's commands, for tests."""

import subprocess
import sys

from server_process import ROOT


def fleet(*words: object) -> tuple[int, list[str]]:
    """Exit code and lines of `python -m server fleet`."""
    done = subprocess.run(
        [sys.executable, "-m", "server", "fleet", *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, (done.stdout + done.stderr).splitlines()
