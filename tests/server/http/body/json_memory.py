"""Reads one JSON body as a route does, and prints the peak of memory that this took, in bytes."""

import resource
import sys
from typing import Any

from server.api.compat.open_inference_tensors import InferRequest
from server.api.compat.tensorflow_serving_json import PredictRequest
from server.api.recognize.input import JsonFrame
from server.errors import InvalidFieldError
from server.http.body.json_body import decode_json

KINDS: dict[str, Any] = {
    "JsonFrame": JsonFrame,
    "PredictRequest": PredictRequest,
    "InferRequest": InferRequest,
}


def main(kind: str, head: str, unit: str, tail: str, size: int) -> None:
    body = bytearray(head.encode())
    body += unit.encode() * (size // len(unit.encode()))
    body += tail.encode()
    data = bytes(body)
    del body
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        decode_json(KINDS[kind], data, not_finite=kind == "PredictRequest")
        result = "taken"
    except InvalidFieldError as error:
        result = error.message[:80]
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    print(peak, len(data), result)


if __name__ == "__main__":
    _, kind, head, unit, tail, size = sys.argv
    main(kind, head, unit, tail, int(size))
