"""A verdict as outputs send it: made of an answered or a failed frame, kept as MessagePack."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from server.config.outputs import FIELDS, MessageOutput, Outcome, OutputTable
from server.recognition.answers import FrameAnswered, FrameRefused
from server.system.clock import rfc3339
from server.values.template import TextTemplate
from server.values.trace import Trace

# What a test has in place of a camera and of an error's code.
TEST_CAMERA, TEST_ERROR = "test", "TEST"


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The end of one frame. at: Unix seconds. verdict: None if the model has no policy, or the
    frame was refused or failed; then `error` is the code. test: it is of no frame at all."""

    at: float
    request_id: str
    camera: str = ""
    part: str = ""
    batch: str = ""
    product: str = ""
    model: str = ""
    version: int = 0
    label: str | None = None
    class_id: int | None = None
    probability: float | None = None
    verdict: str | None = None
    reason: str | None = None
    error: str | None = None
    cached: bool = False
    trace: Trace | None = None
    test: bool = False

    @property
    def trace_id(self) -> str:
        """The id of the request's trace; empty if it named none."""
        return self.trace.trace_id if self.trace else ""

    @property
    def outcome(self) -> Outcome:
        """The verdict, `none` or `error`."""
        if self.error is not None:
            return "error"
        return self.verdict or "none"  # type: ignore[return-value]


def of_answer(frame: FrameAnswered) -> Event:
    answer, options = frame.answer, frame.options
    best = answer.best
    return Event(
        at=frame.at,
        request_id=frame.request_id,
        camera=options.camera,
        part=options.part,
        batch=options.batch,
        product=options.product,
        model=answer.model,
        version=answer.version,
        label=best.label if best else None,
        class_id=best.class_id if best else None,
        probability=best.probability if best else None,
        verdict=answer.verdict,
        reason=answer.verdict_reason,
        cached=frame.cached,
        trace=frame.trace,
    )


def of_refusal(frame: FrameRefused) -> Event:
    return Event(
        at=frame.at,
        request_id=frame.request_id,
        camera=frame.camera,
        part=frame.part,
        batch=frame.batch,
        product=frame.product,
        model=frame.model,
        version=frame.version,
        error=frame.code,
        trace=frame.trace,
    )


def of_test(request_id: str) -> Event:
    """Return a message of no frame, which nobody can take for a verdict."""
    return Event(
        at=time.time(), request_id=request_id, camera=TEST_CAMERA, error=TEST_ERROR, test=True
    )


def why_untestable(table: OutputTable) -> str:
    """Return why whoever receives from `table` could take a test for a verdict; empty if not."""
    if not isinstance(table, MessageOutput):
        return (
            "a PLC or an actuator takes whatever comes for the result of a part, so no test is"
            " sent: look at its heartbeat, which says that the server is there and can judge"
        )
    if table.labels or (table.verdicts and "error" not in table.verdicts):
        return (
            "it sends chosen verdicts or labels alone, so that the arrival of a test could be"
            " taken for one: add error to its verdicts, and leave labels empty"
        )
    return ""


def is_wanted(table: OutputTable, event: Event) -> bool:
    """Return whether the filters of `table` all let `event` through.

    A frame that was refused before its model or product was known may have been for any, and so may
    a vote of such frames alone: no PLC should wait for it in vain.
    """
    no_model = not event.model
    no_product = not event.product and (event.error is not None or no_model)
    return (
        (not table.cameras or event.camera in table.cameras)
        and (not table.products or event.product in table.products or no_product)
        and (not table.models or event.model in table.models or no_model)
        and (not table.verdicts or event.outcome in table.verdicts)
        and (not table.labels or event.label in table.labels)
    )


class Message(msgspec.Struct, frozen=True):
    """One event on its way to one output.

    stream, seq: together they name the message. seq counts the messages of this output from 1,
    without gaps but for those that were dropped. redelivered: it may have been sent before, with
    the same seq.
    """

    stream: str
    seq: int
    redelivered: bool
    event: Event

    def fields(self) -> dict[str, Any]:
        """Return the values of FIELDS, in their order."""
        event = self.event
        values = {name: getattr(event, name) for name in FIELDS if name in EVENT_FIELDS}
        values |= {"stream": self.stream, "seq": self.seq, "redelivered": self.redelivered}
        values["at"] = rfc3339(event.at)
        return {name: values[name] for name in FIELDS}


def payload_of(message: Message, template: TextTemplate | None) -> bytes:
    """Return the message as `template` has it, or as a JSON object of all fields. A test is always
    the latter, with `test`: a template may have words that mean `pass`."""
    fields = message.fields()
    if message.event.test:
        return msgspec.json.encode(fields | {"test": True})
    return template.render(fields).encode() if template else msgspec.json.encode(fields)


EVENT_FIELDS = frozenset((*Event.__struct_fields__, "trace_id"))
