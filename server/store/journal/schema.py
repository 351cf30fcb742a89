"""One row of the journal: an answered, refused or failed frame. Its columns, and who makes it."""

from typing import Any

import msgspec

from server.recognition.answers import FrameAnswered, FrameRefused
from server.recognition.manifest import PolicySource
from server.recognition.recognizer import STAGES

FILE = "journal.db"
OK = 200


class Row(msgspec.Struct, frozen=True):
    """One row. time: RFC 3339, UTC. label, probability: the best. status: HTTP's. code: the
    error's. cached: whether the answer was another request's. *_ms: milliseconds by stage, and in
    all. reason: the message of a failed request; address: its sender's. policy: whose verdict
    policy judged. problems: of the picture, separated by commas. vote, vote_reason: of the part,
    once its vote was final. What is not known, or does not apply, is null."""

    id: int
    time: str
    request_id: str
    camera: str | None
    part: str | None
    model: str | None
    version: int | None
    label: str | None
    probability: float | None
    verdict: str | None
    cached: bool
    status: int
    code: str | None
    decode_ms: float | None
    preprocess_ms: float | None
    wait_ms: float | None
    inference_ms: float | None
    total_ms: float | None
    reason: str | None = None
    address: str | None = None
    product: str | None = None
    batch: str | None = None
    policy: PolicySource | None = None
    problems: str | None = None
    vote: str | None = None
    vote_reason: str | None = None


COLUMNS = Row.__struct_fields__
# The values of a row in the order of COLUMNS but for `id`, which the database gives, and with
# Unix seconds for `time`.
Values = tuple[Any, ...]

# Columns that came later are added to a file that lacks them and read as null until then; programs
# that don't know them go on, so the format stays as it is.
FORMAT = 1
COLUMNS_OF = "PRAGMA table_info(answers)"
# `time` holds Unix seconds. Rows come in nearly the order of time, so that the index grows at its
# end only; one by part would write a page for each row.
SCHEMA = f"""
BEGIN;
CREATE TABLE answers (id INTEGER PRIMARY KEY, {", ".join(COLUMNS[1:])});
CREATE INDEX answers_time ON answers (time);
PRAGMA user_version = {FORMAT};
COMMIT;
"""


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def answered(event: FrameAnswered) -> Values:
    """Return the row of an answered frame."""
    answer, options = event.answer, event.options
    timing = answer.timing.get
    vote = answer.vote if answer.vote and answer.vote.final else None
    return (
        round(event.at, 3),
        event.request_id,
        options.camera or None,
        options.part or None,
        answer.model,
        answer.version,
        answer.label or None,
        round(answer.probability, 6) if answer.best else None,
        answer.verdict,
        event.cached,
        OK,
        None,
        *(_milliseconds(timing(stage)) for stage in (*STAGES, "total")),
        None,
        None,
        options.product or None,
        options.batch or None,
        answer.policy_source,
        ",".join(answer.health.problems) or None if answer.health else None,
        vote.verdict if vote else None,
        vote.reason if vote else None,
    )


def refused(refusal: FrameRefused) -> Values:
    """Return the row of a frame that got no labels."""
    vote = refusal.vote
    return (
        round(refusal.at, 3),
        refusal.request_id,
        refusal.camera or None,
        refusal.part or None,
        refusal.model or None,
        refusal.version or None,
        None,
        None,
        None,
        False,
        refusal.status,
        refusal.code,
        *(None for _ in STAGES),
        _milliseconds(refusal.seconds),
        refusal.reason or None,
        refusal.address or None,
        refusal.product or None,
        refusal.batch or None,
        None,
        None,
        vote.verdict if vote else None,
        vote.reason if vote else None,
    )
