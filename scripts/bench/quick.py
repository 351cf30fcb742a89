"""The bare limit and our server in close turns against one running server: the ratios that a
noisy machine disturbs least, in a minute."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from bench.clients.forms import build
from bench.clients.load import BAD, Figures, wrk
from bench.inputs import Model
from bench.servers.lineside import Bare, added_latency, start_server

CLIENTS, FORMS = 8, ("raw", "multipart")
# Seconds of load before the first round, and those that tell a frame's label without a warm-up.
WARM_UP, LABEL_S = 1.0, 0.1
Result = dict[str, Any]


def compare(
    python: Path,
    model: Model,
    frame: Path,
    folder: Path,
    rounds: int,
    seconds: float,
    pairs: int,
    warm_up: float = WARM_UP,
) -> Result:
    """`rounds` of bare limit, raw and multipart load, each `seconds` long, then `pairs` single
    frames each way for the latency. `folder` takes temporary files. warm_up: seconds of each load
    before the first round; 0 for none.

    Returns `rounds` (by way, a list of figures), `latency`, `first_answer` (s) and `memory` (MB).
    """
    data = frame.read_bytes()
    requests = {form: build(form, "file", data) for form in FORMS}
    with Bare(python, model.bundle) as bare:
        label = bare.measure(frame, warm_up or LABEL_S)["label"]
        with start_server(python, model, folder / "server.log") as server:
            ready = server.await_answer(requests["raw"], label)
            ways: dict[str, Callable[[float], Figures]] = {"bare": partial(bare.measure, frame)}
            for form in FORMS:
                ways[form] = partial(
                    wrk, server.url, requests[form], label, CLIENTS, folder, server.cpu_seconds
                )
            taken: dict[str, list[Figures]] = {way: [] for way in ways}
            for measure in ways.values() if warm_up else ():
                measure(warm_up)
            for _ in range(rounds):
                for way, measure in ways.items():
                    taken[way].append(measure(seconds))
            latency = added_latency(python, model, server.url, frame, pairs) if pairs else {}
            memory = server.memory()
    return {
        "label": label,
        "rounds": taken,
        "latency": latency,
        "first_answer": ready,
        "memory": memory,
    }


def summarize(taken: dict[str, list[Figures]]) -> dict[str, Figures]:
    """Medians by way, the medians of each round's ratio to the same round's bare limit
    (`of_bare` for throughput, `cpu_of_bare`), and the sum of answers that were not good."""
    rows = {}
    for way, runs in taken.items():
        row: Figures = {
            key: median(run[key] for run in runs)
            for key in ("fps", "cpu_ms", "cpu_user_ms", "cpu_system_ms", "p50", "p99")
        }
        for name, key in (("of_bare", "fps"), ("cpu_of_bare", "cpu_ms")):
            turns = zip(runs, taken["bare"], strict=True)
            row[name] = median(run[key] / bare[key] for run, bare in turns)
        row["bad"] = sum(run.get(key, 0) for run in runs for key in BAD)
        row["load_cpu_ms"] = median(run.get("load_cpu_ms", 0.0) for run in runs)
        rows[way] = row
    return rows


def table(result: Result) -> str:
    """The result of `compare` as text for a terminal."""
    lines = [
        f"{CLIENTS} clients      fps  of bare  CPU ms (user + system)  of bare"
        "   p50 ms   p99 ms  not good  wrk CPU ms"
    ]
    for way, row in summarize(result["rounds"]).items():
        parts = f"({row['cpu_user_ms']:.2f} + {row['cpu_system_ms']:.2f})"
        lines.append(
            f"{way:10}{row['fps']:9.1f}{row['of_bare']:9.3f}{row['cpu_ms']:8.2f} {parts:>15}"
            f"{row['cpu_of_bare']:9.3f}{row['p50']:9.1f}{row['p99']:9.1f}{row['bad']:10}"
            f"{row['load_cpu_ms']:12.3f}"
        )
    latency = result["latency"]
    if latency:
        lines += ["", "1 client      p50 ms  p99 ms  added over recognize  over the bare steps"]
        for way in ("one_thread", "steps", "recognize", *FORMS):
            added = [latency.get(f"added_{way}_over_{base}") for base in ("recognize", "steps")]
            cells = "".join("" if value is None else f"{value:21.3f}" for value in added)
            lines.append(f"{way:12}{latency[way]['p50']:8.2f}{latency[way]['p99']:8.2f}{cells}")
    memory = f"{result['memory']['rss']:.0f} MB resident"
    return "\n".join([*lines, "", f"first answer {result['first_answer']:.2f} s, {memory}"])
