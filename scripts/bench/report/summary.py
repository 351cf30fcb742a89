"""From a result's rounds to one row a contestant: medians, and ratios taken within each round."""

from dataclasses import dataclass
from statistics import median
from typing import Any

from bench.clients.load import BAD
from bench.servers.contestants import PEER_LIST

Result = dict[str, Any]
OWN_TITLES = {
    "bare": ("bare limit", "no HTTP, a thread a core", "as the bundle says"),
    "bare-full": ("bare limit, full decode", "no HTTP, a thread a core", "full"),
    "ours-raw": ("**Lineside**, raw body", "default settings", "as the bundle says"),
    "ours-multipart": ("**Lineside**, multipart", "default settings", "as the bundle says"),
    "ours-full": ("**Lineside**, full decode, raw body", "recipe `exact`, `area`", "full"),
}
TITLES = OWN_TITLES | {peer.name: (peer.title, peer.note, "full") for peer in PEER_LIST}
BASE = {"as the bundle says": "bare", "full": "bare-full"}


@dataclass(frozen=True)
class Cell:
    """One contestant under one load. Medians over the rounds: good answers a second, latencies and
    CPU time a good answer in ms; medians of each round's ratio to the same round's bare limit of
    the same decode (`of_bare`) and to our multipart row (`ours_over`), None where one is missing.
    """

    fps: float
    p50: float
    p99: float
    cpu_ms: float | None
    of_bare: float | None
    ours_over: float | None


def _ratio(over: dict[int, float], under: dict[int, float]) -> float | None:
    values = [over[n] / under[n] for n in over if under.get(n)]
    return median(values) if values else None


def _by_round(result: Result, row: str, key: str) -> dict[int, float]:
    """`fps` of a row's cell by round; the bare limit has one cell a size, whatever the clients."""
    if row.startswith("bare"):
        key = key.partition("/")[0]
    visits = result["rows"].get(row, [])
    return {visit["round"]: visit[key]["fps"] for visit in visits if key in visit}


def cell(result: Result, row: str, size: str, clients: int) -> Cell | None:
    """One contestant's figures at a size and number of clients; None where it was not measured."""
    own_key = size if row.startswith("bare") else f"{size}/{clients}"
    runs = [visit[own_key] for visit in result["rows"].get(row, []) if own_key in visit]
    if not runs:
        return None
    key = f"{size}/{clients}"
    fps = _by_round(result, row, key)
    costs = [run["cpu_ms"] for run in runs if run["cpu_ms"] is not None]
    return Cell(
        median(fps.values()),
        median(run["p50"] for run in runs),
        median(run["p99"] for run in runs),
        median(costs) if costs else None,
        _ratio(fps, _by_round(result, BASE[TITLES[row][2]], key)),
        _ratio(_by_round(result, "ours-multipart", key), fps),
    )


def bad_answers(result: Result, row: str) -> tuple[int, dict[str, int]]:
    """Good answers, and those that were not by kind, over all rounds and loads of a row."""
    good, bad = 0, dict.fromkeys(BAD, 0)
    for visit in result["rows"][row]:
        for key, run in visit.items():
            if "/" in key:
                good += run["good"]
                for kind in BAD:
                    bad[kind] += run[kind]
    return good, bad


def best_peer(result: Result, size: str, clients: int) -> tuple[str, Cell] | None:
    """The peer with the most good answers a second, the tutorial-style program left out."""
    found = [
        (peer.title, figures)
        for peer in PEER_LIST
        if peer.name != "tutorial" and (figures := cell(result, peer.name, size, clients))
    ]
    return max(found, key=lambda pair: pair[1].fps, default=None)
