"""A site's side, run by Flower for each message: it answers with counts and weights alone."""

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from convert.data.frames import tensors
from convert.evaluation import metrics
from convert.evaluation.evaluate import Model, predict
from convert.federation import plans, wire
from convert.federation.messages import ARRAYS, CONFIG, EXAMPLES, METRICS, arrays_record, vector_of
from convert.federation.site.training import SiteTraining, dataset
from convert.federation.weights import Scale
from convert.quantization.correction import MAX_FRAMES, input_means
from convert.sources import imagenet
from server.values.labels import Label


def _account(message: Any, context: Any, answer: Callable[[Any, Any], Any]) -> Any:
    """Note what every message carries, in this site's folder."""
    _note(message, "received")
    reply = answer(message, context)
    _note(reply, "sent")
    return reply


def _note(message: Any, way: str) -> None:
    if message.has_content():
        sizes = {name: record.count_bytes() for name, record in message.content.items()}
        wire.note(_folder(), wire.Entry(way, message.metadata.message_type, sizes))


app = ClientApp(mods=[_account])


def _folder() -> Path:
    return Path(os.environ[plans.SITE_PLAN]).parent


def _plan() -> plans.SitePlan:
    return plans.read(_folder() / plans.PLAN, plans.SitePlan)


@app.query("describe")
def describe(message: Any, _context: Any) -> Any:
    """Answer the names of the classes, and how many frames of each there are."""
    plan = _plan()
    classes = sorted({name for _, name in (*plan.trained, *plan.held)})
    counts = {
        side: [sum(name == each for _, each in frames) for name in classes]
        for side, frames in (("trained", plan.trained), ("held", plan.held))
    }
    return _reply(message, config=ConfigRecord({"name": plan.name, "classes": classes, **counts}))


@app.query("prepare")
def prepare(message: Any, _context: Any) -> Any:
    """Compute the features that the last layer learns from; answer their means and squares."""
    training, _ = _training(message)
    found = training.prepare(vector_of(message.content))
    count = ConfigRecord({EXAMPLES: len(training.labels)})
    return _reply(message, arrays=arrays_record([found]), config=count)


@app.train()
def train(message: Any, _context: Any) -> Any:
    """Train on this site's frames, and answer the weights and how right those that came were."""
    training, config = _training(message)
    vector = vector_of(message.content)
    weights = np.array(config["class-weights"], np.float32)
    number = int(config["round"])
    if config["stage"] == "head":
        scale = Scale.from_bytes(config["scale"])
        learned, judged = training.train_head(vector, scale, weights, number)
    else:
        learned, judged = training.tune(vector, weights, number, float(config["rate"]))
    figures = {
        EXAMPLES: len(training.labels),
        "right": judged.right,
        "held": judged.frames,
    }
    return _reply(message, arrays=arrays_record([learned]), metrics=MetricRecord(figures))


@app.query("means")
def means(message: Any, _context: Any) -> Any:
    """Keep the float model, and answer the mean inputs of its operators over frames of this site,
    by which the rounding of a quantised model is corrected."""
    model = vector_of(message.content).tobytes()
    (_folder() / plans.MODEL).write_bytes(model)
    recipe = imagenet.recipe(int(message.content[CONFIG]["size"]))
    paths = [path for path, _ in _plan().trained]
    step = max(1, math.ceil(len(paths) / MAX_FRAMES))
    frames = list(tensors(paths[::step], recipe))
    found = {str(place): Array(mean) for place, mean in input_means(model, frames).items()}
    # Each site counts by all its frames, of which these stand for the others.
    return _reply(message, arrays=ArrayRecord(found), config=ConfigRecord({EXAMPLES: len(paths)}))


@app.evaluate("prove")
def prove(message: Any, _context: Any) -> Any:
    """Judge the bundle's model and the float model on the frames held back; answer counts."""
    config = message.content[CONFIG]
    classes = [str(name) for name in config["classes"]]
    made = vector_of(message.content).tobytes()
    float_model = (_folder() / plans.MODEL).read_bytes()
    held = dataset(_plan().held, classes)
    recipe = imagenet.recipe(int(config["size"]))
    labels = tuple(Label(name) for name in classes)
    models = (
        Model(
            "result",
            made,
            msgspec.structs.replace(recipe, dtype=config["dtype"]),
            "probabilities",
            labels,
        ),
        Model("float32", float_model, recipe, "probabilities", labels),
    )
    if not held.frames:
        empty = [0] * len(classes) ** 2
        return _reply(
            message, config=ConfigRecord({"result": empty, "reference": empty, "same": 0})
        )
    found = predict(models, [item.path for item in held.frames])
    truth = np.array([item.label for item in held.frames], np.intp)
    named = [side.argmax(axis=1) for side in found.probabilities]
    matrices = [metrics.confusion(truth, each, len(classes)).ravel().tolist() for each in named]
    counts = {
        "result": matrices[0],
        "reference": matrices[1],
        "same": int((named[0] == named[1]).sum()),
    }
    return _reply(message, config=ConfigRecord(counts))


@app.query("finish")
def finish(message: Any, _context: Any) -> Any:
    """Note how it ended, for the command that waits."""
    outcome = msgspec.json.decode(message.content[CONFIG]["outcome"], type=plans.Outcome)
    plans.write(_folder() / plans.OUTCOME, outcome)
    return _reply(message, config=ConfigRecord({"finished": True}))


def _training(message: Any) -> tuple[SiteTraining, Mapping[str, Any]]:
    config = message.content[CONFIG]
    course = msgspec.json.decode(config["course"], type=plans.Course)
    plans.check_ranges(course)
    return SiteTraining(_plan(), course, list(config["classes"]), _folder()), config


def _reply(message: Any, **records: Any) -> Any:
    names = {"config": CONFIG, "arrays": ARRAYS, "metrics": METRICS}
    content = RecordDict({names[name]: record for name, record in records.items()})
    return Message(content, reply_to=message)
