"""The tables `[[image_health_limits]]`: cameras whose frames have bounds that are not learned."""

from typing import Annotated

from server.config.tables import Table, key_help
from server.recognition.images.problems import ImageProblem


class CameraLimits(Table, frozen=True, kw_only=True, tag="camera"):
    """The limits of one camera's frames; its name is the camera's. 0: learned."""

    ignore: Annotated[
        tuple[ImageProblem, ...],
        key_help(
            "problems that its frames may have, such as frozen for a camera that sends equal"
            " pictures"
        ),
    ] = ()
    brightness_min: Annotated[
        float, key_help("least mean gray level; 0: learned", "0 to 255", ge=0, le=255)
    ] = 0.0
    brightness_max: Annotated[
        float, key_help("highest mean gray level; 0: learned", "0 to 255", ge=0, le=255)
    ] = 0.0
    contrast_min: Annotated[
        float, key_help("least standard deviation of the gray levels; 0: learned", ge=0, le=128)
    ] = 0.0
    sharpness_min: Annotated[
        float, key_help("least sharpness, as a share of the usual; 0: learned", ge=0, le=1)
    ] = 0.0
    shift_max: Annotated[
        float,
        key_help("largest shift, as a share of the longer side; 0: learned", ge=0, le=0.5),
    ] = 0.0
    width: Annotated[int, key_help("width of its frames; 0: learned", "pixels", ge=0)] = 0
    height: Annotated[int, key_help("height of its frames; 0: learned", "pixels", ge=0)] = 0
