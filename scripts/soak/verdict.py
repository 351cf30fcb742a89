"""Judges whether a run was well: bounds, one table, and the reasons if it was not."""

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

from soak.readings import Reading
from soak.score import TENTHS, Score
from soak.site import JOURNAL_MB, SAMPLES_MB

MB = 1_000_000
# Of the last tenth over the second, by medians. The first tenth still fills caches and pools.
MEMORY_SHARE, MEMORY_MB = 0.10, 20.0
# The HTTP server starts and ends threads on demand. A camera that is away has no reader, which is a
# process with a few descriptors.
THREADS_SLACK, DESCRIPTORS_SLACK, PROCESSES_SLACK = 8, 8, 1
# What waits for a moment, and what is written ahead: SQLite keeps up to 16 MiB of it for each
# file. If nothing were removed, an hour at 50 frames a second would make over 70 MB of either.
JOBS_MB, OUTBOX_MB = 20.0, 32.0
P99_SHARE = 1.2
# Good frames that may be refused by a sentence, of all.
REFUSED_SHARE = 0.001
# Of everything else: less than the jobs, the swaps or the loads of another model alone.
REFUSED_ACTS_SHARE = 0.01
# The samples' folder holds a small file of its own beside what the setting limits.
SAMPLES_SLACK_MB = 0.1
# In a shorter run the journal and the samples need not reach their limits.
ROTATION_MINUTES = 10.0


class Check(NamedTuple):
    """One bound: what it is of, the figure, the bound in words, and whether it holds."""

    name: str
    figure: str
    bound: str
    holds: bool


class Ending(NamedTuple):
    """The state after the run. waiting: messages that the outputs still hold. worker_lives:
    the process that answers is the one of the beginning."""

    stop_code: int
    waiting: int
    worker_lives: bool


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of `values` do not exceed (nearest rank); NaN without any."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")


def by_tenth(readings: Sequence[Reading], seconds: float) -> list[list[Reading]]:
    """The readings of each tenth of a run of `seconds`; of one in which the machine stalled, the
    last before it or else the first after it. At least one is needed."""
    tenths: list[list[Reading]] = [[] for _ in range(TENTHS)]
    for reading in readings:
        tenths[min(TENTHS - 1, int(reading.at / seconds * TENTHS))].append(reading)
    last = readings[0]
    for tenth in tenths:
        if not tenth:
            tenth.append(last)
        last = tenth[-1]
    return tenths


def rows(score: Score, readings: Sequence[Reading], seconds: float) -> list[dict[str, Any]]:
    """A row for each tenth: right frames, latency in ms, and the medians of the readings (bytes as
    MB; of the files, the largest)."""
    made = []
    for number, found in enumerate(by_tenth(readings, seconds)):
        latencies = score.latencies[number]
        row: dict[str, Any] = {
            "tenth": number + 1,
            "frames": len(latencies),
            "p50_ms": round(percentile(latencies, 0.5), 1),
            "p99_ms": round(percentile(latencies, 0.99), 1),
        }
        row["memory_mb"] = round(median(reading.memory for reading in found) / MB, 1)
        for name in ("threads", "descriptors", "processes"):
            row[name] = int(median(getattr(reading, name) for reading in found))
        for name in ("journal", "samples", "jobs", "outbox"):
            largest = max(getattr(reading, name) for reading in found)
            row[f"{name}_mb"] = round(largest / MB, 2)
        made.append(row)
    return made


