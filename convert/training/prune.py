"""Pruning by magnitude: the smallest weights become zero while the rest are trained on."""

from typing import Any

import numpy as np

from convert.native_output import tensorflow


def schedule(step: int, steps: int, sparsity: float) -> float:
    """The share of zeros, 0..sparsity, that a kernel should have after `step` of `steps`.

    Cubic over the first half, then constant so that the rest can recover: Zhu and Gupta, «To
    prune, or not to prune», 2017 (arXiv:1710.01878), equation 1 with an initial sparsity of 0.
    """
    progress = min(1.0, step / max(1, steps // 2))
    return sparsity * (1 - (1 - progress) ** 3)


class Pruner:
    """Keeps the smallest weights of each trained 1x1 convolution and dense kernel at zero.

    Depthwise and stem kernels hold few weights and lose most by it; they stay whole.
    """

    def __init__(self, model: Any, sparsity: float, steps: int) -> None:
        keras = tensorflow().keras
        self._sparsity, self._steps = sparsity, steps
        self._kernels = [
            layer.kernel
            for layer in model.layers
            if layer.trainable
            and (
                isinstance(layer, keras.layers.Dense)
                or (type(layer) is keras.layers.Conv2D and layer.kernel_size == (1, 1))
            )
        ]

    def apply(self, step: int) -> None:
        """Zeroes what the schedule asks for after `step` training steps."""
        share = schedule(step, self._steps, self._sparsity)
        for kernel in self._kernels:
            values = kernel.numpy()
            count = round(share * values.size)
            if count:
                smallest = np.argpartition(np.abs(values), count - 1, axis=None)[:count]
                values.reshape(-1)[smallest] = 0
                kernel.assign(values)

    @property
    def zeros(self) -> float:
        """Share of zeros in the pruned kernels."""
        values = [kernel.numpy() for kernel in self._kernels]
        return float(sum((v == 0).sum() for v in values) / sum(v.size for v in values))
