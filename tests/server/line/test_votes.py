"""Votes: several frames of a part, and exactly one verdict for it."""

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from images import encode, plain
from job_workers import await_that
from tiny_models import MakeModel, write_bundle

from server.app import AT_END, create_app, shut_down
from server.config.load import load
from server.config.outputs import WebhookOutput
from server.config.products import Rule, VoteTable
from server.errors import SettingsError
from server.line.outputs.messages import Event, is_wanted
from server.line.votes import RESULT_LIFETIME_S, Ballot, Votes, decide
from server.recognition.answers import Answer, FrameAnswered, FrameRefused, Options, Prediction
from server.values.trace import Trace

EVENT = Event(at=0.0, request_id="x")
GREEN = encode(plain((0, 255, 0)), "JPEG")
RED = encode(plain((255, 0, 0)), "JPEG")


@pytest.mark.parametrize(
    ("rule", "frames", "verdict"),
    [
        ("majority", "pass pass fail", "pass"),
        ("majority", "fail pass fail", "fail"),
        ("majority", "pass unsure fail", "unsure"),
        ("majority", "pass pass fail fail", "unsure"),
        ("all", "pass pass pass", "pass"),
        ("all", "pass pass unsure", "unsure"),
        ("all", "pass fail unsure", "fail"),
        ("any", "fail unsure pass", "pass"),
        ("any", "fail fail fail", "fail"),
        ("any", "fail fail unsure", "unsure"),
        ("any", "unsure unsure", "unsure"),
    ],
)
def test_rule_decides(rule: Rule, frames: str, verdict: str) -> None:
    ballots = [Ballot(each, 0.5, EVENT) for each in frames.split()]
    assert decide(rule, ballots)[0] == verdict


@pytest.mark.parametrize(
    ("frames", "verdict"),
    [
        ([("pass", 0.9), ("fail", 0.8)], "pass"),
        ([("pass", 0.7), ("fail", 0.8)], "fail"),
        # Of equally good frames the worst counts, and a frame that failed has no quality.
        ([("pass", 0.9), ("fail", 0.9), ("unsure", 0.9)], "fail"),
        ([("unsure", None), ("pass", 0.6)], "pass"),
        ([("unsure", None), ("unsure", None)], "unsure"),
    ],
)
def test_best_frame_decides(frames: list[tuple[str, float | None]], verdict: str) -> None:
    assert decide("best", [Ballot(*each, EVENT) for each in frames])[0] == verdict


def test_sharpest_frame_is_the_best() -> None:
    """Up to the usual sharpness, if that of all is known; without a problem before with one."""

    def ballot(verdict: str, quality: float, sharpness: float | None, ok: bool = True) -> Ballot:
        return Ballot(verdict, quality, EVENT, sharpness, ok)

    cases = {
        "fail": [ballot("pass", 0.9, 0.7), ballot("fail", 0.6, 0.95)],
        "pass": [ballot("pass", 0.9, 1.0), ballot("fail", 0.6, 1.4), Ballot("unsure", None, EVENT)],
    }
    for verdict, ballots in cases.items():
        assert decide("best", ballots)[0] == verdict
    unknown = [ballot("pass", 0.9, None), ballot("fail", 0.6, 0.95)]
    assert decide("best", unknown)[0] == "pass"
    problem = [ballot("unsure", 0.9, 1.5, ok=False), ballot("pass", 0.6, 0.8)]
    assert decide("best", problem)[0] == "pass"


