"""The fault run: its account finds each outcome that is not allowed, and a short run has none."""

import json
from pathlib import Path
from typing import Any

import pytest
from chaos.account.checker import account_for
from chaos.account.ledger import Account
from chaos.history import Entry, History, read_history
from chaos.mqtt_tap import Packets
from line_outputs import MOSQUITTO
from server_process import run_script

SHORT_RUN = ("--seconds", "3", "--seed", "3", "--fault", "kill serving process")


def frame(op: str, event: str = "ok", **fields: Any) -> list[Entry]:
    """One frame of a good part and its end; by default it is answered right."""
    answer = {"frame": "good", "label": "good", "verdict": "pass", "version": 1}
    end = answer | fields if event == "ok" else {"frame": "good"} | fields
    sent = {"frame": end["frame"]}
    return [Entry(10.0, op, "frame", "invoke", sent), Entry(10.1, op, "frame", event, end)]


def row(op: str, **fields: Any) -> Entry:
    values = {"camera": "st1", "label": "good", "verdict": "pass"}
    return Entry(90.0, op, "journal", "row", {"row": values | fields})


def message(op: str, seq: int, at: float = 10.2, **fields: Any) -> Entry:
    values = {"seq": seq, "stream": "a", "redelivered": False, "camera": "st1"}
    values |= {"label": "good", "verdict": "pass", "error": None}
    return Entry(at, op, "mqtt", "acknowledged", {"message": values | fields})


def answered(op: str, seq: int) -> list[Entry]:
    """A frame that is answered right, with its row and its message."""
    return [*frame(op), row(op), message(op, seq)]


def job(op: str, *later: tuple[str, dict[str, Any]]) -> list[Entry]:
    """A job of one frame that is acknowledged, and what was seen of it later."""
    frames = {"frames": ["good"]}
    begin = [Entry(10.0, op, "job", "invoke", frames), Entry(10.1, op, "job", "ok", frames)]
    return begin + [Entry(20.0, op, "job", event, fields) for event, fields in later]


def end_of_job(**fields: Any) -> dict[str, Any]:
    result = {"label": "good", "verdict": "pass", "code": None}
    end = {"state": "succeeded", "finished_at": "t", "code": None, "results": [result]}
    return end | fields


def fault(**fields: Any) -> list[Entry]:
    """A fault from 9 s to 15 s."""
    begin = {"name": "made", "down": False, "loses": []} | fields
    return [
        Entry(9.0, "fault-1", "fault", "begin", begin),
        Entry(15.0, "fault-1", "fault", "end", {"name": "made"}),
    ]


def check(*entries: Entry) -> Account:
    return account_for(sorted(entries, key=lambda entry: entry.at), ["mqtt"])


