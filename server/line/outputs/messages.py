"""A verdict as outputs send it: made of an answered or a failed frame, kept as MessagePack."""

from __future__ import annotations

from typing import Any

import msgspec

from server.config.outputs import FIELDS, Outcome, OutputTable
from server.recognition.answers import FrameAnswered, FrameRefused
from server.system.clock import rfc3339
from server.values.template import TextTemplate
from server.values.trace import Trace


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The end of one frame. at: Unix seconds. verdict: None if the model has no policy, or the
    frame was refused or failed; then `error` is the code."""

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


def is_wanted(table: OutputTable, event: Event) -> bool:
    """Return whether the filters of `table` all let `event` through.

    A frame that was refused before its model or product was known may have been for any: no PLC
    should wait for it in vain.
    """
    no_model = event.error is not None and not event.model
    no_product = event.error is not None and not event.product
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
    """Return the message as `template` has it, or as a JSON object of all fields."""
    fields = message.fields()
    return template.render(fields).encode() if template else msgspec.json.encode(fields)


EVENT_FIELDS = frozenset((*Event.__struct_fields__, "trace_id"))
