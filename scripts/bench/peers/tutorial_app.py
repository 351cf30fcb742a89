# mypy: disable-error-code=import-not-found
"""Serves as the tutorials show: python tutorial_app.py PORT. Flask's own server and its threads,
Pillow, tensorflow's interpreter, one for all threads and without a lock."""

import io
import json
import os
import sys

import numpy as np
import tensorflow as tf
from flask import Flask, Response, jsonify, request
from PIL import Image

RECIPE = json.loads(os.environ["RECIPE"])
SIZE, SCALE, OFFSET = (RECIPE["width"], RECIPE["height"]), RECIPE["scale"], RECIPE["offset"]
with open(os.environ["LABELS"], encoding="utf-8") as file:
    LABELS = [line.rstrip("\n").rpartition("\t")[2] for line in file]
app = Flask(__name__)
net = tf.lite.Interpreter(model_path=os.environ["MODEL"])
net.allocate_tensors()
INPUT, OUTPUT = net.get_input_details()[0]["index"], net.get_output_details()[0]["index"]


@app.post("/predict")
def predict() -> Response:
    image = Image.open(io.BytesIO(request.files["file"].read())).resize(SIZE)
    net.set_tensor(INPUT, (np.asarray(image, np.float32) * SCALE + OFFSET)[None])
    net.invoke()
    scores = net.get_tensor(OUTPUT)[0]
    best = scores.argsort()[::-1][:3]
    predictions = [
        {"class_id": int(k), "label": LABELS[k], "probability": float(scores[k])} for k in best
    ]
    return jsonify(predictions=predictions)


if __name__ == "__main__":
    app.run(port=int(sys.argv[1]), threaded=True)
