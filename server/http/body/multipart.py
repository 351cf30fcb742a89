"""Forms in memory, multipart ones split without copying more than each part.

Werkzeug's own multipart parser takes ten times as long for a camera's frame, and spools larger
files to disk, which an SD card should not see for each frame.
"""

import io
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, NamedTuple
from urllib.parse import unquote

from flask import Flask, Request, Response, request
from multipart import MultipartError, MultipartSegment, ParserLimitReached, PushMultipartParser
from werkzeug.datastructures import FileStorage, MultiDict
from werkzeug.exceptions import BadRequest, RequestEntityTooLarge
from werkzeug.formparser import FormDataParser
from werkzeug.http import parse_options_header
from werkzeug.utils import cached_property

from server.errors import MissingFieldError
from server.http.body.form_text import CODECS, check_text, codec_of, parse_urlencoded
from server.http.body.reading import drain_body, whole_body
from server.http.errors import Reply
from server.http.routes import FORM, JSON, MULTIPART

# As nearly every client writes it; the characters are those of RFC 2046, 5.1.1.
BOUNDARY = re.compile(MULTIPART + r"; ?boundary=([A-Za-z0-9'()+_,./:=?-]{1,70})")
# Types of parts that are text unless they have a file's name.
TEXT = re.compile(r"text/|application/(json|xml|x-www-form-urlencoded)$|[a-z]+/[^/]*\+(json|xml)$")
# Bytes at the start of a body in which an image has a zero byte, and no form has one.
BINARY_WITHIN = 32
# A quoted string, which the header's end may cut off, or the name of a parameter that names a file,
# as RFC 7578 has it, or by RFC 2231's ways to write and split one.
QUOTED_OR_FILENAME = re.compile(
    r'"(?:\\.|[^\\"])*(?:"|\\?$)|;\s*(filename(?:\*[0-9*]*)?)\s*=', re.I
)
EXTENDED = re.compile(r""";\s*filename\*\s*=\s*"?([A-Za-z0-9_-]*)'[^']*'([^;"\s]*)""", re.I)
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# Header lines of a part, those that go on with the one before included; RFC 7578 knows three.
MOST_LINES = 16
# The field that names the charset of the others (RFC 7578, 4.6), and bytes that it can need.
CHARSET_FIELD, LONGEST_CHARSET = "_charset_", 64
# What the multipart parser finds wrong, in our words.
FAULTS = {
    "Unexpected end of multipart stream (parser closed)": "it ends before its last boundary",
    "Missing Content-Disposition segment header": "a part has no Content-Disposition",
    "Segment Content-Length exceeded": "a part is longer than its Content-Length",
    "Segment size does not match Content-Length header": "a part is shorter than its"
    " Content-Length",
    "Unexpected bytes after boundary": "a boundary is followed by other bytes",
    "Unexpected byte after first boundary": "its first boundary is followed by other bytes",
    "Unexpected byte in front of first boundary": "bytes stand before its first boundary",
    "Empty boundary": "its boundary is empty",
}
Form = MultiDict[str, str]
Files = MultiDict[str, FileStorage]


def boundary_of(content_type: str) -> str:
    """Return the boundary that a Content-Type of multipart/form-data names; '' without, and for
    others.

    Raises InvalidFieldError for a charset that is not taken.
    """
    if plain := BOUNDARY.fullmatch(content_type):
        return plain[1]
    kind, options = parse_options_header(content_type)
    if kind.lower() != MULTIPART:
        return ""
    codec_of(options.get("charset", ""), "the form")
    return options.get("boundary", "")


class Part(NamedTuple):
    """The headers of one part of a form. filename, content_type: '' if none is given. charset: of a
    field's text."""

    name: str
    filename: str
    content_type: str
    charset: str


class _Parser(PushMultipartParser):
    """Takes names in any charset, and no more header lines of a part than MOST_LINES."""

    _lines = 0

    def __init__(self, boundary: str, max_parts: int) -> None:
        super().__init__(
            boundary.encode("utf-8", "replace"),
            max_segment_count=max_parts,
            header_charset="latin1",
        )

    def _on_segment_start(self) -> None:
        self._lines = 0
        super()._on_segment_start()

    def _on_segment_headerline(self, line: bytes) -> None:
        self._lines += 1
        if self._lines > MOST_LINES:
            raise ParserLimitReached("Maximum segment header count exceeded")
        super()._on_segment_headerline(line)


def parts(body: bytes, boundary: str, max_parts: int) -> Iterator[tuple[Part, bytes, str | None]]:
    """Yield the parts of a multipart/form-data body (RFC 7578): the headers of each, its bytes, and
    the text of a field; None for a file.

    A part is a file if it names one, in whichever charset and by either kind of name, or if its
    type is none of text. Raises BadRequest if the body is not a form, RequestEntityTooLarge
    beyond `max_parts`, InvalidFieldError for a field whose charset is not taken or whose text is
    too long.
    """
    if not body:
        return
    segments = list(_split(body, boundary, max_parts))
    default = ""
    for (part, is_file), data in segments:
        if part.name == CHARSET_FIELD and not is_file:
            default = data[:LONGEST_CHARSET].decode("ascii", "replace")
            codec_of(default, "the form")
    for (part, is_file), data in segments:
        if is_file:
            yield part, data, None
            continue
        check_text(part.name, len(data))
        codec = codec_of(part.charset or default, f"the field {part.name}")
        yield part, data, data.decode(codec, "replace")


