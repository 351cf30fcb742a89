# mypy: disable-error-code=import-not-found
"""FastAPI: uvicorn fastapi_app:app. A `def` endpoint in the thread pool, a lock round one
interpreter of as many threads as cores."""

import os
from threading import Lock
from typing import Any

from fastapi import FastAPI, UploadFile
from net import Net

app = FastAPI()
net = Net(threads=int(os.environ["CORES"]))
lock = Lock()


@app.post("/predict")
def predict(file: UploadFile) -> dict[str, Any]:
    tensor = net.prepare(file.file.read())
    with lock:
        values = net.infer(tensor)
    return {"predictions": net.top3(values)}
