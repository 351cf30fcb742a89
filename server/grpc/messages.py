"""The messages of the Open Inference Protocol over gRPC, by field number.

Sources: kserve/open-inference-protocol, specification/protocol/open_inference_grpc.proto; of the
extensions, triton-inference-server/common, protobuf/grpc_service.proto and model_config.proto. Only
what the server reads or sends has a field here.
"""

from server.grpc.wire import (
    BOOL,
    BYTES,
    DOUBLE,
    FLOAT,
    INT32,
    INT64,
    STRING,
    UINT32,
    UINT64,
    Message,
    many,
    mapped,
    one,
)

SERVICE = "inference.GRPCInferenceService"

EMPTY = Message()
LIVE = Message(live=one(1, BOOL))
READY = Message(ready=one(1, BOOL))
NAMED_MODEL = Message(name=one(1, STRING), version=one(2, STRING))
SERVER_METADATA = Message(name=one(1, STRING), version=one(2, STRING), extensions=many(3, STRING))
_TENSOR_METADATA = Message(name=one(1, STRING), datatype=one(2, STRING), shape=many(3, INT64))
MODEL_METADATA = Message(
    name=one(1, STRING),
    versions=many(2, STRING),
    platform=one(3, STRING),
    inputs=many(4, _TENSOR_METADATA),
    outputs=many(5, _TENSOR_METADATA),
)

# Of its fields, which are a `oneof`, one has the value.
PARAMETER = Message(
    bool_param=one(1, BOOL),
    int64_param=one(2, INT64),
    string_param=one(3, STRING),
    double_param=one(4, DOUBLE),
    uint64_param=one(5, UINT64),
)
CONTENTS = Message(
    bool_contents=many(1, BOOL),
    int_contents=many(2, INT32),
    int64_contents=many(3, INT64),
    uint_contents=many(4, UINT32),
    uint64_contents=many(5, UINT64),
    fp32_contents=many(6, FLOAT),
    fp64_contents=many(7, DOUBLE),
    bytes_contents=many(8, BYTES),
)
_INPUT = Message(
    name=one(1, STRING),
    datatype=one(2, STRING),
    shape=many(3, INT64),
    parameters=mapped(4, PARAMETER),
    contents=one(5, CONTENTS),
)
_WANTED_OUTPUT = Message(name=one(1, STRING), parameters=mapped(2, PARAMETER))
INFER_REQUEST = Message(
    model_name=one(1, STRING),
    model_version=one(2, STRING),
    id=one(3, STRING),
    parameters=mapped(4, PARAMETER),
    inputs=many(5, _INPUT),
    outputs=many(6, _WANTED_OUTPUT),
    raw_input_contents=many(7, BYTES),
)
_OUTPUT = Message(name=one(1, STRING), datatype=one(2, STRING), shape=many(3, INT64))
INFER_RESPONSE = Message(
    model_name=one(1, STRING),
    model_version=one(2, STRING),
    id=one(3, STRING),
    outputs=many(5, _OUTPUT),
    raw_output_contents=many(6, BYTES),
)
