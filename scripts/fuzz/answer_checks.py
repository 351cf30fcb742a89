"""Checks every answer of the server: a documented status and code, the shape of its route, and no
library's own words."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from server.api.openapi import declared_routes
from server.http.routes import foreign_pattern

FOREIGN = foreign_pattern(declared_routes())
README = Path(__file__).parents[2] / "README.md"
# Statuses of answers that are no errors.
WELL = frozenset({200, 202, 204, 304, 308})
# Words of Python and the libraries that our own messages never have.
LIBRARY = re.compile(
    r"\b[A-Z][A-Za-z]+(?:Error|Exception|Warning|Interrupt)\b"
    r"|Traceback| object at 0x|<class |codec can't|'(?:utf-?8|ascii|latin-1|charmap)' codec"
    r"|\(\"[^\"]*\", [A-Z]|\('[^']*', [A-Z]|(?<![\w'\"])b['\"](?=\S)| - at `|at `\$|`\$\."
    r"|\[Errno|\[SSL|_ssl\.c|Error -\d+ while|JSON is malformed|Expecting value|Expecting property"
    r"|\(char \d+\)|line \d+ column \d+|invalid literal for|could not convert|NoneType"
    r"|Incorrect padding|Only base64 data|Excess data after|Expected `[a-z]+`|Invalid enum value"
    r"|object missing required|contains unknown field|Input data was truncated"
    r"|argument must be|has no attribute|not subscriptable|unpack requires|math domain"
    r"|The browser \(or proxy\)|werkzeug|msgspec|multipart\.py|site-packages"
    r"|Segment |parser closed"
)
ROW = re.compile(r"^\| ([0-9, ]+) \| ([`A-Z_, ]+) \|", re.M)


def documented() -> frozenset[tuple[int, str]]:
    """The pairs of status and code in the README's table of errors."""
    documented_pairs = set()
    for statuses, codes in ROW.findall(README.read_text("utf-8")):
        numbers, names = re.findall("[0-9]+", statuses), re.findall("[A-Z_]+", codes)
        # A row of several statuses has a code for each.
        pairs = zip(numbers * (len(names) if len(numbers) == 1 else 1), names, strict=True)
        documented_pairs |= {(int(status), code) for status, code in pairs}
    return frozenset(documented_pairs)


def sentence_of(body: bytes) -> tuple[str, str]:
    """The code ('' on routes of other protocols) and the sentence of an error's body. Raises
    ValueError if it has the shape of none."""
    answer = json.loads(body)
    if not isinstance(answer, dict) or set(answer) != {"error"}:
        raise ValueError(f"no error's shape: {body[:200]!r}")
    error = answer["error"]
    if isinstance(error, str):
        return "", error
    if set(error) != {"code", "message", "request_id"}:
        raise ValueError(f"no error's shape: {body[:200]!r}")
    return error["code"], error["message"]


def fault_of(
    path: str,
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    pairs: frozenset[tuple[int, str]],
) -> str:
    """Return the fault of an answer of the route at `path`, whose slashes are single; '' if
    nothing.

    headers: by lower-case name. pairs: as `documented` has them.
    """
    if status in WELL:
        return ""
    if status >= 500 and status != 503:
        return f"status {status}"
    if headers.get("content-type") != "application/json":
        return f"an error as {headers.get('content-type')}"
    try:
        code, sentence = sentence_of(body)
    except ValueError as error:
        return str(error)
    if bool(code) == bool(FOREIGN.match(path)):
        return "the error has the shape of another kind of route"
    if code and (status, code) not in pairs:
        return f"{status} {code} is not documented"
    if not code and status not in {known for known, _ in pairs}:
        return f"status {status} is not documented"
    # A path is repeated as it was sent.
    if match := LIBRARY.search(sentence.replace(path, "")):
        return f"a library's words: {match[0]!r}"
    return "" if sentence else "no sentence"
