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
    Enum,
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

_TYPES = ("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64")
DATA_TYPE = Enum({f"TYPE_{name}": i for i, name in enumerate((*_TYPES, "FP16", "FP32", "FP64"), 1)})
_MODEL_CONFIG = Message(
    name=one(1, STRING),
    platform=one(2, STRING),
    # Its one kind that is used: the versions that are served.
    version_policy=one(3, Message(specific=one(3, Message(versions=many(1, INT64))))),
    max_batch_size=one(4, INT32),
    input=many(5, Message(name=one(1, STRING), data_type=one(2, DATA_TYPE), dims=many(4, INT64))),
    output=many(6, Message(name=one(1, STRING), data_type=one(2, DATA_TYPE), dims=many(3, INT64))),
)
MODEL_CONFIG = Message(config=one(1, _MODEL_CONFIG))

_DURATION = Message(count=one(1, UINT64), ns=one(2, UINT64))
_INFER_STATISTICS = Message(
    success=one(1, _DURATION),
    fail=one(2, _DURATION),
    queue=one(3, _DURATION),
    compute_input=one(4, _DURATION),
    compute_infer=one(5, _DURATION),
    compute_output=one(6, _DURATION),
    cache_hit=one(7, _DURATION),
)
_BATCH_STATISTICS = Message(
    batch_size=one(1, UINT64),
    compute_input=one(2, _DURATION),
    compute_infer=one(3, _DURATION),
    compute_output=one(4, _DURATION),
)
_MEMORY = Message(type=one(1, STRING), id=one(2, INT64), byte_size=one(3, UINT64))
_MODEL_STATISTICS = Message(
    name=one(1, STRING),
    version=one(2, STRING),
    last_inference=one(3, UINT64),
    inference_count=one(4, UINT64),
    execution_count=one(5, UINT64),
    inference_stats=one(6, _INFER_STATISTICS),
    batch_stats=many(7, _BATCH_STATISTICS),
    memory_usage=many(8, _MEMORY),
)
STATISTICS = Message(model_stats=many(1, _MODEL_STATISTICS))

INDEX_REQUEST = Message(repository_name=one(1, STRING), ready=one(2, BOOL))
_INDEX = Message(
    name=one(1, STRING), version=one(2, STRING), state=one(3, STRING), reason=one(4, STRING)
)
INDEX = Message(models=many(1, _INDEX))
_REPOSITORY_PARAMETER = Message(
    bool_param=one(1, BOOL),
    int64_param=one(2, INT64),
    string_param=one(3, STRING),
    bytes_param=one(4, BYTES),
)
REPOSITORY_REQUEST = Message(
    repository_name=one(1, STRING),
    model_name=one(2, STRING),
    parameters=mapped(3, _REPOSITORY_PARAMETER),
)
