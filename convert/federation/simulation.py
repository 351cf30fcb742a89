"""A federation on one machine: a folder divided into sites, each with Flower's own programs, and
the bytes between them counted."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convert.data.dataset import Dataset, read_dataset
from convert.errors import ConvertError
from convert.federation import flower, plans, wire
from convert.federation.flower import ROOT, Security
from convert.federation.server.serve import serve
from convert.terminal import Terminal, columns
from server.system.resources import available_cores

# A site needs frames to train on and one to hold back.
MIN_FRAMES = 5
_TRIES = 1000
_STOP_SECONDS = 60


def divide(dataset: Dataset, sites: int, concentration: float, seed: int) -> tuple[Dataset, ...]:
    """Return the data sets of the sites, each with all class names: the shares of each class are
    drawn from a Dirichlet distribution, anew until every site has MIN_FRAMES frames.

    Raises ConvertError if they hardly ever have.
    """
    rng = np.random.default_rng(seed)
    labels = np.array([item.label for item in dataset.frames], np.intp)
    for _ in range(_TRIES):
        site = np.zeros(len(labels), np.intp)
        for label in range(len(dataset.classes)):
            rows = rng.permutation(np.flatnonzero(labels == label))
            ends = np.cumsum(rng.dirichlet(np.full(sites, concentration))) * len(rows)
            site[rows] = np.searchsorted(ends[:-1], np.arange(len(rows)), side="right")
        if np.bincount(site, minlength=sites).min() >= MIN_FRAMES:
            return tuple(
                Dataset(
                    dataset.classes,
                    tuple(dataset.frames[i] for i in np.flatnonzero(site == number)),
                )
                for number in range(sites)
            )
    raise ConvertError(
        f"{len(labels)} frames can hardly be divided into {sites} sites of at least {MIN_FRAMES}"
        f" each at a concentration of {concentration:g}: take fewer sites or a larger number"
    )


def write_folder(dataset: Dataset, folder: Path) -> None:
    """Write links to the frames of a data set, in a folder a class."""
    for number, item in enumerate(dataset.frames):
        place = folder / dataset.classes[item.label]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:06}{item.path.suffix}").symlink_to(item.path.absolute())


@dataclass(slots=True)
class Site:
    """A site of the simulation: its name, its folder of frames, and the relay to the server."""

    name: str
    folder: Path
    relay: wire.Relay


def simulate(
    folder: Path,
    plan: plans.ServerPlan,
    concentration: float,
    work: Path,
    terminal: Terminal,
    watchers: Mapping[str, wire.Watcher] | None = None,
) -> int:
    """Divide `folder`, run a server and its sites on this machine, and return the exit code.

    work: for the sites' folders; emptied first. watchers: see every piece of what goes over a
    site's wire, by the site's name. Raises ConvertError and GateError.
    """
    parts = divide(read_dataset(folder), plan.sites, concentration, plan.course.seed)
    # What is wrong with the folder is said even where the packages are not there.
    flower.require()
    shutil.rmtree(work, ignore_errors=True)
    port = flower.free_port()
    with ExitStack() as stack:
        sites = []
        for number, part in enumerate(parts, 1):
            name = f"site-{number}"
            write_folder(part, work / "frames" / name)
            relay = wire.Relay("127.0.0.1", port, (watchers or {}).get(name))
            stack.callback(relay.close)
            sites.append(Site(name, work / "frames" / name, relay))
        with _at_work(sites, work) as check:
            code = serve(plan, "127.0.0.1", port, Security(), terminal, check)
        for row in columns(_traffic(sites, work)):
            terminal.say(row)
    return code


def _traffic(sites: Sequence[Site], work: Path) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("site", "sent", "in messages", "received", "in messages")]
    for site in sites:
        account = wire.read_account(work / "sites" / site.name)
        sides = ((site.relay.sent, "sent"), (site.relay.received, "received"))
        cells = [f"{n:,}" for count, way in sides for n in (count, wire.total(account, way))]
        rows.append((site.name, *cells))
    return rows


@contextmanager
def _at_work(sites: Sequence[Site], work: Path) -> Iterator[Callable[[], None]]:
    """Run `convert federate site` for each, and end those that have not ended by themselves.

    The result raises ConvertError if one of them has failed.
    """
    # TensorFlow takes every core otherwise, in each of the sites.
    threads = str(max(1, available_cores() // len(sites)))
    env = {**os.environ, "TF_NUM_INTRAOP_THREADS": threads, "OMP_NUM_THREADS": threads}
    running: dict[str, subprocess.Popen[bytes]] = {}
    for site in sites:
        command = [sys.executable, "-m", "convert", "federate", "site", str(site.folder)]
        command += ["--server", f"127.0.0.1:{site.relay.port}", "--insecure"]
        command += ["--work", str(work / "sites")]
        with (work / f"{site.name}.log").open("wb") as output:
            running[site.name] = subprocess.Popen(
                command, cwd=ROOT, env=env, stdout=output, stderr=output
            )

    def check() -> None:
        for name, process in running.items():
            # One that the server has told how it ended is as it should be.
            if process.poll() and not (work / "sites" / name / plans.OUTCOME).exists():
                said = (work / f"{name}.log").read_text("utf-8", "replace").strip()
                raise ConvertError(f"{name} has ended:\n{said}")

    try:
        yield check
        for process in running.values():
            process.wait(_STOP_SECONDS)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
