"""Every contestant in turn, round after round, each alone on the machine while it is measured."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import overload, quick
from bench.clients.forms import build
from bench.clients.load import Figures, wrk
from bench.inputs import Model
from bench.servers import environments
from bench.servers.contestants import PEER_LIST, Peer, start_peer
from bench.servers.environments import InstallError
from bench.servers.lineside import Bare, start_server
from bench.servers.service import Service, ServiceError

CLIENTS = (1, 8, 32)
WARM_UP = 1.0
# Close turns of the bare limit and ours in each round: they take little time, and scatter.
CLOSE_TURNS = 8
Visit = Callable[[], dict[str, Figures]]


@dataclass(frozen=True)
class Bench:
    """The parts that all measurements of a run share. `model` is the bundle as it is, `exact` its
    copy that decodes every pixel; `labels` what bare recognition by either finds, by (exact, size);
    `pythons` the environments by name; `folder` takes temporary files."""

    model: Model
    exact: Model
    frames: dict[str, Path]
    labels: dict[tuple[bool, str], str]
    pythons: dict[str, Path]
    folder: Path
    seconds: float

    @property
    def own(self) -> Path:
        """The Python that serves our side."""
        return self.pythons["lineside"]


def _cells(
    bench: Bench, server: Service, forms: dict[str, tuple[str, str]], *, exact: bool
) -> dict[str, Figures]:
    """Every size and number of clients against one server; `forms` names rows, each with its form
    and field, that take turns within a cell."""
    rows: dict[str, Figures] = {name: {} for name in forms}
    for size, frame in bench.frames.items():
        data, label = frame.read_bytes(), bench.labels[exact, size]
        for clients in CLIENTS:
            for name, (form, field) in forms.items():
                arguments = (server.url, build(form, field, data), label, clients, bench.folder)
                wrk(*arguments, server.cpu_seconds, WARM_UP)
                cell = wrk(*arguments, server.cpu_seconds, bench.seconds)
                rows[name][f"{size}/{clients}"] = cell
    return rows


def _serve(
    bench: Bench, server: Service, forms: dict[str, tuple[str, str]], *, exact: bool
) -> dict[str, Figures]:
    """First answer, cells and memory of a server just started."""
    data = bench.frames["720p"].read_bytes()
    first_form = next(iter(forms.values()))
    with server:
        label = bench.labels[exact, "720p"]
        ready = server.await_answer(build(*first_form, data), label)
        rows = _cells(bench, server, forms, exact=exact)
        memory = server.memory()
    return {name: {"first_answer": ready, "memory": memory, **row} for name, row in rows.items()}


def _bare(bench: Bench) -> dict[str, Figures]:
    rows: dict[str, Figures] = {"bare": {}, "bare-full": {}}
    with Bare(bench.own, bench.model.bundle) as bare:
        for size, frame in bench.frames.items():
            for name, exact in (("bare", False), ("bare-full", True)):
                bare.measure(frame, WARM_UP, exact=exact)
                rows[name][size] = bare.measure(frame, bench.seconds, exact=exact)
    return rows


def _ours(bench: Bench) -> dict[str, Figures]:
    log = bench.folder / "ours.log"
    forms = {"ours-raw": ("raw", "file"), "ours-multipart": ("multipart", "file")}
    return _serve(bench, start_server(bench.own, bench.model, log), forms, exact=False)


def _ours_full(bench: Bench) -> dict[str, Figures]:
    log = bench.folder / "ours-full.log"
    forms = {"ours-full": ("raw", "file")}
    return _serve(bench, start_server(bench.own, bench.exact, log), forms, exact=True)


def _peer(bench: Bench, peer: Peer) -> dict[str, Figures]:
    log = bench.folder / f"{peer.name}.log"
    server = start_peer(peer, bench.pythons[peer.name], bench.model, log)
    return _serve(bench, server, {peer.name: (peer.form, peer.file_field)}, exact=True)


def visits(bench: Bench, only: tuple[str, ...]) -> Iterator[tuple[str, Visit]]:
    """The contestants in `only`, each with what measures it once."""
    if "bare" in only:
        yield "bare", lambda: _bare(bench)
    if "ours" in only:
        yield "ours", lambda: _ours(bench)
        yield "ours-full", lambda: _ours_full(bench)
    for peer in PEER_LIST:
        if peer.name in only and peer.name in bench.pythons:
            yield peer.name, lambda peer=peer: _peer(bench, peer)  # type: ignore[misc]


def install(only: tuple[str, ...]) -> tuple[dict[str, Path], dict[str, str]]:
    """The environments that `only` needs, by name, and why others could not be made."""
    pythons, failures = {"lineside": environments.prepare("lineside")}, {}
    for peer in PEER_LIST:
        if peer.name in only:
            try:
                pythons[peer.name] = environments.prepare(peer.name)
            except InstallError as error:
                failures[peer.name] = str(error)
    return pythons, failures


def label_frames(
    python: Path, model: Model, frames: dict[str, Path]
) -> dict[tuple[bool, str], str]:
    """Return the answer of bare recognition to each frame, by (every pixel decoded, size)."""
    with Bare(python, model.bundle) as bare:
        return {
            (exact, size): bare.measure(frame, 0.5, exact=exact)["label"]
            for size, frame in frames.items()
            for exact in (False, True)
        }


def ours_alone(bench: Bench, rounds: int, pairs: int, frames: int) -> dict[str, Any]:
    """Measure what only our server is asked: close turns with the bare limit, overload, memory up
    to the `frames`th frame."""
    data, label = bench.frames["720p"].read_bytes(), bench.labels[False, "720p"]
    request = build("raw", "file", data)
    say("close turns of bare limit and ours")
    turns = quick.compare(
        bench.own,
        bench.model,
        bench.frames["720p"],
        bench.folder,
        CLOSE_TURNS * rounds,
        bench.seconds,
        pairs,
    )
    log = bench.folder / "alone.log"
    with start_server(bench.own, bench.model, log) as server:
        server.await_answer(request, label)
        say("memory")
        growth = overload.growth(server, data, label, bench.folder, min(1000, frames // 2), frames)
        say("overload")
        over = overload.measure(server, data, label, bench.folder, overload.TURNS * bench.seconds)
    return {"turns": turns, "growth": growth, "overload": over}


def say(text: str) -> None:
    """Progress, for whoever waits."""
    print(text, file=sys.stderr, flush=True)


def run(
    bench: Bench, only: tuple[str, ...], rounds: int, result: dict[str, Any], save: Path
) -> None:
    """Adds `rounds` visits to every contestant to `result["rows"]`, by row a list of visits, and
    failures to `result["failures"]`; `save` holds all that is known after each visit."""
    rows = result.setdefault("rows", {})
    for number in range(rounds):
        turn = list(visits(bench, only))
        # Back and forth, so that what drifts over a round favours nobody.
        for name, visit in reversed(turn) if number % 2 else turn:
            say(f"round {number + 1} of {rounds}: {name}")
            try:
                measured = visit()
            except ServiceError as error:
                result["failures"][name] = str(error)
                say(f"{name}: {error}")
                continue
            for row, figures in measured.items():
                rows.setdefault(row, []).append({"round": number, **figures})
            save.write_text(json.dumps(result, indent=1))
