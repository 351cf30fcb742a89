"""The messages of gRPC, read and written as Protocol Buffers' own package does."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import BodyTooLargeError, InvalidFieldError
from server.grpc import messages
from server.grpc.wire import FIELDS_MAX, Values, read_message, write_message

pb: Any = pytest.importorskip("tritonclient.grpc", reason="Triton's client is absent").service_pb2

# More bytes than the numbers of any message here have.
MOST = 10_000_000
SIZES = st.integers(-(2**63), 2**63 - 1)
VALUES = st.one_of(
    st.builds(lambda v: {"bool_param": v}, st.booleans()),
    st.builds(lambda v: {"int64_param": v}, SIZES),
    st.builds(lambda v: {"string_param": v}, st.text(max_size=9)),
    st.builds(lambda v: {"double_param": v}, st.floats(allow_nan=False)),
    st.builds(lambda v: {"uint64_param": v}, st.integers(0, 2**64 - 1)),
)
PARAMETERS = st.dictionaries(st.text(max_size=9), VALUES, max_size=3)
CONTENTS = {
    "bool_contents": st.booleans(),
    "int_contents": st.integers(-(2**31), 2**31 - 1),
    "int64_contents": SIZES,
    "uint_contents": st.integers(0, 2**32 - 1),
    "uint64_contents": st.integers(0, 2**64 - 1),
    "fp32_contents": st.floats(width=32, allow_nan=False),
    "fp64_contents": st.floats(allow_nan=False),
    "bytes_contents": st.binary(max_size=9),
}
INPUTS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.text(max_size=9),
        "datatype": st.sampled_from(["FP32", "BYTES"]),
        "shape": st.lists(SIZES, max_size=5),
        "parameters": PARAMETERS,
        "contents": st.fixed_dictionaries(
            {}, optional={name: st.lists(kind, max_size=40) for name, kind in CONTENTS.items()}
        ),
    },
)
REQUESTS = st.fixed_dictionaries(
    {},
    optional={
        "model_name": st.text(max_size=9),
        "id": st.text(max_size=9),
        "parameters": PARAMETERS,
        "inputs": st.lists(INPUTS, max_size=3),
        "raw_input_contents": st.lists(st.binary(max_size=200), max_size=3),
    },
)


def to_protobuf(values: Values) -> Any:
    made = pb.ModelInferRequest()
    for name in ("model_name", "id"):
        setattr(made, name, values.get(name, ""))
    for name, value in values.get("parameters", {}).items():
        made.parameters[name].MergeFrom(pb.InferParameter(**value))
    for item in values.get("inputs", ()):
        fields = {key: value for key, value in item.items() if key != "parameters"}
        added = made.inputs.add(**fields)
        for name, value in item.get("parameters", {}).items():
            added.parameters[name].MergeFrom(pb.InferParameter(**value))
    made.raw_input_contents.extend(values.get("raw_input_contents", ()))
    return made


def plain(value: Any) -> Any:
    """What was read, as lists and bytes, without what is empty."""
    if isinstance(value, dict):
        return {k: p for k, v in value.items() if (p := plain(v)) not in ("", [], {})}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, list):
        return [plain(each) for each in value]
    return bytes(value) if isinstance(value, memoryview) else value


@given(REQUESTS)
def test_reads_what_protobuf_writes(values: Values) -> None:
    data = to_protobuf(values).SerializeToString()
    assert plain(read_message(messages.INFER_REQUEST, data, MOST)) == plain(values)


@given(REQUESTS)
def test_protobuf_reads_what_is_written(values: Values) -> None:
    data = write_message(messages.INFER_REQUEST, values)
    read = pb.ModelInferRequest.FromString(data)
    # Of a oneof, a zero is not written.
    assert plain(read_message(messages.INFER_REQUEST, read.SerializeToString(), MOST)) == plain(
        read_message(messages.INFER_REQUEST, data, MOST)
    )
    assert [list(each.shape) for each in read.inputs] == [
        each.get("shape", []) for each in values.get("inputs", [])
    ]
    assert list(read.raw_input_contents) == values.get("raw_input_contents", [])


@given(st.binary(max_size=300), REQUESTS, st.data())
def test_reads_or_refuses_whatever_comes(noise: bytes, values: Values, data: st.DataObject) -> None:
    """What protobuf can't read is refused here too; what is read, it reads alike."""
    whole_message = to_protobuf(values).SerializeToString()
    at = data.draw(st.integers(0, len(whole_message)))
    for message in (noise, whole_message[:at] + noise, whole_message[:at]):
        try:
            read = read_message(messages.INFER_REQUEST, message, MOST)
        except InvalidFieldError:
            continue
        theirs = pb.ModelInferRequest.FromString(message)
        assert read.get("model_name", "") == theirs.model_name
        assert plain(read.get("raw_input_contents", [])) == list(theirs.raw_input_contents)


def test_numbers_that_are_not_packed() -> None:
    shape = b"\x18\x01\x18\x04\x1a\x02\x05\x06"
    message = b"\x2a" + bytes([len(shape)]) + shape
    read = read_message(messages.INFER_REQUEST, message, MOST)
    assert read["inputs"][0]["shape"].tolist() == [1, 4, 5, 6]


def test_packed_numbers_over_several_pieces() -> None:
    values = np.arange(-200_000, 200_000, 7, dtype=np.int64) ** 3
    contents = pb.InferTensorContents(int64_contents=values.tolist())
    read = read_message(messages.CONTENTS, contents.SerializeToString(), MOST)
    assert np.array_equal(read["int64_contents"], values)


@pytest.mark.parametrize("field", [b"\x2a\x00", b"\x3a\x00", b"\x78\x00"])
def test_fields_of_a_message_are_counted(field: bytes) -> None:
    """Else 16 MB of empty inputs would take 700 MB."""
    with pytest.raises(InvalidFieldError, match=f"more than {FIELDS_MAX:,} fields"):
        read_message(messages.INFER_REQUEST, field * 8_000_000, MOST)


def test_numbers_are_counted_before_they_are_made() -> None:
    """One byte of a packed number becomes eight in an array."""
    contents = pb.InferTensorContents(int64_contents=[1] * 1000, bool_contents=[True] * 1000)
    data = contents.SerializeToString()
    assert len(read_message(messages.CONTENTS, data, 9000)["int64_contents"]) == 1000
    with pytest.raises(BodyTooLargeError, match="send raw contents"):
        read_message(messages.CONTENTS, data, 8999)