class Bench:
    """Votes with a clock of their own, and what they report."""

    def __init__(self, *tables: VoteTable, open_max: int = 10) -> None:
        self.now = 100.0
        self.results: list[Event] = []
        self.refused: list[FrameRefused] = []
        self.rows: list[FrameRefused] = []
        self.votes = Votes(
            tables,
            self.results.append,
            self.refused.append,
            self.rows.append,
            open_max=open_max,
            clock=lambda: self.now,
        )

    def answer(
        self,
        verdict: str | None,
        part: str = "",
        camera: str = "",
        trace: Trace | None = None,
        **options: Any,
    ) -> Any:
        best = Prediction(0, "green", 0.9)
        answer = Answer("colors", 1, best, (best,), verdict, {})
        given = Options(part=part, camera=camera, **options)
        frame = FrameAnswered(0.0, f"r-{part}", answer, given, b"data", trace=trace)
        return self.votes.answered(frame)

    def refuse(self, **fields: Any) -> None:
        self.votes.refused(FrameRefused(at=0.0, request_id="x", status=422, code="X", **fields))

    def verdicts(self) -> list[tuple[str, str | None, str | None]]:
        return [(each.part, each.verdict, each.reason) for each in self.results]


@pytest.fixture
def bench() -> Bench:
    return Bench(VoteTable(name="three", frames=3, timeout_s=2.0), open_max=2)


def test_result_belongs_to_the_trace_of_its_last_frame(bench: Bench) -> None:
    for verdict, trace_id in (("pass", "a"), ("pass", "b"), ("fail", "c")):
        bench.answer(verdict, "A", trace=Trace(trace_id, "1"))
    assert [each.trace_id for each in bench.results] == ["c"]


def test_same_part_name_of_another_batch_votes_alone(bench: Bench) -> None:
    for _ in range(3):
        passed = bench.answer("pass", "7", batch="a", product="x")
    assert passed.verdict == "pass"
    others: list[dict[str, Any]] = [
        {"batch": "b", "product": "x"},
        {"batch": "a", "product": "y"},
    ]
    for other in others:
        states = [bench.answer("fail", "7", **other) for _ in range(3)]
        assert [(each.verdict, each.final) for each in states][-1] == ("fail", True)
    # A frame that was refused before its product was known joins the open vote of its part.
    bench.answer("pass", "8", batch="a", product="x")
    bench.answer("pass", "8", batch="a", product="x")
    bench.refuse(part="8", let_in=True)
    assert bench.verdicts()[-1] == ("8", "pass", "majority")


def test_frames_without_a_name_do_not_vote_together(bench: Bench) -> None:
    states = [bench.answer("pass") for _ in range(3)]
    assert [(each.verdict, each.reason, each.final) for each in states] == (
        [("unsure", "no_name", True)] * 3
    )
    assert [verdict for _, verdict, _ in bench.verdicts()] == ["unsure"] * 3


def test_frame_after_the_time_out_completes_no_vote(bench: Bench) -> None:
    """The thread that ends votes may have been held up."""
    names: list[dict[str, Any]] = [{"part": "A"}, {"camera": "top"}]
    for name in names:
        bench.answer("pass", **name)
        bench.answer("pass", **name)
        bench.now += 500
        assert bench.answer("pass", **name).verdict == "unsure"
    assert [verdict for _, verdict, _ in bench.verdicts()] == ["unsure", "unsure"]


def test_vote_of_an_unknown_product_stops_the_start() -> None:
    tables = json.dumps([{"name": "three", "frames": 3, "products": ["misspelt"]}])
    with pytest.raises(SettingsError, match="products can't have 'misspelt'"):
        load({"LINESIDE_VOTE": tables})


def test_vote_is_final_with_its_last_frame(bench: Bench) -> None:
    first = bench.answer("pass", "A")
    assert (first.verdict, first.reason, first.frames, first.final) == (
        *("unsure", "vote_open", 1, False),
    )
    bench.answer("fail", "A")
    last = bench.answer("pass", "A")
    assert (last.verdict, last.frames, last.of, last.final) == ("pass", 3, 3, True)
    # A late frame learns the result, and changes nothing.
    assert bench.answer("fail", "A") == last
    assert bench.verdicts() == [("A", "pass", "majority")]
    bench.now += RESULT_LIFETIME_S
    assert not bench.answer("fail", "A").final