DONE = end_of_job()
WRONG = [{"label": "dented", "verdict": "fail", "code": None}]
# What is not allowed, with a part of the sentence that finds it.
FORBIDDEN: dict[str, tuple[list[Entry], str]] = {
    "wrong label": (frame("a", label="dented", verdict="fail"), "good is right"),
    "pass of a damaged frame": (frame("a", frame="damaged"), "damaged"),
    "pass of an unknown frame": (frame("a", frame="unknown"), "verdict pass"),
    "answer without a verdict": (frame("a", verdict=None), "verdict None"),
    "answer in time that is unsure": (frame("a", verdict="unsure"), "verdict unsure"),
    "answer of a broken version": ([*frame("a", version=2)], "version 2"),
    "refusal without a code": (frame("a", "refused", status=503, code=None), "refused by 503"),
    "error of the server": (frame("a", "refused", status=500, code="INTERNAL"), "500"),
    "good frame that is rejected": (
        frame("a", "refused", status=422, code="UNDECODABLE_IMAGE"),
        "422",
    ),
    "connection lost by a server that is up": (frame("a", "lost"), "while the server was up"),
    "frame without an end": (frame("a")[:1], "no end"),
    "answer that is not in the journal": ([*frame("a"), message("a", 1)], "not in the journal"),
    "row of another label": ([*answered("a", 1), row("a", label="dented")], "row of a"),
    "job that never ends": (job("a", ("endless", {})), "never ended"),
    "job that is gone": (job("a", ("gone", {})), "not known any more"),
    "job that ends twice": (
        job("a", ("ended", DONE), ("final", {"http": 200, **end_of_job(finished_at="u")})),
        "ended twice",
    ),
    "job with a wrong label": (job("a", ("ended", end_of_job(results=WRONG))), "good is right"),
    "job that fails by itself": (
        job("a", ("ended", end_of_job(state="failed", code="INTERNAL", results=[]))),
        "failed by INTERNAL",
    ),
    "message that is lost": ([*frame("a"), row("a")], "message to mqtt is lost"),
    "message of another label": (
        [*frame("a"), row("a"), message("a", 1, label="dented", verdict="fail")],
        "good is right",
    ),
    "message of no frame": ([*answered("a", 1), message("z", 2)], "no frame that was sent"),
    "message that came again changed": (
        [*answered("a", 1), message("b", 1, 10.3, verdict="fail", redelivered=True)],
        "another content",
    ),
    "message that came again unmarked": ([*answered("a", 1), message("a", 1, 10.3)], "not marked"),
    "messages out of order": ([*answered("a", 2), *answered("b", 1)], "out of order"),
    "trigger without a verdict": (
        [
            Entry(10.0, "a", "trigger", "invoke", {"frame": "good"}),
            Entry(10.1, "a", "trigger", "ok", {"frame": "good"}),
        ],
        "no verdict",
    ),
    "trigger that fails by itself": (
        [
            Entry(10.0, "a", "trigger", "invoke", {"frame": "good"}),
            Entry(10.1, "a", "trigger", "ok", {"frame": "good"}),
            message("a", 1, label=None, verdict=None, error="INTERNAL"),
        ],
        "has the errors",
    ),
    "plant that does not come back": (fault()[:1], "did not come back"),
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_each_forbidden_outcome_is_found(name: str) -> None:
    entries, words = FORBIDDEN[name]
    found = check(*entries).findings
    assert any(words in text for text in found), found


def test_a_right_history_has_no_finding() -> None:
    job_entries = job("j", ("ended", DONE), ("final", {"http": 200, **DONE}))
    again = message("b", 2, 10.4, redelivered=True)
    account = check(
        *answered("a", 1),
        *answered("b", 2),
        again,
        *frame("c", "refused", status=503, code="OVERLOADED"),
        *frame("d", "refused", frame="damaged", status=422, code="UNDECODABLE_IMAGE"),
        *job_entries,
        message("j", 3, 19.0),
    )
    assert account.findings == []
    assert account.counts["frame"] == {"sent": 4, "right": 2, "refused": 2}
    assert account.counts["messages to mqtt"]["again"] == 1


def test_faults_excuse_only_what_they_may_harm() -> None:
    """A connection while the server is down, a database that is damaged: nothing else."""
    lost = frame("a", "lost")
    assert check(*lost, *fault(down=True)).findings == []
    assert check(*lost, *fault()).findings
    gone = job("a", ("gone", {}))
    assert check(*gone, *fault(loses=["jobs"])).findings == []
    assert check(*gone, *fault(loses=["journal", "outbox"], down=True)).findings
    no_row = [*frame("a"), message("a", 1)]
    killed = Entry(10.3, "fault-1", "fault", "killed", {})
    assert check(*no_row, *fault(down=True), killed).findings == []
    noted = Entry(12.0, "fault-1", "fault", "noted", {"began": 12.0})
    harmed = fault(loses=["journal"])
    assert check(*no_row, *harmed, noted).findings == []
    assert check(*no_row, *harmed, noted._replace(fields={"began": 60.0})).findings
    late = killed._replace(at=14.9)
    assert check(*no_row, *fault(down=True), late).findings


def plc_entries(numbers: list[tuple[str, int, float, bool]]) -> list[Entry]:
    """What a PLC took, by frame, number, time and mark, with the frames and their rows."""
    entries = []
    for op, seq, at, redelivered in numbers:
        values = {"seq": seq, "verdict": "pass", "label": "good", "camera": "st1"}
        entries.append(Entry(at, op, "plc", "taken", values | {"redelivered": redelivered}))
    for op in {op for op, *_ in numbers}:
        entries += [*frame(op), row(op)]
    return entries


def plc_findings(*entries: Entry) -> list[str]:
    return account_for(sorted(entries, key=lambda entry: entry.at), ["plc"]).findings


def test_plc_may_see_new_numbers_only_with_a_new_outbox() -> None:
    """A PLC is not told the stream. After another start the server goes on with the old one."""
    numbers = [("a", 1, 10.0, False), ("b", 2, 11.0, False), ("c", 1, 12.0, False)]
    numbers += [("d", 2, 13.0, False), ("g", 3, 14.0, False), ("b", 2, 59.0, True)]
    entries = plc_entries([*numbers, ("e", 3, 60.0, False), ("f", 4, 61.0, False)])
    assert plc_findings(*entries, *fault(loses=["numbers"])) == []
    assert plc_findings(*entries)


def test_outbox_may_begin_anew_once_its_damage_is_met() -> None:
    """At the next start, if the server had not met it before."""
    entries = plc_entries([("a", 1, 8.0, False), ("b", 2, 8.5, False), ("c", 1, 80.0, False)])
    begin, end = fault(loses=["outbox"])
    latent = end._replace(fields={"name": "made", "latent": True})
    restart = [
        Entry(70.0, "fault-2", "fault", "begin", {"name": "kill", "down": False, "loses": []}),
        Entry(70.1, "fault-2", "fault", "killed", {}),
        Entry(75.0, "fault-2", "fault", "up", {}),
        Entry(76.0, "fault-2", "fault", "end", {"name": "kill"}),
    ]
    assert plc_findings(*entries, begin, latent, *restart) == []
    assert plc_findings(*entries, begin, end, *restart)
    late = [entry._replace(at=entry.at - 55) for entry in restart]
    assert plc_findings(*entries, begin, latent, *late)


def test_history_is_read_though_its_last_line_is_cut(tmp_path: Path) -> None:
    history = History(tmp_path / "history.jsonl")
    history.record("a", "frame", "invoke", frame="good")
    history.record("a", "frame", "ok", label="good")
    history.close()
    data = history.path.read_bytes()
    history.path.write_bytes(data[:-5])
    (entry,) = read_history(history.path)
    assert (entry.op, entry.event, entry.fields) == ("a", "invoke", {"frame": "good"})


def test_packets_come_whole_whatever_the_pieces() -> None:
    body = b"x" * 200
    data = bytes([0x32, 0xC8, 0x01]) + body + bytes([0x40, 2, 0, 7])
    for size in (1, 3, 1000):
        packets = Packets()
        pieces = [data[at : at + size] for at in range(0, len(data), size)]
        found = [packet for piece in pieces for packet in packets.feed(piece)]
        assert found == [(0x32, body), (0x40, b"\0\7")]


def test_short_run_accounts_for_everything(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    done = run_script("scripts/chaos/run.py", *SHORT_RUN, "--json", str(figures))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(figures.read_text("utf-8"))
    assert (found["unaccounted"], found["faults"]) == (0, {"kill serving process": 1})
    assert found["counts"]["frame"]["right"] > 0
    if MOSQUITTO is not None:
        assert found["counts"]["messages to mqtt"]["right"] > 0
