# mypy: disable-error-code=import-not-found
"""The model step that every peer shares: JPEG bytes in, the three most probable labels out.

Decode, resize and scale as the documented way goes: OpenCV decodes every pixel, resizes by area.
MODEL and LABELS name files, RECIPE is the `recipe` of bundle.json.
"""

import json
import os
from typing import Any

import cv2
import numpy as np
from ai_edge_litert.interpreter import Interpreter

cv2.setNumThreads(1)
RECIPE: dict[str, Any] = json.loads(os.environ["RECIPE"])
SIZE = RECIPE["width"], RECIPE["height"]
SCALE, OFFSET = (np.asarray(RECIPE.get(k, d), np.float32) for k, d in (("scale", 1), ("offset", 0)))
with open(os.environ["LABELS"], encoding="utf-8") as file:
    LABELS = [line.rstrip("\n").rpartition("\t")[2] for line in file]


class Net:
    """One interpreter of `threads` threads; not for several threads at once."""

    def __init__(self, threads: int = 1) -> None:
        self.interpreter = Interpreter(os.environ["MODEL"], num_threads=threads)
        self.interpreter.allocate_tensors()
        self.input = self.interpreter.get_input_details()[0]
        self.output = self.interpreter.get_output_details()[0]

    def prepare(self, data: bytes) -> Any:
        """A JPEG's bytes -> the model's input [1, height, width, 3]."""
        image: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        image = cv2.resize(image, SIZE, interpolation=cv2.INTER_AREA)
        tensor = cv2.cvtColor(image, cv2.COLOR_BGR2RGB).astype(np.float32)
        tensor *= SCALE
        tensor += OFFSET
        if self.input["dtype"] != np.float32:
            scale, zero = self.input["quantization"]
            limits = np.iinfo(self.input["dtype"])
            tensor = np.clip(np.rint(tensor / scale + zero), limits.min, limits.max)
        return tensor.astype(self.input["dtype"], copy=False)[None]

    def infer(self, tensor: Any) -> Any:
        """The model's output [classes], as probabilities where it is quantised."""
        self.interpreter.set_tensor(self.input["index"], tensor)
        self.interpreter.invoke()
        values = self.interpreter.get_tensor(self.output["index"])[0]
        scale, zero = self.output["quantization"]
        return (values.astype(np.float32) - zero) * scale if scale else values

    @staticmethod
    def top3(values: Any) -> list[dict[str, Any]]:
        """The three most probable labels, best first."""
        best = np.argsort(-values)[:3]
        return [
            {"class_id": int(k), "label": LABELS[k], "probability": float(values[k])} for k in best
        ]

    def __call__(self, data: bytes) -> list[dict[str, Any]]:
        return self.top3(self.infer(self.prepare(data)))
