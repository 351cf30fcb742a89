"""What a query string asks of a frame."""

import pytest
from flask import Flask, request
from hypothesis import given, settings
from hypothesis import strategies as st

from server.api.recognize.options import parse_frame_options
from server.errors import InvalidFieldError
from server.http.body.image import query_values

TEXT = st.text("ab=&+%2C ;é~.", max_size=30)


@settings(max_examples=200)
@given(TEXT)
def test_the_values_are_those_that_flask_finds(text: str) -> None:
    raw = text.encode().decode("latin1")
    with Flask("test").test_request_context(environ_overrides={"QUERY_STRING": raw}):
        assert query_values(raw) == request.args.to_dict()


def test_what_can_not_be_used_is_told_of_each_time() -> None:
    for _ in range(2):
        with pytest.raises(InvalidFieldError, match="deadline_ms"):
            parse_frame_options("deadline_ms=soon")
    assert parse_frame_options("deadline_ms=200&camera=st4").deadline_ms == 200
    assert parse_frame_options("") == parse_frame_options("")
