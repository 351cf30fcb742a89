"""The server's command: it starts Flower's server, and shows what the training says."""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from convert.errors import ConvertError
from convert.federation import flower, plans
from convert.federation.flower import Security
from convert.terminal import Terminal
from convert.training.checkpoint import exclusive_lock

LOG = "flower.log"
_LOOK_SECONDS, _STATUS_SECONDS = 0.3, 20.0


def serve(
    plan: plans.ServerPlan, host: str, port: int, security: Security, terminal: Terminal
) -> int:
    """Run one federation at host:port, and return the exit code.

    Raises ConvertError and GateError as the training says; the log of Flower's programs is then
    kept beside the bundles.
    """
    folder = plan.out / ".federation" / f"server-{plan.name}"
    with exclusive_lock(folder):
        for old in (plans.PROGRESS, plans.OUTCOME, LOG):
            (folder / old).unlink(missing_ok=True)
        plans.write(folder / plans.PLAN, plan)
        home = folder / "flower"
        env = flower.environment(home, **{plans.SERVER_PLAN: str(folder / plans.PLAN)})
        with flower.server(host, port, security, env, folder / LOG):
            terminal.say(f"listening at {host}:{port} for {plan.sites} sites")
            run = flower.start_run(port, security, env, home)
            outcome = _follow(folder, run, env, terminal)
    if outcome.error:
        raise _error(outcome)
    shutil.rmtree(folder)
    return 0


def _follow(folder: Path, run: str, env: Mapping[str, str], terminal: Terminal) -> plans.Outcome:
    progress, asked = folder / plans.PROGRESS, time.monotonic()
    progress.touch()
    with progress.open(encoding="utf-8") as lines:
        while not (folder / plans.OUTCOME).exists():
            _show(lines, terminal)
            time.sleep(_LOOK_SECONDS)
            if time.monotonic() - asked > _STATUS_SECONDS:
                asked = time.monotonic()
                status = flower.run_status(run, env)
                if status.startswith("finished") and not (folder / plans.OUTCOME).exists():
                    raise ConvertError(f"the training ended early; {folder / LOG} has its words")
        _show(lines, terminal)
    return plans.read(folder / plans.OUTCOME, plans.Outcome)


def _show(lines: TextIO, terminal: Terminal) -> None:
    for line in lines:
        terminal.say(line.rstrip("\n"))


def _error(outcome: plans.Outcome) -> ConvertError:
    error = ConvertError(outcome.error)
    error.exit_code = outcome.exit_code
    return error
