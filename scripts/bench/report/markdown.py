"""A result as Markdown."""

from pathlib import Path
from statistics import median
from typing import Any

from bench import quick
from bench.inputs import SIZES
from bench.overload import CALM, FLOOD, OVER
from bench.report import headline, summary
from bench.report.summary import TITLES, Cell, Result
from bench.rounds import CLIENTS

METHOD = """\
Every contestant serves the same `.tflite` and is posted the same JPEG by Debian's `wrk` (one
thread, on the same cores) after a second of warming up. The contestants take turns, round after
round, each started anew and alone on the machine; a figure is the median over the rounds, and a
ratio is the median of each round's ratio. Only good answers count: status 200 with the label first
that bare recognition finds by the same decode. The bare limit is decode, preprocessing and invoke
by the server's own functions, in one process with its buffers kept, as many threads as cores and
no HTTP. Lineside runs with its default settings; the peers run in their documented idiom with a
worker or a thread a core, decode every pixel with OpenCV and resize by area («full»), so the bare
limit and Lineside are shown with that decode too. CPU time is user and system of the server's
processes from `/proc/PID/stat`, `wrk` left out, between 10% and 95% of each measurement. Memory is
resident (RSS) and proportional (PSS) of all its processes after the load. Latencies are of all
answers, refusals included. First answer: from the process's start to the first good answer.
Installed: the files in site-packages of an environment that holds nothing else."""


# What was decided by measurements of their own, which no run makes again.
DECISIONS = Path(__file__).with_name("decisions.md")


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    line = "|---|" + "---:|" * (len(head) - 1)
    body = ["| " + " | ".join(row) + " |" for row in rows]
    return ["| " + " | ".join(head) + " |", line, *body, ""]


def _measured(result: Result) -> list[str]:
    return [row for row in TITLES if row in result["rows"]]


def _main_cells(found: Cell | None) -> list[str]:
    if found is None:
        return ["-"] * 6
    return [
        _number(found.fps),
        _number(found.of_bare, 3),
        _number(found.ours_over, 2),
        _number(found.p50),
        _number(found.p99),
        _number(found.cpu_ms, 2),
    ]


def _failed(result: Result) -> dict[str, str]:
    """Rows that have no figures, and why."""
    why = {("ours-multipart" if n == "ours" else n): w for n, w in result["failures"].items()}
    return {row: why[row] for row in TITLES if row in why and row not in result["rows"]}


def throughput(result: Result, size: str) -> list[str]:
    """8 clients at one size, everything that is known of it."""
    head = ["8 clients", "decode", "good/s", "of the bare limit of that decode"]
    head += ["Lineside, multipart ÷ it", "p50 ms", "p99 ms", "CPU ms a frame"]
    rows = []
    for row in _measured(result):
        title, _, decode = TITLES[row]
        rows.append([title, decode, *_main_cells(summary.cell(result, row, size, 8))])
    rows += [[TITLES[row][0], "not measured, see below", *["-"] * 6] for row in _failed(result)]
    width, height = SIZES[size]
    return [f"## Throughput, {width}x{height} JPEG", "", *_table(head, rows)]


def clients(result: Result) -> list[str]:
    """Good answers and latencies by number of clients."""
    pairs = [(size, n) for size in SIZES for n in CLIENTS]
    head = ["good/s (p50, p99 ms)", *(f"{size}, {n} client{'s' * (n > 1)}" for size, n in pairs)]
    rows = []
    for row in _measured(result):
        if row.startswith("bare"):
            continue
        found = [summary.cell(result, row, size, n) for size, n in pairs]
        cells = ["-" if c is None else f"{c.fps:.1f} ({c.p50:.0f}, {c.p99:.0f})" for c in found]
        rows.append([TITLES[row][0], *cells])
    return ["## By clients", "", *_table(head, rows)]


def costs(result: Result) -> list[str]:
    """Return what a server takes beside time, and what went wrong under load."""
    head = ["server", "first answer s", "RSS MB", "PSS MB", "processes", "installed MB"]
    head += ["good", "wrong label", "429, 503", "other status", "socket errors", "timeouts"]
    rows = []
    for row in _measured(result):
        if row.startswith("bare"):
            continue
        visits = result["rows"][row]
        memory = [median(v["memory"][k] for v in visits) for k in ("rss", "pss", "processes")]
        environment = "lineside" if row.startswith("ours") else row
        good, bad = summary.bad_answers(result, row)
        rows.append(
            [
                f"{TITLES[row][0]} ({TITLES[row][1]})",
                _number(median(v["first_answer"] for v in visits), 2),
                *(_number(value, 0) for value in memory),
                _number(result["installed_mb"].get(environment), 0),
                *map(str, (good, *bad.values())),
            ]
        )
    lines = ["## Start, memory, size, errors", "", *_table(head, rows)]
    for row, why in _failed(result).items():
        lines.append(f"- {TITLES[row][0]} could not be measured: {' '.join(why.split())[:400]}")
    return [*lines, ""]


