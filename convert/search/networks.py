"""The networks that a search chooses from."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Network:
    """A MobileNetV2 as it would be served: its width, the sides of its input in pixels, and its
    quantisation, one of `quantize.MODES`."""

    alpha: float
    size: int
    mode: str = "dynamic"

    def __str__(self) -> str:
        return f"{self.alpha:g}@{self.size} {self.mode}"
