"""MobileNetV2 as a classifier to be trained: its first weights, its fixed layers, its pruning."""

import re
from typing import Any, Literal

import numpy as np

from convert.errors import ConvertError
from convert.sources.imagenet import ALPHAS, LARGEST, SIZES, WEIGHTS_URL, require_file
from convert.terminal import suppress_native_output, tensorflow
from convert.training.light import Light, even_light_layer

Weights = Literal["imagenet", "imagenet-224", "slice", "none"]
# Those whose features are trained already, so that only the head is missing.
PRETRAINED: tuple[Weights, ...] = ("imagenet", "imagenet-224")
HEAD = "head"
# Of pretrained batch normalisation: whether it learns as the layers do, or stays as it is.
Normalisation = Literal["learn", "keep"]
# Of MobileNetV2. The first three and the stem before them find edges and textures, which every
# picture has; leaving them as they are makes an epoch a quarter shorter.
BLOCKS, FROZEN_BLOCKS = 17, 3
# How much of the moving statistics a step leaves. Keras's 0.999 is for ImageNet's epochs of
# thousands of steps: after the thirty of a small folder they would still be those of the start, and
# the validation would judge another network than the one that learns.
STATISTICS_MOMENTUM = 0.9


def build(classes: int, alpha: float, size: int, weights: Weights, light: Light = "as-is") -> Any:
    """Make a `keras.Model`: [batch, size, size, 3] to logits [batch, classes], its head all zeros.

    weights: `imagenet` is Keras's for this alpha and size, `imagenet-224` for this alpha and 224
    pixels, which fit any size; `slice` takes of those of alpha 1.0 and 224 the channels that this
    alpha has; `none` is random. light: of the pictures that MobileNetV2 is shown. Raises
    ConvertError if the weights are not available.
    """
    keras = tensorflow().keras
    base = backbone(keras, alpha, size, weights if weights in PRETRAINED else "none", light)
    if weights == "slice":
        _slice(backbone(keras, 1.0, 224, "imagenet"), base)
    head = keras.layers.Dense(classes, kernel_initializer="zeros", name=HEAD)
    return keras.Model(base.input, head(base.output))


def with_softmax(model: Any) -> Any:
    """Return the same layers with probabilities instead of logits as output."""
    keras = tensorflow().keras
    return keras.Model(model.input, keras.layers.Softmax(name="probabilities")(model.output))


def cross_entropy(targets: Any, logits: Any) -> Any:
    """Return the cross entropy of each frame in nats, [n]. targets: shares of the classes; both
    [n, classes]."""
    losses = tensorflow().keras.losses
    return losses.categorical_crossentropy(targets, logits, from_logits=True)


def freeze(
    model: Any,
    *,
    pretrained: bool,
    blocks: int = FROZEN_BLOCKS,
    normalisation: Normalisation = "keep",
) -> None:
    """Set which layers learn.

    Of pretrained weights the stem and the first `blocks` of BLOCKS stay as they are, if that is not
    0, and so does the batch normalisation with `keep`. `base(x, training=False)` would not hold it:
    `fit` overrides that, and the statistics of a small batch then replace those of ImageNet. With
    `learn` they are meant to. Random weights all learn.
    """
    keras = tensorflow().keras
    tuned = not pretrained or blocks == 0
    keeps = pretrained and normalisation == "keep"
    first = f"block_{blocks}_expand" if blocks < BLOCKS else "Conv_1"
    for layer in model.layers:
        tuned = tuned or layer.name == first
        normalises = isinstance(layer, keras.layers.BatchNormalization)
        if normalises and not keeps:
            layer.momentum = STATISTICS_MOMENTUM
        layer.trainable = tuned and not (keeps and normalises)


def backbone(keras: Any, alpha: float, size: int, weights: Weights, light: Light = "as-is") -> Any:
    """MobileNetV2 without its classifier, a `keras.Model` [batch, size, size, 3] -> [batch,
    channels], of pretrained weights or else random. Raises ConvertError if there are no such
    weights or they can't be had."""
    file = None
    if size < 32:
        raise ConvertError(f"--size {size} is too small: MobileNetV2 takes at least 32 pixels")
    if weights in PRETRAINED:
        trained = LARGEST if weights == "imagenet-224" else size
        if alpha not in ALPHAS or trained not in SIZES:
            raise ConvertError(
                f"Keras has no ImageNet weights for alpha {alpha:g} at {trained} pixels: alpha is"
                f" one of {', '.join(f'{a:g}' for a in ALPHAS)} and the size one of"
                f" {', '.join(map(str, SIZES))}; --weights slice or none needs no such file"
            )
        name = backbone_file(alpha, trained)
        # By its path: Keras reads KERAS_HOME once, when it is imported.
        file = str(require_file(name, WEIGHTS_URL + name))
    with suppress_native_output():
        image = keras.Input((size, size, 3))
        shown = even_light_layer(keras)(image) if light == "even" else image
        base = keras.applications.MobileNetV2(
            input_tensor=shown, alpha=alpha, include_top=False, pooling="avg", weights=file
        )
        # Its own input is a list of one.
        return keras.Model(image, base.output)


def backbone_file(alpha: float, size: int) -> str:
    """Return the name of the file of Keras's ImageNet weights without the classifier."""
    return f"mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{alpha}_{size}_no_top.h5"


def _slice(source: Any, target: Any) -> None:
    """Copy to `target` the channels of `source` that count most, layer by layer.

    Channels that are added together (the ends of blocks linked by a residual) keep one choice;
    in an expansion they are those with the largest sum of absolute weights.
    """
    kept = np.arange(3)
    ends: dict[int, Any] = {}
    for new in target.layers:
        if not new.weights:
            continue
        old = source.get_layer(new.name).get_weights()
        shapes = [tuple(w.shape) for w in new.weights]
        if re.search(r"depthwise$", new.name):
            new.set_weights([old[0][:, :, kept]])
        elif len(shapes) == 1:
            width = shapes[0][-1]
            strength = np.abs(old[0]).sum(axis=(0, 1, 2))
            choice = np.sort(np.argsort(-strength, kind="stable")[:width])
            if new.name.endswith("project"):
                choice = ends.setdefault(old[0].shape[-1], choice)
            new.set_weights([old[0][:, :, kept][..., choice]])
            kept = choice
        else:
            new.set_weights([w[kept] for w in old])


def schedule(step: int, steps: int, sparsity: float) -> float:
    """Return the share of zeros, 0..sparsity, that a kernel should have after `step` of `steps`.

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
        """Zero what the schedule asks for after `step` training steps."""
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
        """Return share of zeros in the pruned kernels."""
        values = [kernel.numpy() for kernel in self._kernels]
        return float(sum((v == 0).sum() for v in values) / sum(v.size for v in values))