def _split(body: bytes, boundary: str, max_parts: int) -> Iterator[tuple[tuple[Part, bool], bytes]]:
    segment, data = None, b""
    try:
        with _Parser(boundary, max_parts) as parser:
            for event in parser.parse(body):
                if isinstance(event, MultipartSegment):
                    segment, data = event, b""
                elif event:
                    data = data + event if data else bytes(event)
                elif segment is not None:
                    yield _part(segment), data
    except ParserLimitReached as error:
        if "segment count" in str(error):
            raise RequestEntityTooLarge from None
        raise BadRequest(
            f"the multipart body is malformed: a part's header is longer than 4096 bytes or has"
            f" more than {MOST_LINES // 2} lines"
        ) from None
    except MultipartError as error:
        fault = FAULTS.get(str(error), "a part's header is damaged")
        raise BadRequest(f"the multipart body is malformed: {fault}") from None


def _part(segment: MultipartSegment) -> tuple[Part, bool]:
    """Return the headers of a part, and True if it is a file."""
    filename, content_type = segment.filename, segment.content_type or ""
    if filename is None or "*" in filename:
        filename = _other_filename(segment.header("Content-Disposition", ""), filename)
    is_file = filename is not None or bool(content_type and not TEXT.match(content_type))
    part = Part(
        _text(segment.name or ""), _text(filename or ""), _text(content_type), segment.charset or ""
    )
    return part, is_file


def _other_filename(disposition: str, filename: str | None) -> str | None:
    """Return the file's name if it is written otherwise than as `filename="..."`; None if there is
    none. One in a charset that is not taken stays as it is written: it is only shown."""
    if not any(match[1] for match in QUOTED_OR_FILENAME.finditer(disposition)):
        return filename
    extended = EXTENDED.search(disposition)
    if extended is None:
        return filename or ""
    codec = CODECS.get(extended[1].lower())
    return unquote(extended[2], codec, "replace") if codec else extended[2]


def _text(raw: str) -> str:
    """Return `raw`, read byte by byte, as UTF-8 if it is that; without control characters."""
    if raw.isascii() and raw.isprintable():
        return raw
    with suppress(UnicodeError):
        raw = raw.encode("latin-1").decode()
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", raw)


def split_multipart(body: bytes, boundary: str, max_parts: int) -> tuple[Form, Files]:
    """Return the fields and files of a multipart/form-data body. Errors are those of `parts`."""
    form, files = Form(), Files()
    for part, data, text in parts(body, boundary, max_parts):
        if text is not None:
            form.add(part.name, text)
        else:
            stream = io.BytesIO(data)
            files.add(part.name, FileStorage(stream, part.filename, part.name, part.content_type))
    return form, files


class FormParser(FormDataParser):
    """Flask's form parser, with both of its parts replaced."""

    def parse(
        self,
        stream: IO[bytes],
        mimetype: str,
        content_length: int | None,
        options: dict[str, str] | None = None,
    ) -> tuple[IO[bytes], Form, Files]:
        options = options or {}
        most = self.max_form_parts or 1000
        if mimetype == FORM:
            codec = codec_of(options.get("charset", ""), "the form")
            body = stream.read()
            if b"\0" in body[:BINARY_WITHIN]:
                raise MissingFieldError(
                    "the body is no form, though its Content-Type is"
                    " application/x-www-form-urlencoded, which curl sends by default: send an image"
                    " with Content-Type: image/jpeg, or as the multipart field `file`"
                )
            return io.BytesIO(), Form(parse_urlencoded(body, codec, most)), Files()
        if mimetype != MULTIPART:
            return stream, Form(), Files()
        codec_of(options.get("charset", ""), "the form")
        body, boundary = stream.read(), options.get("boundary", "")
        if body and not boundary:
            raise BadRequest("the multipart body's Content-Type names no boundary")
        form, files = split_multipart(body, boundary, most)
        return io.BytesIO(), form, files


class FrameRequest(Request):
    """A request whose body is read in one piece, and whose files stay in memory."""

    form_data_parser_class = FormParser

    @cached_property
    def stream(self) -> IO[bytes]:
        """Read the body. Errors are those of `whole_body`."""
        return io.BytesIO(whole_body(self.environ, self.max_content_length))


def take_bodies(app: Flask, max_bytes: int) -> None:
    """Make `app` read bodies of at most `max_bytes` in memory, and drain those it refuses."""
    app.request_class = FrameRequest
    app.config["MAX_CONTENT_LENGTH"] = max_bytes
    app.config["MAX_FORM_MEMORY_SIZE"] = max_bytes

    @app.after_request
    def drain(response: Response) -> Response:
        reply = None
        if response.mimetype == JSON and not response.is_streamed:
            headers = [pair for pair in response.headers if pair[0] != "Content-Length"]
            reply = Reply(response.status_code, headers, response.get_data())
        if not drain_body(request.environ, reply):
            response.headers["Connection"] = "close"
        return response
