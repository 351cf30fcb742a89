"""The tables `[[camera]]`: cameras that the server reads by itself."""

from collections.abc import Mapping
from typing import Annotated, Literal, get_args

from msgspec import Meta, structs

from server.config.tables import SECRET, Table, check_url, key_help
from server.errors import SettingsError

MOTION_KEYS = ("motion_region", "motion_threshold", "settle_s", "motion_fps")


class CameraTable(Table, frozen=True, kw_only=True):
    """The keys that all cameras have."""

    model: Annotated[str, key_help("model that its frames are for; empty: the default one")] = ""
    product: Annotated[
        str, key_help("product that its frames show; empty: the active one, if model is empty too")
    ] = ""
    trigger: Annotated[
        Literal["time", "motion", "post"],
        key_help(
            "what asks for a frame: time (every interval_s), motion (each time what moved has come"
            " to rest), or post (only POST /v1/cameras/NAME/trigger, a table [[trigger]] and"
            " trigger_camera, which work with the others too)"
        ),
    ] = "time"
    interval_s: Annotated[
        float,
        key_help(
            "time between two frames; a frame that is older than that is not judged",
            "s",
            ge=0.02,
            le=86_400,
        ),
    ] = 1.0
    stall_s: Annotated[
        float,
        key_help("silence of the camera after which its reader is replaced", "s", ge=0.5, le=600),
    ] = 5.0
    region: Annotated[
        tuple[float, ...],
        key_help(
            "part of the frame that is judged and kept: x, y, width and height, as shares of the"
            " frame; empty: all of it"
        ),
    ] = ()
    motion_region: Annotated[
        tuple[float, ...],
        key_help(
            "part of the frame in which motion is looked for: x, y, width and height, as shares of"
            " the frame; empty: all of it"
        ),
    ] = ()
    motion_threshold: Annotated[
        float, key_help("share of that part that changes if something moves", gt=0, lt=1)
    ] = 0.02
    settle_s: Annotated[
        float, key_help("time without motion after which it has come to rest", "s", ge=0.05, le=60)
    ] = 0.4
    motion_fps: Annotated[
        float, key_help("frames that are looked at for motion", "1/s", ge=0.2, le=60)
    ] = 5.0

    def __post_init__(self) -> None:
        defaults = {field.name: field.default for field in structs.fields(CameraTable)}
        for key in MOTION_KEYS:
            if self.trigger != "motion" and getattr(self, key) != defaults[key]:
                raise SettingsError(f'{key} needs trigger = "motion"')
        for key in ("region", "motion_region"):
            _check_part(key, getattr(self, key))


def _check_part(key: str, part: tuple[float, ...]) -> None:
    """Raise SettingsError if `part` is set and is no part of a frame."""
    x, y, width, height = part if len(part) == 4 else (0, 0, 0, 0)
    inside = min(x, y) >= 0 and min(width, height) > 0 and max(x + width, y + height) <= 1
    if part and not inside:
        raise SettingsError(
            f"{key} should be [x, y, width, height], each a share of the frame, such as"
            " [0.25, 0.25, 0.5, 0.5]"
        )


class NetworkCamera(CameraTable, frozen=True, kw_only=True):
    """The keys of cameras that have an address, and may ask for a password."""

    url: Annotated[str, key_help("its URL", "", SECRET)]
    username: Annotated[str, key_help("user at the camera; empty: none")] = ""
    password: Annotated[str, key_help("its password", "", SECRET)] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.password and not self.username:
            raise SettingsError("password needs a username")
        check_url(self.url, ": set username and password")


def _url(scheme: str, text: str) -> Meta:
    """Return the description of a URL of `scheme`, with TLS or without. It has no user or password:
    those would be shown."""
    return key_help(
        text,
        "",
        SECRET,
        pattern=rf"^{scheme}s?:/{{2}}[!-~]+(?!\n)$",
        extra_json_schema={"description": f"a URL of {scheme} or {scheme}s: HOST[:PORT]/..."},
    )


class HttpCamera(NetworkCamera, frozen=True, kw_only=True, tag="http"):
    """A JPEG at a URL, fetched for each frame."""

    url: Annotated[str, _url("http", "URL of a snapshot; basic and digest authentication")]


class MjpegCamera(NetworkCamera, frozen=True, kw_only=True, tag="mjpeg"):
    """An endless multipart answer of JPEGs."""

    url: Annotated[
        str,
        _url("http", "URL of JPEGs, one after the other (multipart/x-mixed-replace)"),
    ]


class RtspCamera(NetworkCamera, frozen=True, kw_only=True, tag="rtsp"):
    """A network camera's video stream."""

    url: Annotated[str, _url("rtsp", "URL of the stream, which is read over TCP")]


class UsbCamera(CameraTable, frozen=True, kw_only=True, tag="usb"):
    """A Video4Linux device."""

    device: Annotated[str, key_help("its device file", min_length=1)] = "/dev/video0"
    width: Annotated[int, key_help("width asked of it; 0: its own", "pixels", ge=0)] = 0
    height: Annotated[int, key_help("height asked of it; 0: its own", "pixels", ge=0)] = 0


class VideoCamera(CameraTable, frozen=True, kw_only=True, tag="video"):
    """A video file, one frame after the other."""

    path: Annotated[str, key_help("the file", min_length=1)]
    loop: Annotated[bool, key_help("begin again at its end")] = False


class FolderCamera(CameraTable, frozen=True, kw_only=True, tag="folder"):
    """The newest file that comes into a folder."""

    path: Annotated[
        str,
        key_help(
            "the folder; of the image files that come after the start the newest is taken, once"
            " its size stays the same",
            min_length=1,
        ),
    ]
    part_from_name: Annotated[
        bool, key_help("the part of a frame is the file's name, if no trigger names one")
    ] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trigger == "motion":
            raise SettingsError("trigger of a folder can't be motion: each file is judged by time")


AnyCamera = HttpCamera | MjpegCamera | RtspCamera | UsbCamera | VideoCamera | FolderCamera
Cameras = tuple[AnyCamera, ...]
CAMERA_KINDS: Mapping[str, type[CameraTable]] = {
    str(kind.__struct_config__.tag): kind for kind in get_args(AnyCamera)
}