def judge(
    table: Sequence[dict[str, Any]], score: Score, ending: Ending, minutes: float
) -> list[Check]:
    """Holds the run against the bounds. table: of `rows`."""
    first, second, last = table[0], table[1], table[-1]
    checks: list[Check] = []

    def add(name: str, figure: object, bound: str, holds: bool) -> None:
        checks.append(Check(name, str(figure), bound, holds))

    def compare(name: str, unit: str, most: float, tell: str) -> None:
        add(name, f"{second[name]} to {last[name]}{unit}", tell, last[name] <= most)

    right = sum(row["frames"] for row in table)
    refused = score.sent - score.wrong - right
    add("good frames answered", right, f"all {score.sent}, or refused with a code", right > 0)
    add("answered wrong", score.wrong, "0", score.wrong == 0)
    most = REFUSED_SHARE * score.sent
    add("not answered", refused, f"at most {REFUSED_SHARE:.1%}, with a code", refused <= most)
    done = sum(score.acts.values())
    add(
        "other requests refused",
        score.refused_acts,
        f"at most {REFUSED_ACTS_SHARE:.0%} of {done}, with a code",
        score.refused_acts <= REFUSED_ACTS_SHARE * done,
    )
    add("faults", score.fault_count, "0", score.fault_count == 0)
    ratio = last["p99_ms"] / first["p99_ms"]
    add(
        "P99, last tenth over first",
        f"{ratio:.2f} ({first['p99_ms']} to {last['p99_ms']} ms)",
        f"at most {P99_SHARE}",
        ratio <= P99_SHARE,
    )
    grown = min(second["memory_mb"] * MEMORY_SHARE, MEMORY_MB)
    tell = f"+{MEMORY_SHARE:.0%} and +{MEMORY_MB:g} MB at most"
    compare("memory_mb", " MB", second["memory_mb"] + grown, tell)
    for name, slack in (
        ("threads", THREADS_SLACK),
        ("descriptors", DESCRIPTORS_SLACK),
        ("processes", PROCESSES_SLACK),
    ):
        compare(name, "", second[name] + slack, f"+{slack} at most")
    for name, most_mb in (("jobs_mb", JOBS_MB), ("outbox_mb", OUTBOX_MB)):
        largest = max(row[name] for row in table)
        add(name, f"{largest} MB", f"at most {most_mb:g} MB", largest <= most_mb)
    for name, limit, slack_mb in (
        ("journal_mb", float(JOURNAL_MB), 0.0),
        ("samples_mb", float(SAMPLES_MB), SAMPLES_SLACK_MB),
    ):
        largest = max(row[name] for row in table)
        reached = largest > 0.7 * limit
        bound = f"at most {limit + slack_mb:g} MB"
        if minutes >= ROTATION_MINUTES:
            bound += f", and over {0.7 * limit:g} MB, so that the oldest went"
        holds = largest <= limit + slack_mb and (reached or minutes < ROTATION_MINUTES)
        add(name, f"{largest} MB", bound, holds)
    add("messages that outputs hold", ending.waiting, "0", ending.waiting == 0)
    add("worker", "the same" if ending.worker_lives else "another", "the same", ending.worker_lives)
    add("exit code of the server", ending.stop_code, "0", ending.stop_code == 0)
    return checks


def text(table: Sequence[dict[str, Any]], checks: Sequence[Check], score: Score) -> str:
    """Both as Markdown tables, with what else was done."""
    names = list(table[-1])
    lines = [*_markdown(names, [[str(row[name]) for name in names] for row in table]), ""]
    made = [
        [check.name, check.figure, check.bound, "yes" if check.holds else "**no**"]
        for check in checks
    ]
    lines += [*_markdown(["what", "found", "bound", "holds"], made), ""]
    lines.append("Also: " + ", ".join(f"{name} {n}" for name, n in sorted(score.acts.items())))
    if score.refusals:
        told = ", ".join(f"{code} {count}" for code, count in score.refusals.items())
        lines.append(f"Refused with a code: {told}")
    lines += [f"Fault: {sentence}" for sentence in score.faults]
    return "\n".join(lines)


def _markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]

    def line(cells: Sequence[str], fill: Callable[[str, int], str]) -> str:
        return "| " + " | ".join(map(fill, cells, widths)) + " |"

    rule = line([""] * len(head), lambda _, width: "-" * width)
    return [line(head, str.ljust), rule, *(line(cells, str.ljust) for cells in body)]
