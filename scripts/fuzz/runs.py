"""Runs a target in child processes until it has had its inputs, and collects what they find."""

import importlib.util
import json
import mmap
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from fuzz.child import HEAD, INPUT_BYTES_MAX, ROOT, STATE_BYTES

# Seconds without a new input after which a child counts as hanging. Its start may take long.
HANG_S, START_S = 30.0, 120.0
# Children of one target, after which it is given up.
RESTARTS_MAX = 20
POLL_S = 0.2
# Where files cost no disk.
MEMORY_FOLDER = Path("/dev/shm")


@dataclass
class Outcome:
    """The run of one target. peak_mb: by which its inputs raised the peak memory. findings: each
    with `fault`, `place`, `detail`, and `file`, the name of the input that was kept."""

    target: str
    engine: str
    inputs: int = 0
    seconds: float = 0.0
    peak_mb: int = 0
    findings: list[dict[str, str]] = field(default_factory=list)


def has_atheris() -> bool:
    return importlib.util.find_spec("atheris") is not None


def run_target(
    group: str, name: str, *, engine: str, inputs: int, seconds: float, seed: int, keep: Path
) -> Outcome:
    """Give `inputs` inputs to a target, for at most `seconds`. Inputs of findings go to `keep`."""
    outcome, began = Outcome(name, engine), time.monotonic()
    for number in range(RESTARTS_MAX):
        left, time_left = inputs - outcome.inputs, seconds - (time.monotonic() - began)
        if left <= 0 or time_left <= 0:
            break
        ask: dict[str, Any] = {"group": group, "name": name, "engine": engine}
        ask |= {"inputs": left, "seconds": time_left, "seed": seed + number, "first": not number}
        if _run_child(ask, outcome, keep):
            break
    outcome.seconds = round(time.monotonic() - began, 1)
    return outcome


def _run_child(ask: dict[str, Any], outcome: Outcome, keep: Path) -> bool:
    """Return whether the child came to its end by itself."""
    memory = str(MEMORY_FOLDER) if MEMORY_FOLDER.is_dir() else None
    with tempfile.TemporaryDirectory(
        prefix="fuzz-", dir=memory, ignore_cleanup_errors=True
    ) as folder:
        (Path(folder) / "state").write_bytes(bytes(STATE_BYTES))
        with (Path(folder) / "state").open("r+b") as file:
            state = mmap.mmap(file.fileno(), STATE_BYTES)
        places = os.pathsep.join(
            (str(ROOT), str(ROOT / "scripts"), os.environ.get("PYTHONPATH", ""))
        ).rstrip(os.pathsep)
        child = subprocess.Popen(
            [sys.executable, "-m", "fuzz.child", json.dumps({**ask, "folder": folder})],
            env={**os.environ, "PYTHONPATH": places, "TMPDIR": folder, "OPENCV_LOG_LEVEL": "OFF"},
            stdout=subprocess.PIPE,
            text=True,
        )
        lines: list[str] = []
        assert child.stdout is not None
        reader = threading.Thread(target=lines.extend, args=(child.stdout,))
        reader.start()
        hung = _await(child, state)
        reader.join()
        child.stdout.close()
        count, peak, size = HEAD.unpack_from(state)
        data = bytes(state[HEAD.size : HEAD.size + min(size, INPUT_BYTES_MAX)])
        log = (Path(folder) / "log").read_text(errors="replace")
    if not count and not hung and child.returncode:
        raise RuntimeError(f"the target {outcome.target} can't be made: {log[-3000:]}")
    outcome.inputs += count
    outcome.peak_mb = max(outcome.peak_mb, peak)
    for line in lines:
        finding = json.loads(line)
        _keep(outcome, finding, bytes.fromhex(finding.pop("input")), keep)
    if hung:
        _keep(outcome, {"fault": "hung", "place": "", "detail": f"{HANG_S:g} s"}, data, keep)
    elif child.returncode:
        detail = f"exit code {child.returncode}: {log[-3000:]}"
        _keep(outcome, {"fault": "crashed", "place": "", "detail": detail}, data, keep)
    return not hung and child.returncode == 0


def _await(child: "subprocess.Popen[str]", state: mmap.mmap) -> bool:
    """Wait for the child's end; return whether it had to be killed since it hung."""
    seen, since = 0, time.monotonic()
    while True:
        try:
            child.wait(POLL_S)
            return False
        except subprocess.TimeoutExpired:
            count, now = HEAD.unpack_from(state)[0], time.monotonic()
            if count != seen:
                seen, since = count, now
            if now - since > (HANG_S if seen else START_S):
                child.kill()
                child.wait()
                return True


def _keep(outcome: Outcome, finding: dict[str, str], data: bytes, keep: Path) -> None:
    same = (finding["fault"], finding["place"])
    if any((each["fault"], each["place"]) == same and same[1] for each in outcome.findings):
        return
    keep.mkdir(parents=True, exist_ok=True)
    file = keep / f"{outcome.target}-{sha256(data).hexdigest()[:12]}"
    file.write_bytes(data)
    outcome.findings.append({**finding, "file": str(file)})