def test_incomplete_vote_is_unsure(bench: Bench) -> None:
    """By time, by too many, by the server's stop, and by frames that come after that."""
    bench.answer("pass", "A")
    bench.answer("pass", "A")
    bench.votes.end_due(bench.now + 1.9)
    assert not bench.results
    bench.votes.end_due(bench.now + 2.0)
    for part in ("B", "C", "D"):
        bench.answer("pass", part)
    bench.votes.close()
    assert bench.answer("pass", "E").verdict == "unsure"
    assert bench.verdicts() == [
        ("A", "unsure", "vote_timeout"),
        ("B", "unsure", "too_many_votes"),
        ("C", "unsure", "server_stopped"),
        ("D", "unsure", "server_stopped"),
        ("E", "unsure", "server_stopped"),
    ]
    codes = [(each.part, each.code) for each in bench.rows]
    assert codes[:2] == [("A", "VOTE_TIMEOUT"), ("B", "TOO_MANY_VOTES")]


def test_refused_frame_votes_unsure(bench: Bench) -> None:
    bench.answer("pass", "A")
    bench.refuse(part="A", let_in=True)
    bench.refuse(part="A", let_in=True)
    assert bench.verdicts() == [("A", "unsure", "no_majority")]
    # Neither a stranger's frame nor one of unknown origin has a part in a vote.
    bench.refuse(part="B")
    bench.refuse(let_in=True)
    assert len(bench.refused) == 2
    bench.votes.end_due(bench.now + 10)
    assert len(bench.results) == 1


def test_camera_without_parts_votes_by_its_frames() -> None:
    bench = Bench(VoteTable(name="pairs", frames=2, rule="all", cameras=("st4",)))
    for verdict in ("pass", "pass", "pass", "fail", None, "pass"):
        bench.answer(verdict, camera="st4")
        assert bench.answer("pass", camera="other") is None
    assert [each.verdict for each in bench.results] == ["pass", "fail", "unsure"]


def test_lost_frame_of_a_camera_shifts_no_later_vote() -> None:
    """A frame that comes after `gap_s` begins another vote."""
    bench = Bench(VoteTable(name="three", frames=3, timeout_s=60, gap_s=0.5))
    for verdicts in (("fail", "fail", "fail"), ("pass", "pass"), ("fail", "fail", "fail")):
        for verdict in verdicts:
            bench.answer(verdict, camera="st4")
            bench.now += 0.2
        bench.now += 0.5
    assert [each.verdict for each in bench.results] == ["fail", "unsure", "fail"]
    # Parts have names: their frames need not come in a row.
    for _ in range(3):
        bench.answer("pass", "A")
        bench.now += 1.0
    assert bench.verdicts()[-1] == ("A", "pass", "majority")


def test_gap_ends_a_vote_before_the_next_frame() -> None:
    bench = Bench(VoteTable(name="three", frames=3, timeout_s=60, gap_s=0.5))
    bench.answer("pass", camera="st4")
    bench.votes.end_due(bench.now + 0.4)
    assert not bench.results
    bench.votes.end_due(bench.now + 0.6)
    assert bench.verdicts() == [("", "unsure", "vote_timeout")]


def test_vote_of_refused_frames_alone_reaches_all_that_wait(bench: Bench) -> None:
    """Nobody knows which model, or product, they were for. The last one's row has the result."""
    for _ in range(3):
        bench.refuse(part="A", let_in=True)
    (event,) = bench.results
    tables: tuple[dict[str, Any], ...] = (
        {"models": ("colors",)},
        {"products": ("x",)},
        {"verdicts": ("unsure",)},
    )
    for filters in tables:
        assert is_wanted(WebhookOutput(name="o", url="http://a/", **filters), event)
    assert [each.vote and each.vote.verdict for each in bench.rows] == [None, None, "unsure"]
    # One frame whose model is known is enough for the vote's.
    bench.answer("pass", "B", product="x")
    bench.refuse(part="B", let_in=True)
    bench.refuse(part="B", let_in=True)
    last = bench.results[-1]
    assert (last.verdict, last.model, last.product) == ("unsure", "colors", "x")
    other = WebhookOutput(name="o", url="http://a/", models=("other",))
    assert not is_wanted(other, last)


