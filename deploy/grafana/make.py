"""Makes the dashboards: python deploy/grafana/make.py [FOLDER]

Needs the grafana-foundation-sdk of tests/requirements.txt; the device needs only what it writes.
"""

import json
import sys
from pathlib import Path

from device import device
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from line import line

FOLDER = Path(__file__).parent / "dashboards"


def dashboards() -> dict[str, str]:
    """Return the dashboards as JSON, by file name."""
    boards = {"line.json": line(), "device.json": device()}
    return {
        name: json.dumps(board.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"
        for name, board in boards.items()
    }


def main(folder: Path) -> None:
    """Write the dashboards to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in dashboards().items():
        (folder / name).write_text(text, "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
