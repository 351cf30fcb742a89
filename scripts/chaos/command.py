"""The command: a plant under load, faults, and the account at the end."""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from chaos.account.checker import account_for
from chaos.account.ledger import Account
from chaos.account.report import as_json, as_table
from chaos.clients import Camera, Client, Load, Triton
from chaos.faults import bundles, clock, connections, databases, disk, kills, memory
from chaos.faults.fault import Fault
from chaos.faults.schedule import Schedule
from chaos.frames import read_frames
from chaos.history import History, read_history
from chaos.jobs import Jobs, Triggers
from chaos.plant import ROOT, Plant
from chaos.processes import NotReadyError, await_that

FAULTS: tuple[Fault, ...] = (
    *kills.FAULTS,
    *disk.FAULTS,
    *databases.FAULTS,
    *bundles.FAULTS,
    *connections.FAULTS,
    *clock.FAULTS,
    *memory.FAULTS,
)
PUSHED = ("st1", "st2")
# Seconds after the last fault until the outputs have everything.
DRAIN_TIMEOUT_S = 120.0


def run(
    folder: Path, seconds: float, seed: int, per_second: float, names: Sequence[str]
) -> Account:
    """Run the plant in `folder` for so many seconds, and return the account. names: the faults;
    empty: all."""
    history = History(folder / "history.jsonl")
    frames = read_frames(ROOT)
    plant = Plant(folder, history, frames)
    if reason := clock.missing():
        plant.missing["clock"] = reason
    try:
        plant.start()
        loads, jobs, triggers = _make_load(plant, history, per_second, seed)
        clients: tuple[Load | Jobs | Triggers, ...] = (*loads, jobs, triggers)
        for client in clients:
            client.start()
        chosen = [fault for fault in FAULTS if not names or fault.name in names]
        Schedule(plant, history, chosen, seed).run(seconds)
        for client in clients:
            client.stop()
        for client in clients:
            client.join()
        jobs.finish()
        _settle(plant, history)
    finally:
        plant.close()
        history.close()
    outputs = [name for name, part in (("mqtt", plant.mosquitto), ("plc", plant.plc)) if part]
    return account_for(read_history(history.path, plant.plc_history), outputs)


def _make_load(
    plant: Plant, history: History, per_second: float, seed: int
) -> tuple[list[Load], Jobs, Triggers]:
    frames = read_frames(ROOT)
    makers: dict[str, Callable[[], Client]] = {
        name: partial(Camera, plant, name) for name in PUSHED
    }
    if find_spec("tritonclient") is None:
        plant.missing["triton"] = "tritonclient is not installed"
    else:
        makers["triton-http"] = partial(Triton, plant, "http")
        if "grpc" not in plant.missing:
            makers["triton-grpc"] = partial(Triton, plant, "grpc")
    loads = [
        Load(name, make, history, frames, per_second, seed * 100 + number)
        for number, (name, make) in enumerate(makers.items())
    ]
    jobs = Jobs(plant, history, frames, 2 / per_second, seed * 100 + 50)
    triggers = Triggers(plant, history, ["good", "scratched"], 4 / per_second, seed * 100 + 60)
    return loads, jobs, triggers


def _settle(plant: Plant, history: History) -> None:
    """Wait until outputs and journal have everything, and note the journal's rows."""
    try:
        await_that(plant.outputs_are_empty, "no message waits for an output", DRAIN_TIMEOUT_S)
        plant.server.stop()  # writes what waits
        plant.server.start()
    except NotReadyError as error:
        history.record("end", "end", "finding", text=str(error))
    if not plant.note_journal():
        history.record("end", "end", "finding", text="the journal can't be read")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="time in which faults come")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=3.0, help="frames a second of each client")
    parser.add_argument("--fault", action="append", default=[], metavar="NAME", help="only this")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the account to FILE, too")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep logs and history there")
    parser.add_argument("--list", action="store_true", help="list the faults")
    args = parser.parse_args(arguments)
    known = [fault.name for fault in FAULTS]
    if args.list:
        print("\n".join(known))
        return 0
    if unknown := set(args.fault) - set(known):
        parser.error(f"no fault is called {', '.join(sorted(unknown))}; --list shows them")
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        account = run(folder.resolve(), args.seconds, args.seed, args.rate, args.fault)
    print(as_table(account, args.seconds, args.seed))
    if args.json:
        figures = as_json(account, args.seconds, args.seed)
        args.json.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")
    return 1 if account.findings else 0


if __name__ == "__main__":
    sys.exit(main())