def turns(result: Result) -> list[str]:
    """Bare limit and ours in close turns, and the latency that HTTP adds."""
    alone = result["alone"]["turns"]
    head = ["8 clients, 720p", "good/s", "of bare", "CPU ms a frame", "of bare", "p50 ms", "p99 ms"]
    rows = []
    for way, row in quick.summarize(alone["rounds"]).items():
        title = "bare limit" if way == "bare" else f"Lineside, {way}"
        figures = [_number(row[k], d) for k, d in (("fps", 1), ("of_bare", 3), ("cpu_ms", 2))]
        figures += [_number(row[k], d) for k, d in (("cpu_of_bare", 3), ("p50", 1), ("p99", 1))]
        rows.append([title, *figures])
    many = f"Medians of {len(alone['rounds']['bare'])} turns of {result['seconds']:g} s."
    lines = ["## Bare limit and Lineside in close turns", "", many, "", *_table(head, rows)]
    latency = alone["latency"]
    if not latency:
        return lines
    head = [
        "1 client, 720p",
        "p50 ms",
        "p99 ms",
        "added over the bare steps",
        "added over `recognize`",
    ]
    names = {
        "one_thread": "in process, bare steps, one thread alone",
        "steps": "in process, bare steps, threads as served",
        "recognize": "in process, `Recognizer.recognize`",
        "raw": "HTTP, raw body",
        "multipart": "HTTP, multipart",
    }
    rows = []
    for way, title in names.items():
        added = [latency.get(f"added_{way}_over_{base}") for base in ("steps", "recognize")]
        percentiles = [_number(latency[way][k], 2) for k in ("p50", "p99")]
        rows.append([title, *percentiles, *(_number(value, 3) for value in added)])
    note = (
        "Added: median of the differences between neighbours, all ways taking turns on one frame."
    )
    return [*lines, *_table(head, rows), note, ""]


def _overload_row(name: str, figures: dict[str, Any], share: float | None) -> list[str]:
    late, refusal, sent = (figures[k] for k in ("late_ms", "refusal_ms", "sent_late_ms"))
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(figures["kinds"].items()))
    return [
        name,
        str(figures["offered"]),
        f"{figures['in_time_fps']:.1f}",
        "-" if share is None else f"{share:.3f}",
        f"{figures['share_in_time']:.3f}",
        f"{_number(late['p99'])}, {_number(late['max'])}",
        f"{_number(refusal['p50'])}, {_number(refusal['p99'])}",
        _number(sent["p99"]),
        kinds,
    ]


def overload(result: Result) -> list[str]:
    """More than capacity, and two cameras."""
    found = result["alone"]["overload"]
    line, cameras = found["overload"]["line"], found["cameras"]
    capacity = ", ".join(f"{fps:.1f}" for fps in found["capacity_fps"])
    shares = ", ".join(f"{share:.3f}" for share in line["shares"])
    head = [
        "load",
        "offered",
        "in time/s",
        "of capacity",
        "of offered",
        "accepted: late ms p99, max",
    ]
    head += ["refused: ms p50, p99", "sent late ms p99", "answers"]
    rows = [
        _overload_row(f"{OVER:g} times capacity", line, line["share_of_capacity"]),
        _overload_row(f"calm camera, {CALM:g} of capacity", cameras["calm"], None),
        _overload_row(f"flooding camera, {FLOOD:g} of capacity", cameras["flooding"], None),
    ]
    text = (
        f"Open loop, every frame with a deadline of {found['deadline_ms']} ms, counted from the"
        " first byte sent; late is negative where an answer came before it. Four times capacity"
        f" is offered in {len(line['shares'])} turns, with capacity measured around each:"
        f" {capacity} frames/s; shares of it: {shares}; the table has their median. One service"
        f" time is {found['service_ms']:.1f} ms."
        f" The generator itself took {found['overload']['generator']['cores_used']:.2f} and"
        f" {cameras['generator']['cores_used']:.2f} of a core."
    )
    return ["## Overload", "", text, "", *_table(head, rows)]


def growth(result: Result) -> list[str]:
    """Memory over frames."""
    found = result["alone"]["growth"]
    (first, before), (last, after) = found["marks"][0], found["marks"][-1]
    text = (
        f"Resident memory after {first} frames: {before:.1f} MB; after {last}: {after:.1f} MB;"
        f" growth {found['growth_mb']:.1f} MB."
    )
    return ["## Memory over time", "", text, ""]


def _heading(result: Result, chart: str) -> list[str]:
    machine = result["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    return [
        "# Benchmark",
        "",
        f"![Good answers a second by server]({chart})",
        "",
        f"Remade by `{result['command']}` (after `apt install wrk`,"
        " `python -m convert imagenet --out /tmp/m` and"
        " `pip install -r scripts/bench/requirements.txt`); rendered again from the figures by"
        " `python scripts/bench/run.py --render docs/benchmark.json`.",
        "",
        f"Machine: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB,"
        f" {machine['system']}, Python {machine['python']}; {packages}. {machine['date']}, commit"
        f" {machine['commit']}, load average {machine['load_average']:.2f} before the run,"
        f" {result['rounds']} rounds of {result['seconds']:g} s. Model: {result['model']}; frames:"
        f" {result['frames']}.",
        "",
    ]


def write(result: Result, path: Path, chart: Path) -> None:
    """Writes the Markdown page for `result` to `path`; `chart` is the picture it shows."""
    lines = [*_heading(result, chart.name), *headline.section(result), METHOD, ""]
    if result.get("rows"):
        for size in SIZES:
            lines += throughput(result, size)
        lines += [*clients(result), *costs(result)]
    if result.get("alone"):
        lines += [*turns(result), *overload(result), *growth(result)]
    lines.append(DECISIONS.read_text(encoding="utf-8"))
    path.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
