"""Flask behind gunicorn: gunicorn -w CORES flask_app:app. One interpreter a process."""

from flask import Flask, Response, jsonify, request
from net import Net  # type: ignore[import-not-found]

app = Flask(__name__)
net = Net()


@app.post("/predict")
def predict() -> Response:
    return jsonify(predictions=net(request.files["file"].read()))
