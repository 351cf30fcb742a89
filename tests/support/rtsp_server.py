"""An RTSP camera for tests: GStreamer's RTSP server, by the system's Python (`/usr/bin/python3`).

Arguments: width, height, frames a second, codec (h264 or jpeg). Writes its port to standard output.
Each frame is grey and shows in BITS stripes when it was made, in milliseconds of the monotonic
clock: white is 1, black is 0, the highest bit first.
"""

import sys
import time

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

BITS = 32
ENCODERS = {
    "h264": "openh264enc gop-size={gop} complexity=low bitrate=2000000 ! rtph264pay name=pay0 pt=96"
    " config-interval=-1",
    "jpeg": "jpegenc quality=90 ! rtpjpegpay name=pay0 pt=26",
}


def picture(stamp: int, width: int, height: int) -> bytes:
    """A frame in I420: `stamp` in stripes above, grey below."""
    stripe = width // BITS
    row = b"".join(
        (b"\xeb" if stamp >> (BITS - 1 - bit) & 1 else b"\x10") * stripe for bit in range(BITS)
    )
    row += b"\x80" * (width - len(row))
    above = height // 2
    return row * above + b"\x80" * (width * (height - above) + width * height // 2)


class Camera(GstRtspServer.RTSPMediaFactory):
    """Makes the stream of all clients."""

    def __init__(self, width: int, height: int, rate: int, codec: str) -> None:
        super().__init__()
        self._size, self._rate = (width, height), rate
        caps = f"video/x-raw,format=I420,width={width},height={height},framerate={rate}/1"
        encoder = ENCODERS[codec].format(gop=rate)
        self.set_launch(f"( appsrc name=source is-live=true format=time caps={caps} ! {encoder} )")
        self.set_shared(True)

    def feed(self, media: GstRtspServer.RTSPMedia) -> None:
        source = media.get_element().get_child_by_name("source")

        def push() -> bool:
            now = time.monotonic_ns()  # GStreamer's own clock
            buffer = Gst.Buffer.new_wrapped(picture(now // 1_000_000, *self._size))
            buffer.pts = max(0, now - source.get_base_time())
            return bool(source.emit("push-buffer", buffer) == Gst.FlowReturn.OK)

        GLib.timeout_add(1000 // self._rate, push)


def main() -> None:
    Gst.init(None)
    width, height, rate, codec = sys.argv[1:]
    factory = Camera(int(width), int(height), int(rate), codec)
    factory.connect("media-configure", lambda camera, media: camera.feed(media))
    server = GstRtspServer.RTSPServer.new()
    server.set_address("127.0.0.1")
    server.set_service("0")
    server.get_mount_points().add_factory("/line", factory)
    server.attach(None)
    print(server.get_bound_port(), flush=True)
    GLib.MainLoop().run()


main()
