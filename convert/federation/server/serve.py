"""The server's command: it starts Flower's server, and shows what the training says."""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from convert.errors import ConvertError
from convert.federation import flower, plans
from convert.federation.flower import Security
from convert.terminal import Terminal
from convert.training.checkpoint import exclusive_lock

LOG = "flower.log"
_LOOK_SECONDS, _STATUS_SECONDS = 0.3, 20.0


def serve(
    plan: plans.ServerPlan,
    host: str,
    port: int,
    security: Security,
    terminal: Terminal,
    watch: Callable[[], None] = lambda: None,
) -> int:
    """Run one federation at host:port, and return the exit code.

    watch: called again and again while it runs; what it raises ends it.

    Raises ConvertError and GateError as the training says; the log of Flower's programs is then
    kept beside the bundles.
    """
    folder = plan.out / ".federation" / f"server-{plan.name}"
    with exclusive_lock(folder):
        for old in (plans.PROGRESS, plans.OUTCOME, LOG):
            (folder / old).unlink(missing_ok=True)
        plans.write(folder / plans.PLAN, plan)
        home, env = folder / "flower", environment(folder)
        with flower.server(host, port, security, env, folder / LOG) as process:
            terminal.say(f"listening at {host}:{port} for {plan.sites} sites")
            run = flower.start_run(port, security, env, home)
            for line in _lines(folder, lambda: _check(process, run, env, folder), watch):
                terminal.say(line)
    outcome = plans.read(folder / plans.OUTCOME, plans.Outcome)
    if outcome.error:
        error = ConvertError(outcome.error)
        error.exit_code = outcome.exit_code
        raise error
    shutil.rmtree(folder)
    return 0


def environment(folder: Path) -> Mapping[str, str]:
    """Return the environment of Flower's programs at a server whose folder is `folder`."""
    env = flower.environment(folder / "flower", **{plans.SERVER_PLAN: str(folder / plans.PLAN)})
    return flower.with_own_programs(env, folder / "programs", "server")


def _lines(folder: Path, check: Callable[[], None], watch: Callable[[], None]) -> Iterator[str]:
    """Yield what the training says, until its outcome is there."""
    progress, asked, ended = folder / plans.PROGRESS, time.monotonic(), False
    progress.touch()
    with progress.open(encoding="utf-8") as lines:
        while not ended:
            ended = (folder / plans.OUTCOME).exists()
            for line in lines:
                yield line.rstrip("\n")
            if not ended:
                watch()
                time.sleep(_LOOK_SECONDS)
            if time.monotonic() - asked > _STATUS_SECONDS:
                asked = time.monotonic()
                check()


def _check(
    process: subprocess.Popen[bytes], run: str, env: Mapping[str, str], folder: Path
) -> None:
    """Raise ConvertError if Flower has ended the training without an outcome."""
    ended = process.poll() is not None or flower.run_status(run, env).startswith("finished")
    if ended and not (folder / plans.OUTCOME).exists():
        raise ConvertError(f"the training ended early; {folder / LOG} has Flower's words")
