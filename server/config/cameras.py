"""The tables `[[camera]]`: cameras that the server reads by itself."""

from typing import Annotated, Literal

from msgspec import Meta

from server.config.tables import SECRET, Table, check_url, key_help
from server.errors import SettingsError


class CameraTable(Table, frozen=True, kw_only=True):
    """The keys that all cameras have."""

    model: Annotated[str, key_help("model that its frames are for; empty: the default one")] = ""
    product: Annotated[
        str, key_help("product that its frames show; empty: the active one, if model is empty too")
    ] = ""
    trigger: Annotated[
        Literal["time", "post"],
        key_help(
            "what asks for a frame: time (every interval_s), or post (only"
            " POST /v1/cameras/NAME/trigger, a table [[trigger]] and trigger_camera, which work"
            " with time too)"
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


class NetworkCamera(CameraTable, frozen=True, kw_only=True):
    """The keys of cameras that have an address, and may ask for a password."""

    url: Annotated[str, key_help("its URL", "", SECRET)]
    username: Annotated[str, key_help("user at the camera; empty: none")] = ""
    password: Annotated[str, key_help("its password", "", SECRET)] = ""

    def __post_init__(self) -> None:
        if self.password and not self.username:
            raise SettingsError("password needs a username")
        check_url(self.url, ": set username and password")


def _url(schemes: str, text: str) -> Meta:
    """Return the description of a URL. It has no user or password: those would be shown."""
    return key_help(
        text,
        "",
        SECRET,
        pattern=rf"^({schemes})://[!-~]+$",
        extra_json_schema={"description": f"{schemes.replace('|', ':// or ')}://HOST[:PORT]/..."},
    )


class HttpCamera(NetworkCamera, frozen=True, kw_only=True, tag="http"):
    """A JPEG at a URL, fetched for each frame."""

    url: Annotated[str, _url("https?", "URL of a snapshot; basic and digest authentication")]


class MjpegCamera(NetworkCamera, frozen=True, kw_only=True, tag="mjpeg"):
    """An endless multipart answer of JPEGs."""

    url: Annotated[
        str,
        _url("https?", "URL of JPEGs, each with its length (multipart/x-mixed-replace)"),
    ]


class RtspCamera(NetworkCamera, frozen=True, kw_only=True, tag="rtsp"):
    """A network camera's video stream."""

    url: Annotated[str, _url("rtsps?", "URL of the stream, which is read over TCP")]


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


Cameras = tuple[HttpCamera | MjpegCamera | RtspCamera | UsbCamera | VideoCamera | FolderCamera, ...]
