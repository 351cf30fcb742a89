"""Reads JSON bodies as a route does, each in a child of its own, and prints the peak of memory.

Each line of standard input is the JSON list of the body's kind, head, unit, tail and size. The
answer is a line: the bytes of memory that reading took, and those of the body.
"""

import json
import os
import resource
import sys
from contextlib import suppress
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


def measure(kind: str, head: str, unit: str, tail: str, size: int) -> None:
    """Read a body of about `size` bytes and print the peak."""
    body = bytearray(head.encode())
    body += unit.encode() * (size // len(unit.encode()))
    body += tail.encode()
    data = bytes(body)
    del body
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with suppress(InvalidFieldError):
        decode_json(KINDS[kind], data, not_finite=kind == "PredictRequest")
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    print(peak, len(data), flush=True)


def main() -> None:
    for line in sys.stdin:
        if child := os.fork():
            status = os.waitpid(child, 0)[1]
            if status:
                raise SystemExit(f"the child ended with status {status}")
        else:
            measure(*json.loads(line))
            os._exit(0)


if __name__ == "__main__":
    main()
