"""The machine and the versions that figures belong to."""

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from bench.inputs import ROOT

PACKAGES = ("ai-edge-litert", "simplejpeg", "opencv-python-headless", "flask", "granian")
VERSIONS = """
import importlib.metadata, json, sys
print(json.dumps({name: importlib.metadata.version(name) for name in sys.argv[1:]}))
"""


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _versions(python: Path) -> dict[str, str]:
    command = [str(python), "-c", VERSIONS, *PACKAGES]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    versions: dict[str, str] = json.loads(done.stdout)
    return versions


def describe(python: Path) -> dict[str, object]:
    """Processor, cores, memory (GB), system, Python, date, commit, load average before the run;
    the versions are those that `python` imports."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory / 1e9, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": _versions(python),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "load_average": os.getloadavg()[0],
    }
