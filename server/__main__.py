"""python -m server [serve | worker | check | health | bench | settings | key | journal | fleet]"""

import gc
import sys
from collections.abc import Sequence

from server.process.supervisor import supervise
from server.system.handover import Handover


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command, `serve` if none is named. The server runs in a process that is watched.

    Exit code: 0 well, 1 a server that could not start or go on, 2 wrong use.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or (
        arguments[0].startswith("--") and arguments[0] not in ("--help", "--version")
    ):
        arguments.insert(0, "serve")

    handover = Handover() if arguments[0] == "serve" else None

    def run() -> int:
        # Imports make objects that stay to the end, so to look for garbage among them is in vain.
        # The server collects again once it is put together.
        gc.disable()
        # Not before the fork: what watches the server stays small.
        from server.cli import main as command

        if handover is None:
            gc.enable()
        return command.run_for_reader(lambda: command.main(arguments, handover))

    return supervise(run, handover) if handover else run()


if __name__ == "__main__":
    sys.exit(main())
