"""Puts what Lineside aims at beside what a result shows."""

from collections.abc import Iterator
from statistics import median

from bench import quick
from bench.report import summary
from bench.report.summary import Result

Line = tuple[str, str, str]


def _turns(result: Result) -> Iterator[Line]:
    alone = result["alone"]["turns"]
    rows = quick.summarize(alone["rounds"])
    for way in quick.FORMS:
        share, cost = rows[way]["of_bare"], rows[way]["cpu_of_bare"]
        yield (f"throughput of the bare limit, {way}", "at least 0.95", f"{share:.3f}")
        yield (f"CPU time a frame over the bare limit's, {way}", "at most 1.10", f"{cost:.3f}")
    latency = alone["latency"]
    for way, most in (("raw", "0.5"), ("multipart", "1")):
        added = latency[f"added_{way}_over_steps"]
        yield (f"added latency at 1 client, {way}", f"at most {most} ms", f"{added:.2f} ms")
    single, one = latency["raw"]["p50"], latency["one_thread"]["p50"]
    yield ("one frame over HTTP, raw", f"under one thread's {one:.2f} ms", f"{single:.2f} ms")


def _peers(result: Result) -> Iterator[Line]:
    best = summary.best_peer(result, "720p", 8)
    if best and best[1].ours_over:
        yield (f"over the best peer, {best[0]}", "at least 1.5", f"{best[1].ours_over:.2f}")
    tutorial = summary.cell(result, "tutorial", "720p", 8)
    if tutorial and tutorial.ours_over:
        times = f"{tutorial.ours_over:.1f}"
        yield ("good answers over the tutorial-style program's", "at least 5", times)


def _process(result: Result) -> Iterator[Line]:
    visits = result["rows"]["ours-raw"]
    first = median(visit["first_answer"] for visit in visits)
    memory = median(visit["memory"]["rss"] for visit in visits)
    yield ("first answer after the start", "at most 0.8 s", f"{first:.2f} s")
    yield ("resident memory after all loads", "at most 150 MB", f"{memory:.0f} MB")


def _alone(result: Result) -> Iterator[Line]:
    grown, found = result["alone"]["growth"], result["alone"]["overload"]
    (first, _), (last, _) = grown["marks"][0], grown["marks"][-1]
    megabytes = f"{grown['growth_mb']:.1f} MB"
    yield (f"memory growth, frame {first} to {last}", "at most 5 MB", megabytes)
    kept = grown["last"]
    figure = f"{kept['pss']:.0f} MB ({kept['rss']:.0f} MB resident)"
    yield (f"memory of both processes after frame {last}", "at most 150 MB", figure)
    line, calm = found["overload"]["line"], found["cameras"]["calm"]
    share = f"{line['share_of_capacity']:.3f}"
    yield ("in time at 4 times capacity, of capacity", "at least 0.95", share)
    late, service = line["late_ms"]["max"], found["service_ms"]
    if late is not None:
        most = f"at most {service:.0f} ms (one service time)"
        yield ("latest accepted answer past its deadline", most, f"{late:.0f} ms")
    refused = line["refusal_ms"]["p99"]
    if refused is not None:
        yield ("refusals, 99th percentile", "within 50 ms", f"{refused:.0f} ms")
    yield ("calm camera's frames in time", "at least 0.95", f"{calm['share_in_time']:.3f}")


def section(result: Result) -> list[str]:
    """A table of aims and figures, 720p and 8 clients where nothing else is said; empty where our
    server was not measured."""
    lines: list[Line] = []
    if result.get("rows", {}).get("ours-raw"):
        lines += [*_peers(result), *_process(result)]
    if result.get("alone"):
        lines = [*_turns(result), *lines, *_alone(result)]
    if not lines:
        return []
    rows = [f"| {what} | {aim} | {figure} |" for what, aim, figure in lines]
    return ["| Lineside, 720p, 8 clients | aim | measured |", "|---|---|---:|", *rows, ""]
