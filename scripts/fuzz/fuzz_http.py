"""Spoils valid requests of every route and reports each answer that should not be.

    nice python scripts/fuzz/fuzz_http.py --count 500000 --seed 1

Against applications in this process, one that is open and one that asks for keys, or with `--url`
against a server. What it reports, a line of JSON each: a status 500, a status or code that the
README's table does not have, an error in another shape than its route's, a library's words, an
answer that took more than 2 s of processor time (of a server: 10 s). Ends with 1 if there was any.
"""

import argparse
import http.client
import io
import itertools
import json
import logging
import random
import shutil
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from fuzz.answer_checks import documented, fault_of
from fuzz.http_seeds import FIELDS, Request, Seeds
from server.http.wsgi import normal

ROOT = Path(__file__).parents[2]
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE")
NASTY = (
    *("", " ", "0", "-1", "1e400", "1" * 400, "NaN", "null", "true", "[]", "{}", "\x00", "\x7f"),
    *("ü", "日本", "\ud83d", "%", "%zz", "%00", "%c3%28", "..", "../..", "/", "//", ":", ";", ","),
    *('"', "'", "\\", "a\nb", "a\rb", "a" * 300, "ls_" + "x" * 43, "eyJhbGciOiJub25lIn0.e30."),
    *("1.5", "9" * 20, "-0", "0x10", "1_0", "\u0661", "2026-13-45T99:99:99Z", "2026-01-01", "+"),
    *("http://[", "http://[::1", "//", "file:///etc/passwd", "http://a:b@c:99999/", "$.x", "`"),
)
# Pieces that are read of an answer that goes on for long: the first line and the first event.
STREAM_PIECES = 2
DISPOSITION, CHARSETS = "Content-Disposition: form-data", ("utf-8", "idna", "hex")
FORM_FIELDS = ("file", "image", "_charset_", *FIELDS)
HEADERS: dict[str, tuple[str, ...]] = {
    "Content-Type": (
        *("", "application/json", "text/plain", "image/*", "multipart/form-data", "a" * 3000),
        *("multipart/form-data; boundary=", 'multipart/form-data; boundary="', "application/json;"),
        *("application/json; charset=punycode", "application/x-www-form-urlencoded", "/", ";;;"),
        *("application/x-www-form-urlencoded; charset=utf-16", "multipart/form-data; boundary=ü"),
        *("multipart/form-data; boundary*0=a; boundary*1=b", "multipart/mixed; boundary=x"),
        *("application/json; " + "a=b; " * 500, "multipart/form-data; boundary*=idna''x"),
    ),
    "Content-Encoding": ("gzip", "deflate", "br", "identity", "gzip, gzip", "x-gzip", "\xff"),
    "Content-Length": ("0", "1", "5", "99999999"),
    "Origin": ("http://[", "null", "http://127.0.0.1:8080", "https://evil.example", "http://:x"),
    "Host": ("", "[", "[::1]:8080", "a:b:c", "evil.example", "127.0.0.1:99999", "ü", "a b"),
    "Sec-Fetch-Site": ("cross-site", "same-origin", "none", "x"),
    "Authorization": ("", "Bearer", "Bearer ", "Basic \xff", "Bearer ls_x", "Bearer eyJ.e30.", "x"),
    "X-API-Key": ("", "ls_" + "x" * 43, "\xff", "a" * 9000),
    "X-Request-Id": ("ok-1", "", "a" * 65, "\xff", "ls_x"),
    "traceparent": ("00-" + "a" * 32 + "-" + "b" * 16 + "-01", "ff--", "0" * 9000),
    "tracestate": ("a=1", "a" * 600, "\xff"),
    "X-Forwarded-Prefix": ("/a", "//b", "/" + "a" * 99, "x"),
    "X-Forwarded-For": ("1.2.3.4", "," * 2000, "[::"),
    "Cookie": ("a=b; " * 2000, '"', "=;" * 2000, "a=\xb6; lineside=x"),
    "Accept": ("text/csv", ",;q=" * 1000, "*/*;q=x", "application/jsonl", ";", "a/b," * 2000),
    "Cache-Control": ("no-cache", "max-age=x", "max-age=" + "9" * 30, "no-store, ,=,", '"'),
    "If-None-Match": ("*", '"x"', 'W/"', "," * 2000),
    "If-Modified-Since": ("x", "Thu, 01 Jan 1970 00:00:00 GMT", "Thu, 99 Jan 99999 00:00:00 GMT"),
    "Range": ("bytes=0-1", "bytes=99999999-", "bytes=-", "lines=1-2", "bytes=" + "0-0," * 1000),
    "Inference-Header-Content-Length": ("0", "2", "99", "-1", "x", "1" * 5000, "\u0661"),
    "Access-Control-Request-Method": ("POST", "\xff"),
    "Access-Control-Request-Headers": ("authorization", "," * 1000),
    "Expect": ("x",),
    "TE": ("trailers",),
}


