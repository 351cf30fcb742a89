# mypy: disable-error-code=import-not-found
"""mosec: python mosec_app.py --port PORT. A raw body, a worker process a core."""

import os
from typing import Any

from mosec import Server, Worker
from net import Net


class Classify(Worker):
    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: bytes) -> dict[str, Any]:
        return {"predictions": self.net(data)}


if __name__ == "__main__":
    server = Server()
    server.append_worker(Classify, num=int(os.environ["CORES"]))
    server.run()
