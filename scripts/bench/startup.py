"""Process start to /readyz 200, and the memory of the whole process tree at that moment.

    python scripts/bench/startup.py [--runs 9] [--models FOLDER] [--model NAME]

Prints each run and the medians: seconds, resident (RSS) and proportional (PSS) megabytes of the
server's processes. RSS counts what its two processes share twice, PSS once. Needs Linux.
"""

import argparse
import http.client
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
# The script's own folder gives way to the two that its packages lie in.
sys.path[0:1] = [str(ROOT), str(ROOT / "scripts")]

from bench.servers import processes  # noqa: E402
from bench.servers.service import free_port  # noqa: E402

PATIENCE = 60.0


def is_ready(port: int) -> bool:
    """Return True if /readyz answers 200 now."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def measure(models: str, model: str) -> dict[str, float]:
    """One start: `seconds` to ready, and `rss` and `pss` in MB. Raises RuntimeError where the
    server does not become ready."""
    port = free_port()
    env = {k: v for k, v in os.environ.items() if not k.startswith("LINESIDE_")}
    env |= {"LINESIDE_MODELS": models, "LINESIDE_MODEL": model, "LINESIDE_PORT": str(port)}
    started = time.monotonic()
    server = subprocess.Popen(
        [sys.executable, "-m", "server"], cwd=ROOT, env=env, stderr=subprocess.DEVNULL
    )
    try:
        while not is_ready(port):
            if server.poll() is not None or time.monotonic() - started > PATIENCE:
                raise RuntimeError(f"the server with {models} did not become ready")
            time.sleep(0.002)
        seconds = time.monotonic() - started
        return {"seconds": seconds, **processes.memory(processes.tree(server.pid))}
    finally:
        processes.stop(server)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=9, help="starts to measure (9)")
    parser.add_argument("--models", default=str(ROOT / "models"), help="folder of bundles (models)")
    parser.add_argument("--model", default="parts", help="the default model (parts)")
    args = parser.parse_args()
    print("| run | to /readyz 200, s | RSS, MB | PSS, MB |\n|---|---|---|---|")
    runs = []
    for number in range(1, args.runs + 1):
        runs.append(measure(args.models, args.model))
        print("| {} | {seconds:.2f} | {rss:.0f} | {pss:.0f} |".format(number, **runs[-1]))
    medians = {name: median(run[name] for run in runs) for name in runs[0]}
    print("| **median** | {seconds:.2f} | {rss:.0f} | {pss:.0f} |".format(**medians))


if __name__ == "__main__":
    main()
