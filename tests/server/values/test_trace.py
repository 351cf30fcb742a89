"""The headers of W3C Trace Context, read strictly and made."""

import re

import pytest

from server.values.trace import read_trace, trace_headers

TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SENT = f"00-{TRACE_ID}-{PARENT_ID}-01"


@pytest.mark.parametrize(
    ("sent", "flags"),
    [
        (SENT, "01"),
        (SENT[:-2] + "00", "00"),
        (SENT[:-2] + "ff", "03"),
        ("01" + SENT[2:], "01"),
        ("fe" + SENT[2:] + "-what-comes-later", "01"),
    ],
)
def test_valid_traceparent_is_passed_on_with_a_new_parent(sent: str, flags: str) -> None:
    trace = read_trace(sent)
    made = trace_headers(trace)["traceparent"]
    assert re.fullmatch(f"00-{TRACE_ID}-[0-9a-f]{{16}}-{flags}", made)
    assert PARENT_ID not in made
    assert trace_headers(trace)["traceparent"] == made, "a delivery again is the same request"
    assert trace_headers(read_trace(sent))["traceparent"] != made


@pytest.mark.parametrize(
    "sent",
    [
        "",
        "ff" + SENT[2:],
        SENT.upper(),
        SENT + "-more",
        SENT + "-",
        SENT + ".",
        "01" + SENT[2:] + ".more",
        SENT[:-1],
        SENT + "\n",
        f" {SENT}",
        f"{SENT},{SENT}",
        SENT.replace(TRACE_ID, "0" * 32),
        SENT.replace(PARENT_ID, "0" * 16),
        SENT.replace(TRACE_ID, TRACE_ID[:-1] + "g"),
        SENT.replace(TRACE_ID, TRACE_ID[:-1] + "\u0664"),
        SENT.replace("-", "_"),
        "0" + SENT,
    ],
)
def test_invalid_traceparent_is_as_if_not_sent(sent: str) -> None:
    assert read_trace(sent, "a=1") is None
    assert trace_headers(None) == {}


@pytest.mark.parametrize(
    ("state", "passed"),
    [
        ("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE", "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"),
        ("a=1," + "b" * 600 + "=2", "a=1"),
        ("a" * 600, ""),
        ("a=1\r\nX-Evil: 1", ""),
        ("a=\xff", ""),
    ],
)
def test_tracestate_is_passed_on_if_a_header_can_be_made(state: str, passed: str) -> None:
    assert trace_headers(read_trace(SENT, state)).get("tracestate", "") == passed
