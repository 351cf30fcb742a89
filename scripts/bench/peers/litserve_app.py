# mypy: disable-error-code=import-not-found
"""LitServe: python litserve_app.py PORT. A worker process a core, its API server as it comes."""

import os
import sys
from typing import Any

import litserve
from fastapi import Request
from net import Net


class Classify(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.net = Net()

    def decode_request(self, request: Request) -> bytes:
        data: bytes = request["file"].file.read()
        return data

    def predict(self, data: bytes) -> list[dict[str, Any]]:
        top3: list[dict[str, Any]] = self.net(data)
        return top3

    def encode_response(self, output: list[dict[str, Any]]) -> dict[str, Any]:
        return {"predictions": output}


if __name__ == "__main__":
    litserve.LitServer(
        Classify(), accelerator="cpu", workers_per_device=int(os.environ["CORES"])
    ).run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")
