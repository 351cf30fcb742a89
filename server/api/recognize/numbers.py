"""Plain numbers in a request: to the model that they are for."""

from collections.abc import Mapping

import numpy as np

from server.api.recognize.options import FrameOptions
from server.api.recognize.service import RecognitionService
from server.errors import MissingFieldError
from server.recognition import tensor_values as values
from server.recognition.answers import Options
from server.recognition.tensor_model import Model, ModelOutputs
from server.recognition.tensor_values import model_inputs, named_arrays


def run_numbers(
    recognizing: RecognitionService, value: object, query: FrameOptions, asked: Options
) -> tuple[Model, ModelOutputs]:
    """Plain numbers through the model that they are for (see `RecognitionService.for_numbers`)."""
    probe = np.empty(0) if isinstance(value, Mapping) else values.to_array(value, "input")
    name = query.model
    if name is None and isinstance(value, Mapping):
        raise MissingFieldError("tensors by name need the name of their `model`")
    model = recognizing.for_numbers(probe, name, query.version)
    inputs = model_inputs(model, named_arrays(value, model.pool.inputs))
    return model, recognizing.tensors(model, inputs, asked)