class Line:
    """An application with a vote and an output, which keeps what the other side does not take."""

    def __init__(self, models: Path, folder: Path) -> None:
        vote = {"name": "v", "frames": 3, "timeout_s": 3600}
        output = {"name": "out", "kind": "webhook", "url": "http://127.0.0.1:9/"}
        environ = {
            "LINESIDE_MODELS": str(models),
            "LINESIDE_DATA": str(folder),
            "LINESIDE_KEYS_FILE": str(folder / "keys.jsonl"),
            "LINESIDE_MAX_WAIT_MS": "60000",
            "LINESIDE_VOTE": json.dumps([vote]),
            "LINESIDE_OUTPUT": json.dumps([output]),
        }
        self.folder = folder
        self.app = create_app(load(environ))
        self.client = self.app.test_client()
        await_that(lambda: self.client.get("/readyz").status_code == 200, "a loaded model")

    def post(self, data: bytes, query: str) -> Any:
        path = f"/v1/recognize?{query}"
        return self.client.post(path, data=data, content_type="image/jpeg").get_json()

    def sent(self) -> list[Event]:
        base = sqlite3.connect(self.folder / "outbox.db")
        rows = base.execute("SELECT event FROM messages ORDER BY seq").fetchall()
        base.close()
        return [msgspec.msgpack.decode(data, type=Event) for (data,) in rows]


@pytest.fixture(scope="module")
def line(tiny_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    folder = tmp_path_factory.mktemp("votes")
    policy = {"accept": ["green"], "min_probability": 0.5}
    write_bundle(folder / "models" / "colors" / "1", tiny_model("colors"), verdict=policy)
    made = Line(folder / "models", folder / "data")
    yield made
    shut_down(made.app.extensions[AT_END])


def test_outputs_get_one_verdict_a_part(line: Line) -> None:
    """Each answer has its frame's own verdict too; a damaged frame is one of the three."""
    answers = [line.post(data, "part=A") for data in (GREEN, RED, GREEN)]
    assert [each["verdict"] for each in answers] == ["pass", "fail", "pass"]
    assert [each["vote"]["final"] for each in answers] == [False, False, True]
    assert answers[-1]["vote"]["verdict"] == "pass"
    for data in (GREEN, GREEN[:60], RED):
        last = line.post(data, "part=B")
    await_that(lambda: len(line.sent()) == 2, "the second verdict")
    assert [(each.part, each.verdict) for each in line.sent()] == [("A", "pass"), ("B", "unsure")]
    assert "error" not in last
    rows = line.client.get("/v1/journal?vote=pass").get_json()["rows"]
    assert [(row["part"], row["vote_reason"]) for row in rows] == [("A", "majority")]
    for _ in range(3):
        line.post(GREEN[:60], "part=F")

    def found() -> list[tuple[str, int]]:
        rows = line.client.get("/v1/journal?vote=unsure&part=F").get_json()["rows"]
        return [(row["vote_reason"], row["status"]) for row in rows]

    await_that(found, "the row of a vote of refused frames")
    assert found() == [("no_majority", 422)]


def test_open_vote_ends_unsure_with_the_server(
    tiny_model: MakeModel, tmp_path: Path, line: Line
) -> None:
    other = Line(line.folder.parent / "models", tmp_path / "data")
    other.post(GREEN, "part=C&batch=7")
    shut_down(other.app.extensions[AT_END])
    (event,) = other.sent()
    assert (event.part, event.verdict, event.reason) == ("C", "unsure", "server_stopped")
    base = sqlite3.connect(tmp_path / "data" / "journal.db")
    rows = base.execute("SELECT part, batch, code, vote FROM answers ORDER BY id").fetchall()
    base.close()
    assert rows == [("C", "7", None, None), ("C", "7", "SERVER_STOPPED", "unsure")]
