"""The operations of the two inference protocols."""

from server.api.compat.open_inference import Live, ModelMetadata, ModelReady, Ready, ServerMetadata
from server.api.compat.open_inference_tensors import InferRequest, InferResponse
from server.api.compat.tensorflow_serving import (
    Metadata,
    ModelStatus,
    Outputs,
    Predictions,
    Results,
)
from server.api.compat.tensorflow_serving_json import ClassifyRequest, PredictRequest
from server.api.openapi.operation import BINARY, FRAME_ERRORS, JSON, Operation, getting, posting


def protocol_operations() -> list[Operation]:
    """All of them."""
    return [*_inference_protocol(), *_tensorflow_serving()]


def _inference_protocol() -> list[Operation]:
    tag = "Open Inference Protocol v2"
    found = [
        getting("/v2", tag, "The server and its extensions", ServerMetadata, foreign=True),
        getting("/v2/health/live", tag, "Whether the server answers", Live, foreign=True),
        getting("/v2/health/ready", tag, "Whether it can infer", Ready, 503, foreign=True),
    ]
    for model in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        found += [
            getting(model, tag, "A model's tensors", ModelMetadata, 404, 503, foreign=True),
            getting(
                f"{model}/ready", tag, "Whether it can infer", ModelReady, 404, 503, foreign=True
            ),
            Operation(
                "post",
                f"{model}/infer",
                tag,
                "Inference; with Inference-Header-Content-Length binary data follows the JSON",
                {JSON: (InferResponse,), BINARY: (bytes,)},
                True,
                {JSON: InferRequest, BINARY: bytes},
                FRAME_ERRORS,
                True,
            ),
        ]
    return found


def _tensorflow_serving() -> list[Operation]:
    tag = "TensorFlow Serving"
    found = []
    whole = "/v1/models/{name}"
    for model in (whole, f"{whole}/versions/{{version}}", f"{whole}/labels/{{label}}"):
        predicted, classified = (Predictions, Outputs), (Results,)
        found += [
            posting(f"{model}:predict", tag, "Outputs", predicted, {JSON: PredictRequest}),
            posting(
                f"{model}:classify", tag, "Labels and scores", classified, {JSON: ClassifyRequest}
            ),
            Operation(
                "post",
                f"{model}:regress",
                tag,
                "Always an error",
                {},
                errors=(400, 404, 503),
                foreign=True,
            ),
            getting(f"{model}/metadata", tag, "The signature", Metadata, 404, 503, foreign=True),
        ]
        if model != whole:
            found.append(
                getting(model, tag, "A version's status", ModelStatus, 404, 503, foreign=True)
            )
    return found
