# mypy: disable-error-code=import-not-found
"""BentoML: bentoml serve bentoml_app:Classify. A worker process a core."""

import os
from pathlib import Path
from typing import Any

import bentoml
from net import Net


@bentoml.service(workers=int(os.environ["CORES"]))
class Classify:
    def __init__(self) -> None:
        self.net = Net()

    @bentoml.api
    def predict(self, file: Path) -> dict[str, Any]:
        return {"predictions": self.net(file.read_bytes())}
