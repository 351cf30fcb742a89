"""Runs a server for an hour under load, and tells whether it ends as it began.

    python scripts/soak/run.py
    python scripts/soak/run.py --minutes 10 --json

It starts a server of its own with the shipped models, finds how many frames a second it answers,
and sends 70% of them. Meanwhile versions are swapped, models unloaded, bad input and jobs sent,
cameras vanish and come back, and pages, metrics and events are read. It ends with a table, and
with 1 if a bound does not hold: memory, threads, descriptors, files, latency, right answers.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from soak.command import main

if __name__ == "__main__":
    sys.exit(main(description=(__doc__ or "").splitlines()[0]))
