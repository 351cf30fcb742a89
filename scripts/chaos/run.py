"""A fault run: a server under load, to which faults happen, and an account of every frame.

    .venv-test/bin/python scripts/chaos/run.py --seconds 600 --seed 1

docs/reliability.md says what it does and what it found.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from chaos.command import main

if __name__ == "__main__":
    sys.exit(main())
