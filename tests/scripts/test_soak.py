"""The long run: its judgement over made figures, and a run of a few seconds."""

import json
from copy import deepcopy
from functools import cache
from typing import Any

import pytest
from server_process import run_script
from soak.readings import Reading
from soak.score import Score
from soak.verdict import Ending, judge, percentile, rows, text
from soak.wire import Reply

SECONDS, MB = 3600.0, 1_000_000
WELL = Ending(stop_code=0, waiting=0, worker_lives=True)


def answer(label: str) -> Reply:
    return Reply(200, json.dumps({"predictions": [{"label": label}]}).encode())


def refusal(code: str, status: int = 503) -> Reply:
    return Reply(status, json.dumps({"error": {"code": code}}).encode())


@cache
def counted() -> Score:
    """What `good_score` returns, for all its callers: it takes a tenth of a second."""
    score = Score()
    for number in range(10_000):
        score.frame(number // 1000, 1 + number % 100, answer("good"), "good")
    return score


def good_score() -> Score:
    """1,000 right frames in each tenth, of 1 to 100 ms."""
    score = Score()
    score.sent, score.latencies = counted().sent, deepcopy(counted().latencies)
    return score


def table(score: Score) -> list[dict[str, Any]]:
    """The rows of an hour in which nothing grew."""
    readings = [
        Reading(at, 250 * MB, 40, 90, 5, 3_500_000, 7_900_000, 5 * MB, 6 * MB)
        for at in range(5, 3600, 10)
    ]
    return rows(score, readings, SECONDS)


def failed(made: list[dict[str, Any]], score: Score, ending: Ending = WELL) -> set[str]:
    """The bounds that do not hold."""
    return {check.name for check in judge(made, score, ending, SECONDS / 60) if not check.holds}


def test_good_hour_holds_all_bounds() -> None:
    score = good_score()
    made = table(score)
    assert failed(made, score) == set()
    assert [row["frames"] for row in made] == [1000] * 10
    assert (made[3]["p50_ms"], made[3]["p99_ms"], made[3]["memory_mb"]) == (51, 100, 250)


def test_tenth_without_a_reading_has_the_last_before_it() -> None:
    first = Reading(400.0, 100 * MB, 40, 90, 5, 0, 0, 0, 0)
    made = rows(good_score(), [first, first._replace(at=3000.0, memory=200 * MB)], SECONDS)
    assert [row["memory_mb"] for row in made] == [100.0] * 8 + [200.0] * 2


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("memory_mb", 270.0, 270.1),
        ("threads", 48, 49),
        ("descriptors", 98, 99),
        ("processes", 6, 7),
        ("jobs_mb", 20.0, 20.01),
        ("outbox_mb", 32.0, 32.01),
        ("journal_mb", 4.0, 4.01),
        ("samples_mb", 8.1, 8.11),
    ],
)
def test_growth_beyond_a_bound_fails(name: str, inside: float, outside: float) -> None:
    score = good_score()
    made = table(score)
    made[-1][name] = inside
    assert failed(made, score) == set()
    made[-1][name] = outside
    assert failed(made, score) == {name}


def test_memory_of_a_small_server_may_grow_by_a_tenth() -> None:
    score = good_score()
    made = table(score)
    made[1]["memory_mb"] = 100.0
    made[-1]["memory_mb"] = 111.0
    assert failed(made, score) == {"memory_mb"}


def test_slower_last_tenth_fails() -> None:
    score = good_score()
    made = table(score)
    made[-1]["p99_ms"] = 120.0
    assert failed(made, score) == set()
    made[-1]["p99_ms"] = 121.0
    assert failed(made, score) == {"P99, last tenth over first"}


def test_last_tenth_without_an_answer_fails() -> None:
    score = good_score()
    score.latencies[-1].clear()
    assert "P99, last tenth over first" in failed(table(score), score)


@pytest.mark.parametrize("name", ["journal_mb", "samples_mb"])
def test_hour_that_reached_no_limit_shows_nothing(name: str) -> None:
    score = good_score()
    made = table(score)
    for row in made:
        row[name] = 0.5
    assert failed(made, score) == {name}
    assert name not in {c.name for c in judge(made, score, WELL, minutes=1) if not c.holds}


def test_refusals_of_everything_else_are_few() -> None:
    score = good_score()
    for number in range(1000):
        score.expect("job sent", refusal("JOBS_FULL") if number < 10 else Reply(202, b""), 202)
    assert failed(table(score), score) == set()
    score.expect("job sent", refusal("JOBS_FULL"), 202)
    assert failed(table(score), score) == {"other requests refused"}


def test_wrong_label_fails() -> None:
    score = good_score()
    score.frame(3, 5.0, answer("dented"), "good")
    assert failed(table(score), score) == {"answered wrong", "faults"}


@pytest.mark.parametrize(
    "reply", [Reply(500, b""), refusal("INTERNAL", 500), refusal("NEW"), Reply(503, b"x")]
)
def test_failure_without_a_stated_reason_fails(reply: Reply) -> None:
    score = good_score()
    score.frame(3, 5.0, reply, "good")
    assert "faults" in failed(table(score), score)
    score = good_score()
    assert not score.expect("scrape", reply, 200)
    assert failed(table(score), score) == {"faults"}


def test_few_frames_may_be_refused_with_a_code() -> None:
    score = good_score()
    for _ in range(10):
        score.frame(3, 5.0, refusal("OVERLOADED"), "good")
    assert failed(table(score), score) == set()
    score.frame(3, 5.0, refusal("OVERLOADED"), "good")
    assert failed(table(score), score) == {"not answered"}
    assert score.refusals == {"OVERLOADED": 11}


@pytest.mark.parametrize(
    ("ending", "name"),
    [
        (WELL._replace(stop_code=1), "exit code of the server"),
        (WELL._replace(waiting=3), "messages that outputs hold"),
        (WELL._replace(worker_lives=False), "worker"),
    ],
)
def test_bad_ending_fails(ending: Ending, name: str) -> None:
    score = good_score()
    assert failed(table(score), score, ending) == {name}


def test_tables_name_what_does_not_hold() -> None:
    score = good_score()
    score.fault("a fault in words")
    made = table(score)
    told = text(made, judge(made, score, WELL, 60), score)
    assert "Fault: a fault in words" in told
    assert next(line for line in told.splitlines() if "**no**" in line).startswith("| faults")
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0


def test_run_of_some_seconds_answers_every_frame() -> None:
    done = run_script("scripts/soak/run.py", "--minutes", "0.06", "--share", "0.2", "--json")
    # Of a run so short, the bounds on growth and latency say nothing.
    assert done.returncode in (0, 1), done.stderr
    figures = json.loads(done.stdout)
    assert figures["faults"] == []
    holds = {check["name"]: check["holds"] for check in figures["checks"]}
    for name in ("answered wrong", "faults", "worker", "exit code of the server"):
        assert holds[name], figures
    assert all(row["frames"] and row["memory_mb"] > 50 for row in figures["tenths"])
    expected = {"version activated", "model unloaded", "job ended", "camera gone and back"}
    assert expected | {"scrape", "page read", "stream of events"} <= figures["acts"].keys()
