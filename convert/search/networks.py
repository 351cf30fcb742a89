"""The networks that a search chooses from."""

from dataclasses import dataclass

from convert.training.light import Light


@dataclass(frozen=True, slots=True, order=True)
class Network:
    """A MobileNetV2 as it would be served: its width, the sides of its input in pixels, and its
    quantisation, one of `quantize.MODES`; and the light of the pictures that it is shown."""

    alpha: float
    size: int
    mode: str = "dynamic"
    light: Light = "as-is"

    def __str__(self) -> str:
        name = f"{self.alpha:g}@{self.size} {self.mode}"
        return f"{name} in even light" if self.light == "even" else name
