"""The problems that a camera's pictures may have.

Imports nothing heavy: settings name them, and are read before the process is set up for NumPy and
OpenCV.
"""

from typing import Literal, get_args

ImageProblem = Literal[
    "frozen", "wrong_size", "too_dark", "too_bright", "covered", "blurred", "shifted"
]
# The one that comes first names the reason of the verdict.
PROBLEMS: tuple[ImageProblem, ...] = get_args(ImageProblem)
