"""A fault run: a server under load, to which faults happen, and an account of every frame.

    .venv-test/bin/python scripts/chaos.py --seconds 600 --seed 1

docs/reliability.md says what it does and what it found.
"""

import sys

from fault_run.command import main

if __name__ == "__main__":
    sys.exit(main())