class Answer(NamedTuple):
    """headers: by lower-case name. seconds: of the processor, or of a server's answer."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float


Ask = Callable[[Request], Answer]


class Spoiler:
    """Draws requests, most of them spoilt in one to four ways, by `rng`."""

    def __init__(self, rng: random.Random, seeds: Seeds) -> None:
        self._rng = rng
        self._seeds = seeds
        self.mix: Counter[str] = Counter()
        self._ways: tuple[Callable[[Request], Request], ...] = (
            self._method,
            self._path,
            self._query,
            self._header,
            self._header,
            self._body,
            self._bytes,
            self._part,
        )

    def draw(self) -> Request:
        """One of them. Its Content-Length is right most of the time."""
        request = self._seeds.draw()
        for _ in range(self._rng.choice((0, 1, 1, 1, 2, 2, 3, 4))):
            way = self._rng.choice(self._ways)
            self.mix[way.__name__.lstrip("_")] += 1
            request = way(request)
        if "Content-Length" in request.headers and self._rng.random() < 0.95:
            request.headers["Content-Length"] = str(len(request.body))
        return request

    def _method(self, request: Request) -> Request:
        return request._replace(method=self._rng.choice(METHODS))

    def _path(self, request: Request) -> Request:
        rng, segments = self._rng, request.path.split("/")
        at = rng.randrange(1, len(segments)) if len(segments) > 1 else 0
        match rng.randrange(4):
            case 0:
                segments[at] = rng.choice(NASTY)
            case 1:
                segments.insert(at, rng.choice(NASTY))
            case 2:
                segments[at] += rng.choice(NASTY)
            case _:
                del segments[at:]
        path = "/" + "/".join(segments).lstrip("/")
        return request._replace(path=path.encode("utf-8", "replace").decode("latin-1"))

    def _query(self, request: Request) -> Request:
        rng = self._rng
        pairs = request.query.split("&") if request.query else []
        for _ in range(rng.choice((1, 1, 2, 5, 200))):
            name = rng.choice((*FIELDS, *NASTY))
            value = rng.choice((*NASTY, *FIELDS.get(name, ())))
            quoted = quote(value, errors="replace") if rng.random() < 0.7 else value
            pairs.insert(rng.randint(0, len(pairs)), f"{name}={quoted}")
        query = "&".join(pairs).encode("utf-8", "replace").decode("latin-1")
        return request._replace(query=_one_line(query).replace(" ", "+"))

    def _header(self, request: Request) -> Request:
        name = self._rng.choice(tuple(HEADERS))
        if self._rng.random() < 0.1:
            request.headers.pop(name, None)
            return request
        value = self._rng.choice((*HEADERS[name], self._rng.choice(NASTY)))
        # Some senders write Latin-1, which may be no UTF-8.
        codec = self._rng.choice(("utf-8", "utf-8", "latin-1"))
        text = value.encode(codec, "replace").decode("latin-1")
        request.headers[name] = _one_line(text).strip()
        return request

    def _body(self, request: Request) -> Request:
        """Another value in JSON or in a form; else other bytes."""
        kind = request.headers.get("Content-Type", "")
        if "json" in kind:
            try:
                value = json.loads(request.body)
            except ValueError:
                return self._bytes(request)
            text = json.dumps(self._other(value))
            return request._replace(body=text.encode())
        if "urlencoded" in kind:
            pairs = [
                f"{self._rng.choice((*FIELDS, *NASTY))}={self._rng.choice(NASTY)}"
                for _ in range(self._rng.choice((1, 3, 150)))
            ]
            return request._replace(body="&".join(pairs).encode("utf-8", "replace"))
        return self._bytes(request)

    def _other(self, value: Any) -> Any:
        """`value` with a part of it changed."""
        rng = self._rng
        if isinstance(value, dict) and value and rng.random() < 0.8:
            name = rng.choice(list(value))
            match rng.randrange(4):
                case 0:
                    return {**value, rng.choice((*FIELDS, *NASTY)): self._value()}
                case 1:
                    return {key: item for key, item in value.items() if key != name}
                case _:
                    return {**value, name: self._other(value[name])}
        if isinstance(value, list) and value and rng.random() < 0.7:
            at = rng.randrange(len(value))
            return [*value[:at], self._other(value[at]), *value[at + rng.randint(0, 1) :]]
        return self._value()

    def _value(self) -> Any:
        rng = self._rng
        deep: Any = []
        for _ in range(rng.choice((1, 2, 20, 900))):
            deep = [deep]
        plain = (None, True, False, 0, -1, 1.5, 10**30, -(2**63), float("nan"), float("inf"), deep)
        return rng.choice((*plain, {}, {"b64": "x"}, [[1, 2], [3]], [1, "a"], rng.choice(NASTY)))

    def _bytes(self, request: Request) -> Request:
        rng, body = self._rng, bytearray(request.body)
        for _ in range(rng.choice((1, 1, 3, 20))):
            at = rng.randint(0, len(body))
            match rng.randrange(5):
                case 0:
                    del body[at:]
                case 1:
                    del body[at : at + rng.randint(1, 8)]
                case 2:
                    body[at:at] = rng.choice(NASTY).encode("utf-8", "surrogatepass")
                case 3:
                    body[at:at] = rng.randbytes(rng.randint(1, 8))
                case _:
                    body[at : at + 1] = rng.randbytes(1)
        return request._replace(body=bytes(body))

    def _part(self, request: Request) -> Request:
        """Another header line in a part of a form."""
        rng = self._rng
        line = rng.choice(
            (
                *("Content-Type: text/plain; charset=punycode", "Content-Type: \n", "X: \n y", ":"),
                *("Content-Disposition: form-data", "Content-Length: 3", "Content-Length: -1"),
                *(
                    "Content-Type: text/plain; charset=" + rng.choice(NASTY),
                    "\xff: \xff",
                    " folded",
                ),
                f'{DISPOSITION}; name="{rng.choice(FORM_FIELDS)}"; filename="{rng.choice(NASTY)}"',
                f"{DISPOSITION}; name=file; filename*={rng.choice(CHARSETS)}''{rng.choice(NASTY)}",
            )
        )
        added = b"\r\n" + line.encode("utf-8", "surrogatepass")
        at = request.body.find(b"\r\n\r\n")
        if at < 0:
            return self._bytes(request)
        where = at if rng.random() < 0.5 else request.body.find(b"\r\n")
        return request._replace(body=request.body[:where] + added + request.body[where:])


def _one_line(text: str) -> str:
    """`text` as an HTTP server lets it through: without control characters."""
    return "".join(letter for letter in text if letter >= " " and letter != "\x7f")


def _endless(content_type: str) -> bool:
    """Return whether only the beginning of an answer of this type is read, since it goes on."""
    return content_type.startswith("text/event-stream")


def in_process(app: Callable[..., Any]) -> Ask:
    """Asks a WSGI application."""

    def ask(request: Request) -> Answer:
        names = {name: f"HTTP_{name.upper().replace('-', '_')}" for name in request.headers}
        names |= {"Content-Type": "CONTENT_TYPE", "Content-Length": "CONTENT_LENGTH"}
        environ: dict[str, Any] = {
            **{names[name]: value for name, value in request.headers.items()},
            "REQUEST_METHOD": request.method,
            "PATH_INFO": request.path,
            "QUERY_STRING": request.query,
            "SCRIPT_NAME": "",
            "REMOTE_ADDR": "127.0.0.1",
            "SERVER_NAME": "127.0.0.1",
            "SERVER_PORT": "8080",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            "wsgi.input": io.BytesIO(request.body),
            "wsgi.input_terminated": True,
        }
        starts: list[tuple[str, list[tuple[str, str]]]] = []
        started = time.thread_time()
        pieces = app(environ, lambda status, headers, *_: starts.append((status, headers)))
        stream = starts and _endless(dict(starts[-1][1]).get("Content-Type", ""))
        try:
            body = b"".join(itertools.islice(pieces, STREAM_PIECES) if stream else pieces)
        finally:
            if close := getattr(pieces, "close", None):
                close()
        status, headers = starts[-1]
        seconds = time.thread_time() - started
        header_map = {name.lower(): value for name, value in headers}
        return Answer(int(status.split()[0]), header_map, body, seconds)

    return ask


def over_http(url: str) -> Ask:
    """Asks a server, by a new connection each time; what it does not take as HTTP counts as well
    answered."""
    host = urlsplit(url).netloc

    def ask(request: Request) -> Answer:
        target = quote(request.path.encode("latin-1"), safe="/:") + (
            f"?{quote(request.query.encode('latin-1'), safe='&=+%')}" if request.query else ""
        )
        connection = http.client.HTTPConnection(host, timeout=60)
        started = time.monotonic()
        try:
            connection.putrequest(request.method, target, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers.items():
                connection.putheader(name, value.encode("latin-1"))
            connection.endheaders(request.body)
            if request.headers.get("Content-Length") != str(len(request.body)):
                connection.sock.shutdown(socket.SHUT_WR)  # no more will come
            response = connection.getresponse()
            stream = _endless(response.getheader("Content-Type", ""))
            body = response.readline() if stream else response.read()
        except (http.client.HTTPException, ConnectionError):
            return Answer(200, {}, b"", 0.0)
        finally:
            connection.close()
        header_map = {name.lower(): value for name, value in response.getheaders()}
        if response.status in (400, 408, 414, 431) and "x-request-id" not in header_map:
            return Answer(200, {}, b"", 0.0)  # the HTTP server's own
        return Answer(response.status, header_map, body, (time.monotonic() - started) / 5)

    return ask


def applications(folder: Path) -> list[Ask]:
    """Two applications over a copy of the shipped models: an open one, and one that asks for
    keys."""
    from server.app import create_app
    from server.config.settings import Settings
    from server.store.keys import RIGHTS, add_key

    logging.getLogger("lineside").addHandler(logging.NullHandler())
    asks = []
    for name in ("open", "closed"):
        data = folder / name
        shutil.copytree(ROOT / "models", data / "models")
        keys = data / "keys.jsonl"
        key = add_key(keys, "fuzz", RIGHTS, now=datetime.now(UTC)) if name == "closed" else ""
        settings = Settings(
            models=str(data / "models"),
            data=str(data / "data"),
            keys_file=str(keys),
            preload=("iris",),
            job_workers=0,
            samples="on",
            cache=bool(key),
            max_wait_ms=60_000.0,
            cors_origins=("http://127.0.0.1:8080",) if key else (),
            rate_per_key="9999999/second" if key else "",
        )
        app = create_app(settings)
        ask = in_process(app.wsgi_app)
        asks.append(with_key(ask, key) if key else ask)
    return asks


def with_key(ask: Ask, key: str) -> Ask:
    """Return `ask`, which sends `key` if a request has no credential."""

    def ask_with_key(request: Request) -> Answer:
        if "Authorization" not in request.headers:
            request.headers.setdefault("X-API-Key", key)
        return ask(request)

    return ask_with_key


def findings(
    asks: list[Ask], count: int, seed: int, mix: Counter[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Asks `count` spoilt requests in turns; yields what is wrong. mix: counts the ways in which
    they were spoilt, and the statuses that came."""
    rng = random.Random(seed)
    seeds = Seeds(rng, ROOT / "models")
    spoiler, pairs = Spoiler(rng, seeds), documented()
    for number in range(count):
        request = spoiler.draw()
        try:
            answer = rng.choice(asks)(request)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is reported
            yield report(number, request, f"raised {error!r}")
            continue
        if mix is not None:
            mix[f"status {answer.status}"] += 1
        if answer.status == 202 and (job := json.loads(answer.body)):
            seeds.ids = [*seeds.ids[-20:], str(job.get("job_id") or job.get("task_id"))]
        path = normal(request.path)
        fault = ""
        if request.method != "HEAD":
            fault = fault_of(path, answer.status, answer.headers, answer.body, pairs)
        if answer.seconds > 2:
            fault = fault or f"{answer.seconds:.1f} s"
        if fault:
            yield report(number, request, fault, answer)
    if mix is not None:
        mix.update(spoiler.mix)


def report(
    number: int, request: Request, fault: str, answer: Answer | None = None
) -> dict[str, Any]:
    """One finding, with what makes it again."""
    return {
        "number": number,
        "fault": fault,
        "request": [*request[:4], repr(request.body[:2000])],
        "answer": [answer.status, repr(answer.body[:500])] if answer else None,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=10_000, help="requests")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--url", help="a server to ask, such as http://127.0.0.1:8080")
    args = parser.parse_args(arguments)
    faults, mix = 0, Counter[str]()
    # The applications write to it until this process ends.
    with tempfile.TemporaryDirectory(prefix="fuzz-http-", ignore_cleanup_errors=True) as folder:
        asks = [over_http(args.url)] if args.url else applications(Path(folder))
        for finding in findings(asks, args.count, args.seed, mix):
            faults += 1
            print(json.dumps(finding), flush=True)
    print(json.dumps({"count": args.count, "faults": faults, "mix": mix}), flush=True)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
