"""Every operation of the HTTP API once, with the types that validate it; `openapi` writes it down.

A test compares this table with the routes that exist.
"""

from server.api.compat.open_inference_tensors import InferRequest
from server.api.compat.tensorflow_serving_json import ClassifyRequest, PredictRequest
from server.api.compat.tutorial_jobs import TaskBody
from server.api.compat.tutorials import PredictBody
from server.api.jobs import JobJson
from server.api.models import VersionBody
from server.api.openapi.operation import Operation
from server.api.openapi.own_operations import own_operations
from server.api.openapi.protocol_operations import protocol_operations
from server.api.openapi.tutorial_operations import tutorial_operations
from server.api.recognize.json_frame import JsonFrame
from server.api.samples import LabelBody

# A body of each type that the bundle models/iris answers.
FLOWER = [5.1, 3.5, 1.4, 0.2]
EXAMPLES: dict[type, object] = {
    JsonFrame: {"input": FLOWER, "model": "iris", "parameters": {"top_k": 1}},
    JobJson: {"input": FLOWER, "model": "iris"},
    TaskBody: {"input": FLOWER},
    PredictBody: {"features": FLOWER},
    PredictRequest: {"instances": [FLOWER]},
    VersionBody: {"version": 1},
    LabelBody: {"label": "scratched"},
    ClassifyRequest: {"examples": [{"features": FLOWER}]},
    InferRequest: {
        "inputs": [{"name": "features", "shape": [1, 4], "datatype": "FP32", "data": FLOWER}]
    },
}


def operations() -> list[Operation]:
    """The whole table."""
    return [*own_operations(), *tutorial_operations(), *protocol_operations()]
