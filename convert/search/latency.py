"""Measures how long each network takes for a frame, before any is trained."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import msgspec
import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from convert.errors import ConvertError
from convert.quantization.quantize import quantize
from convert.quantization.tune import in_turns
from convert.search.networks import Network
from convert.sources.keras import from_keras
from convert.terminal import Terminal, tensorflow
from convert.training import network
from convert.training.light import even_light_layer

# Float arithmetic, whatever the weights are stored as.
FLOAT_MODES = ("float16", "float32")
_CALIBRATION_FRAMES, _CALIBRATION_BLOCKS = 16, 8


class Times(msgspec.Struct, frozen=True):
    """Median milliseconds of networks by their names, on one thread.

    reference: those of the reference models, by the mode of each; measured in the same turns.
    """

    networks: dict[str, float]
    reference: dict[str, float] = {}

    def has(self, networks: Iterable[Network], modes: Iterable[str]) -> bool:
        """Return True if none of these networks and modes is missing."""
        return {str(each) for each in networks} <= self.networks.keys() and (
            set(modes) <= self.reference.keys()
        )


def measure_networks(
    networks: Sequence[Network],
    classes: int,
    references: Mapping[str, bytes],
    seconds: float,
    terminal: Terminal,
) -> Times:
    """Measure networks of random weights and `references`, .tflite by mode, in turns.

    A width is converted once and then given inputs of each size, which makes of it what a
    conversion at that size makes: only the sides of its tensors differ. Even light is measured by
    itself and added. Times are of the processor, so that other programs do not count. seconds: of
    the measurement; conversions come on top.
    """
    runs: dict[str, Callable[[], object]] = {}
    kinds = sorted({(each.alpha, _arithmetic(each.mode)) for each in networks})
    floats: dict[float, bytes] = {}
    with terminal.bar("Converting networks to measure them", len(kinds)) as advance:
        for alpha, mode in kinds:
            own = [n for n in networks if (n.alpha, _arithmetic(n.mode)) == (alpha, mode)]
            side = max(each.size for each in networks if each.alpha == alpha)
            if alpha not in floats:
                model = network.with_softmax(network.build(classes, alpha, side, "none"))
                floats[alpha] = from_keras(model)
            frames = _frames(side) if mode == "int8" else None
            data = quantize(floats[alpha], mode, calibration=frames)
            runs |= {_as_is(each): _prepared(data, each.size) for each in own}
            advance()
    for side in sorted({each.size for each in networks if each.light == "even"}):
        runs[_of_light(side)] = _prepared(_even_light(side), None)
    runs |= {f"reference {mode}": _prepared(data, None) for mode, data in references.items()}
    terminal.say(f"measuring {len(networks)} networks in turns, one thread")
    # On a busy machine a longer run is interrupted more often, so that wall time would shut out
    # the larger networks.
    taken = in_turns(runs, seconds, time.thread_time)
    found = {name: each.median * 1e3 for name, each in taken.items()}
    return Times(
        {
            str(each): found[_as_is(each)]
            + (found[_of_light(each.size)] if each.light == "even" else 0.0)
            for each in networks
        },
        {mode: found[f"reference {mode}"] for mode in references},
    )


def _as_is(each: Network) -> str:
    return str(replace(each, light="as-is"))


def _of_light(side: int) -> str:
    return f"even light {side}"


def _even_light(side: int) -> bytes:
    """Return what makes the light of pictures of `side` x `side` pixels even, a float32 .tflite."""
    keras = tensorflow().keras
    image = keras.Input((side, side, 3))
    # The mean of each colour takes next to nothing, and makes a classifier of it.
    means = keras.layers.GlobalAveragePooling2D()(even_light_layer(keras)(image))
    return from_keras(keras.Model(image, means))


def _arithmetic(mode: str) -> str:
    return "float32" if mode in FLOAT_MODES else mode


def _frames(side: int) -> list[NDArray[np.float32]]:
    """Return frames of random blocks, float32 [1, side, side, 3] in -1..1: ranges, which int8 needs
    and on which its latency does not depend."""
    rng = np.random.default_rng(0)
    blocks = rng.uniform(-1, 1, (_CALIBRATION_FRAMES, _CALIBRATION_BLOCKS, _CALIBRATION_BLOCKS, 3))
    repeat = -(-side // _CALIBRATION_BLOCKS)
    large = blocks.repeat(repeat, 1).repeat(repeat, 2)[:, :side, :side].astype(np.float32)
    return [frame[None] for frame in large]


def _prepared(model: bytes, side: int | None) -> Callable[[], object]:
    """Return what runs a model once on one thread, its input of `side` x `side` pixels."""
    interpreter = Interpreter(model_content=model, num_threads=1)
    detail = interpreter.get_input_details()[0]
    shape = [int(n) for n in detail["shape"]]
    if side is not None and shape[1:3] != [side, side]:
        shape[1:3] = side, side
        interpreter.resize_tensor_input(detail["index"], shape)
    interpreter.allocate_tensors()
    # Random rather than zero: with zeros the activations could become denormal, and slow.
    values = np.random.default_rng(0).uniform(0, 1, shape)
    if detail["dtype"] != np.float32:
        values *= np.iinfo(detail["dtype"]).max
    interpreter.set_tensor(detail["index"], values.astype(detail["dtype"]))
    interpreter.invoke()
    run: Callable[[], object] = interpreter.invoke
    return run


def within_budget(
    times: Mapping[Network, float], budget: float
) -> tuple[dict[Network, float], dict[Network, float]]:
    """Return the networks that take at most `budget` milliseconds, and the others.

    Raises ConvertError if there are none of the former.
    """
    fit = {each: ms for each, ms in times.items() if ms <= budget}
    if not fit:
        quickest = min(times, key=lambda each: times[each])
        raise ConvertError(
            f"--budget-ms {budget:g} is less than the quickest network takes: {quickest} takes"
            f" {times[quickest]:.2f} ms"
        )
    return fit, {each: ms for each, ms in times.items() if each not in fit}
