"""Request bodies in memory: read once, multipart split without copying more than each part.

Werkzeug's own multipart parser takes ten times as long for a camera's frame, and spools larger
files to disk, which an SD card should not see for each frame.
"""

import io
import re
import time
from collections.abc import Iterator, Mapping
from typing import IO, Any, cast

from flask import Flask, Request, Response, request
from multipart import MultipartError, MultipartSegment, ParserLimitReached, PushMultipartParser
from werkzeug.datastructures import FileStorage, Headers, MultiDict
from werkzeug.exceptions import BadRequest, RequestEntityTooLarge, RequestTimeout
from werkzeug.formparser import FormDataParser
from werkzeug.http import parse_options_header
from werkzeug.sansio.utils import get_content_length
from werkzeug.utils import cached_property

from server.api.bodies import Answer, Body
from server.errors import OverloadedError

FORM = "multipart/form-data"
# As nearly every client writes it; the characters are those of RFC 2046, 5.1.1.
BOUNDARY = re.compile(FORM + r"; ?boundary=([A-Za-z0-9'()+_,./:=?-]{1,70})")
Form = MultiDict[str, str]
Files = MultiDict[str, FileStorage]


def boundary_of(content_type: str) -> str:
    """The boundary that a Content-Type of multipart/form-data names; '' without, and for others."""
    if found := BOUNDARY.fullmatch(content_type):
        return found[1]
    kind, options = parse_options_header(content_type)
    return options.get("boundary", "") if kind.lower() == FORM else ""


def parts(
    body: bytes, boundary: str, max_parts: int
) -> Iterator[tuple[MultipartSegment, bytes, str | None]]:
    """The parts of a multipart/form-data body (RFC 7578): what is said of each, its bytes, and a
    field's text; None for a file's.

    Raises BadRequest where the body is not one, RequestEntityTooLarge beyond `max_parts`.
    """
    segment, data = None, b""
    try:
        with PushMultipartParser(boundary, max_segment_count=max_parts) as parser:
            for event in parser.parse(body):
                if isinstance(event, MultipartSegment):
                    segment, data = event, b""
                elif event:
                    data = data + event if data else bytes(event)
                elif segment is not None:
                    field = segment.filename is None
                    text = data.decode(segment.charset or "utf-8", "replace") if field else None
                    if text is not None:
                        text.encode()  # some charsets can name halves of a letter
                    yield segment, data, text
    except ParserLimitReached as error:
        if "segment count" in str(error):
            raise RequestEntityTooLarge from None
        raise BadRequest(f"a part's header in the multipart body is too long: {error}") from None
    except (MultipartError, LookupError, ValueError) as error:
        # The latter two are those of a field's charset, which may be anything.
        raise BadRequest(f"the multipart body is malformed: {error}") from None


def split_multipart(body: bytes, boundary: str, max_parts: int) -> tuple[Form, Files]:
    """The fields and files of a multipart/form-data body. Errors are those of `parts`."""
    form, files = Form(), Files()
    for segment, data, text in parts(body, boundary, max_parts):
        if text is not None:
            form.add(segment.name, text)
        else:
            stream, headers = io.BytesIO(data), Headers(segment.headerlist)
            file = FileStorage(stream, segment.filename, segment.name, headers=headers)
            files.add(segment.name, file)
    return form, files


class FormParser(FormDataParser):
    """Flask's form parser, with the multipart part replaced."""

    def parse(
        self,
        stream: IO[bytes],
        mimetype: str,
        content_length: int | None,
        options: dict[str, str] | None = None,
    ) -> tuple[IO[bytes], Form, Files]:
        if mimetype != FORM:
            return super().parse(stream, mimetype, content_length, options)
        boundary = (options or {}).get("boundary", "")
        if not boundary:
            raise BadRequest("the multipart body's Content-Type names no boundary")
        form, files = split_multipart(stream.read(), boundary, self.max_form_parts or 1000)
        return io.BytesIO(), form, files


# A client still sending when its connection closes sees a broken pipe instead of its answer.
MOST_DRAINED = 64 << 20
# Seconds; each of many pieces may come in time, and all together still take hours.
LONGEST_DRAINED = 10.0
CHUNK = 1 << 18


def whole_body(environ: Mapping[str, Any], most: int | None) -> bytes:
    """The body of a WSGI request, at most `most` bytes. Raises RequestEntityTooLarge,
    BadRequest where it ends too early, RequestTimeout and OverloadedError as `server.api.bodies`
    says."""
    length = get_content_length(
        environ.get("CONTENT_LENGTH"), environ.get("HTTP_TRANSFER_ENCODING")
    )
    if length is None:
        # A chunked body tells its length by ending, so one byte more than may be is read.
        body: bytes = environ["wsgi.input"].read(-1 if most is None else most + 1)
        length = len(body)
    elif most is not None and length > most:
        raise RequestEntityTooLarge
    else:
        body = environ["wsgi.input"].read(length)
    if most is not None and len(body) > most:
        raise RequestEntityTooLarge
    if len(body) != length:
        raise BadRequest(f"the request's body ended after {len(body)} of {length} bytes")
    return body


class FrameRequest(Request):
    """A request whose body is read in one piece, and whose files stay in memory."""

    form_data_parser_class = FormParser

    @cached_property
    def stream(self) -> IO[bytes]:
        """The body. Errors are those of `whole_body`."""
        return io.BytesIO(whole_body(self.environ, self.max_content_length))

    def drain(self) -> bool:
        """Reads and forgets a body that no one read, so that the client gets to read the answer
        and may go on using its connection. At most 64 MiB and for 10 s; False where there was more,
        and for a body that does not come: the connection has to close."""
        chunked = "HTTP_TRANSFER_ENCODING" in self.environ
        if "stream" in self.__dict__ or not (self.content_length or chunked):
            return True
        left = min(self.content_length or MOST_DRAINED, MOST_DRAINED)
        end = time.monotonic() + LONGEST_DRAINED
        try:
            while time.monotonic() < end:
                chunk = self.environ["wsgi.input"].read(min(left, CHUNK))
                left -= len(chunk)
                if not chunk or not left:
                    return True
        except (RequestTimeout, OverloadedError):
            pass
        return False


def take_bodies(app: Flask, max_bytes: int) -> None:
    """Makes `app` read bodies of at most `max_bytes` in memory, and drain those it refuses."""
    app.request_class = FrameRequest
    app.config["MAX_CONTENT_LENGTH"] = max_bytes
    app.config["MAX_FORM_MEMORY_SIZE"] = max_bytes

    @app.after_request
    def drain(response: Response) -> Response:
        body = request.environ.get("wsgi.input")
        if (
            isinstance(body, Body)
            and response.mimetype == "application/json"
            and not response.is_streamed
        ):
            headers = (pair for pair in response.headers if pair[0] != "Content-Length")
            body.decide(Answer(response.status_code, tuple(headers), response.get_data()))
        if not cast(FrameRequest, request).drain():
            response.headers["Connection"] = "close"
        return response
