"""Finds by measuring which operators of a model gain from int8 arithmetic on this processor."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.tools import flatbuffer_utils

from convert.errors import QuantizeError
from convert.quantization.graph import Operator, operators, parse
from convert.quantization.quantize import Plan, default_plan, quantize

# Integer arithmetic costs accuracy, so an operator must gain more than the noise by it.
_WORTHWHILE = 0.97
_MIN_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Latency:
    """The time of one inference in seconds over `rounds` rounds: median and 90th percentile."""

    median: float
    p90: float
    rounds: int


@dataclass(frozen=True, slots=True)
class Trial:
    """One plan as measured: `size_ratio` and `latency_ratio` are relative to the float model."""

    name: str
    plan: Plan
    size_ratio: float
    latency_ratio: float
    latency: Latency


def measure(models: Mapping[str, bytes], *, seconds: float, threads: int = 1) -> dict[str, Latency]:
    """Measure the latency of each .tflite in turns, in this process. Return it by name.

    In every round each model runs twice, in random order, and the second run is timed: whatever
    else the machine does then falls on all of them alike, so ratios hold even where the times
    themselves do not. Rounds go on for `seconds`, and there are at least five. `threads` is that
    of each interpreter. Raises QuantizeError for a model that LiteRT cannot run.
    """
    runs = {name: _prepared(name, model, threads).invoke for name, model in models.items()}
    return in_turns(runs, seconds)


def in_turns(
    runs: Mapping[str, Callable[[], object]],
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Latency]:
    """Return the latency of each of `runs`, which run a model once, as `measure` measures it.

    clock: that a run is timed by, in seconds; `time.thread_time` leaves out what other programs
    take of a busy machine, and is right for runs in this thread alone.
    """
    order, times = list(runs), {name: list[float]() for name in runs}
    shuffle = random.Random(0).shuffle
    end = time.perf_counter() + seconds
    while order and (len(times[order[0]]) < _MIN_ROUNDS or time.perf_counter() < end):
        shuffle(order)
        for name in order:
            runs[name]()
            start = clock()
            runs[name]()
            times[name].append(clock() - start)
    return {
        name: Latency(float(np.median(taken)), float(np.percentile(taken, 90)), len(taken))
        for name, taken in times.items()
    }


def tune(
    float_model: bytes,
    *,
    max_size_ratio: float = 0.30,
    seconds: float = 120,
    progress: Callable[[str], None] | None = None,
) -> tuple[Plan, list[Trial]]:
    """Return the quickest dynamic plan for the processor this runs on, and all the plans tried.

    First every distinct operator shape is measured by itself, in float and in integer arithmetic;
    the plan «measured» makes integer what gained. Then whole models: that plan, the default one,
    every convolution and fully connected layer, fully connected layers alone, and none. One
    thread, about `seconds` in all. The plan returned is the quickest no larger than
    `max_size_ratio` of the float model, or the smallest if none is. Trials come quickest first.
    `progress` gets one line of text for each step. Accuracy is not looked at: compare the model
    made with the plan on real frames. Raises QuantizeError as `quantize` does.
    """
    say = progress or _silent
    found = operators(float_model)
    if not found:
        raise QuantizeError("The model has no operator with weights, so nothing can be tuned.")
    plans = {
        "measured": _by_operator(float_model, found, seconds / 2, say),
        "default": default_plan(float_model),
        "all": Plan(_shapes(found, "CONV_2D", "FULLY_CONNECTED")),
        "fully connected": Plan(_shapes(found, "FULLY_CONNECTED")),
        "stored": Plan(()),
    }
    models = {name: quantize(float_model, "dynamic", plan=plan) for name, plan in plans.items()}
    say(f"whole models: {len(models)} plans against float32")
    latencies = measure({**models, "float32": float_model}, seconds=seconds / 2)
    reference = latencies.pop("float32")
    trials = sorted(
        (
            Trial(
                name,
                plan,
                len(models[name]) / len(float_model),
                latencies[name].median / reference.median,
                latencies[name],
            )
            for name, plan in plans.items()
        ),
        key=lambda trial: trial.latency_ratio,
    )
    for trial in trials:
        say(f"{trial.name}: {trial.latency_ratio:.3f} of the time, {trial.size_ratio:.3f} of size")
    fitting = [trial for trial in trials if trial.size_ratio <= max_size_ratio]
    best = fitting[0] if fitting else min(trials, key=lambda trial: trial.size_ratio)
    return best.plan, trials


def _silent(_: str) -> None:
    return None


def _shapes(found: Sequence[Operator], *kinds: str) -> tuple[str, ...]:
    return tuple(sorted({op.shape for op in found if op.kind in kinds and not op.grouped}))


def _by_operator(
    float_model: bytes, found: Sequence[Operator], seconds: float, say: Callable[[str], None]
) -> Plan:
    # Depthwise ones are left out: quantised dynamically they leave XNNPACK, which splits the graph
    # and costs the neighbours time that the operator by itself does not show.
    distinct = {op.shape: op for op in found if op.kind != "DEPTHWISE_CONV_2D" and not op.grouped}
    models = {}
    for shape, op in distinct.items():
        alone = extract(float_model, op)
        models["float " + shape] = alone
        models["integer " + shape] = quantize(alone, "dynamic", plan=Plan((shape,), min_weights=0))
    say(f"operators: {len(distinct)} shapes in float and in integer arithmetic")
    times = measure(models, seconds=seconds)
    gained = []
    for shape in distinct:
        ratio = times["integer " + shape].median / times["float " + shape].median
        say(f"{shape}: {ratio:.2f}")
        if ratio < _WORTHWHILE:
            gained.append(shape)
    return Plan(tuple(sorted(gained)))


def extract(float_model: bytes, op: Operator) -> bytes:
    """Return a .tflite of that operator only, with its weights."""
    model = parse(float_model)
    graph = model.subgraphs[0]
    operator = graph.operators[op.index]
    kept = dict.fromkeys(int(i) for i in (*operator.inputs, *operator.outputs) if i >= 0)
    place = {old: new for new, old in enumerate(kept)}
    graph.tensors = [graph.tensors[old] for old in kept]
    model.operatorCodes = [model.operatorCodes[operator.opcodeIndex]]
    operator.opcodeIndex = 0
    operator.inputs = [place.get(int(i), -1) for i in operator.inputs]
    operator.outputs = [place[int(i)] for i in operator.outputs]
    graph.operators = [operator]
    graph.inputs, graph.outputs = operator.inputs[:1], operator.outputs
    buffers = [model.buffers[0]]
    for tensor in graph.tensors:
        buffer = model.buffers[tensor.buffer]
        tensor.buffer = 0 if buffer.data is None else len(buffers)
        if tensor.buffer:
            buffers.append(buffer)
    model.buffers = buffers
    # They refer to tensors and buffers that are gone.
    model.signatureDefs, model.metadata, model.metadataBuffer = [], [], []
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _prepared(name: str, model: bytes, threads: int) -> Interpreter:
    try:
        interpreter = Interpreter(model_content=model, num_threads=threads)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise QuantizeError(f"LiteRT cannot run the model {name}.") from error
    random_values = np.random.default_rng(0)
    for detail in interpreter.get_input_details():
        # Random rather than zero: with zeros the activations could become denormal, and slow.
        values = random_values.uniform(0, 1, detail["shape"])
        if detail["dtype"] != np.float32:
            values *= np.iinfo(detail["dtype"]).max
        interpreter.set_tensor(detail["index"], values.astype(detail["dtype"]))
    interpreter.invoke()
    return interpreter
