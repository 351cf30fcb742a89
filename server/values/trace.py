"""The trace that a request is part of: the headers traceparent and tracestate of W3C Trace Context
(https://www.w3.org/TR/trace-context/)."""

import os
import re

import msgspec

# Version, trace id, parent id, flags, and what a later version may add. No id is all zeros.
TRACEPARENT = re.compile(
    "(?!ff)([0-9a-f]{2})-((?!0{32})[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})(-.*)?"
)
# The flags that the standard defines: sampled, and random trace id.
KNOWN_FLAGS = 0b11
PRINTABLE = re.compile("[ -~\t]*")
STATE_CHARACTERS_MAX = 512


class Trace(msgspec.Struct, frozen=True, omit_defaults=True):
    """A request's place in its trace. trace_id: 32 hexadecimal digits, of the sender. span_id: 16
    of this request, the parent id of what follows from it. state: the tracestate as sent."""

    trace_id: str
    span_id: str
    flags: int = 0
    state: str = ""


def read_trace(traceparent: str, tracestate: str = "") -> Trace | None:
    """Return the trace of a request with these headers; None if traceparent is not valid, as if
    neither had been sent. A tracestate that can't be forwarded is left out, a long one cut."""
    match = TRACEPARENT.fullmatch(traceparent)
    if match is None or (match[1] == "00" and match[4] is not None):
        return None
    if len(tracestate) > STATE_CHARACTERS_MAX:
        tracestate = tracestate[: STATE_CHARACTERS_MAX + 1].rpartition(",")[0]
    state = tracestate if PRINTABLE.fullmatch(tracestate) else ""
    return Trace(match[2], os.urandom(8).hex(), int(match[3], 16) & KNOWN_FLAGS, state)


def trace_headers(trace: Trace | None) -> dict[str, str]:
    """Return the headers of a request that follows from one with `trace`; none without it."""
    if trace is None:
        return {}
    headers = {"traceparent": f"00-{trace.trace_id}-{trace.span_id}-{trace.flags:02x}"}
    return {**headers, "tracestate": trace.state} if trace.state else headers
