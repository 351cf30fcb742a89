"""The labels of a model: the lines of labels.txt."""

import codecs
import re
import unicodedata

import msgspec

from server.errors import BundleError

# The longest marks first: that of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Unlike str.splitlines, which also ends a line at characters that may stand in a name.
_LINE_END = re.compile(r"\r\n|\r|\n")


class Label(msgspec.Struct, frozen=True):
    """One output of a classifier: `id` is an outside name such as a WordNet id, or ''."""

    name: str
    id: str = ""


def parse_labels(data: bytes, file: str = "labels.txt") -> tuple[Label, ...]:
    """Reads labels in output order from the content of labels.txt, `LABEL` or `ID<TAB>LABEL` a
    line.

    Lines end with LF, CRLF or CR; space around a name, empty lines at the end and a byte order mark
    count for nothing. The text is UTF-8, or what the mark says. Raises BundleError, with the number
    of the line in `file`, for a line that is empty or has a control character, for a label that
    comes twice without ids that tell the two apart, and for another encoding.
    """
    lines = [line.strip() for line in _LINE_END.split(_decode(data, file))]
    while lines and not lines[-1]:
        lines.pop()
    labels: list[Label] = []
    for number, line in enumerate(lines, 1):
        id_, _, name = (part.strip() for part in line.rpartition("\t"))
        if not name:
            raise BundleError(f"{file} line {number} is empty")
        if any(unicodedata.category(char) == "Cc" for char in id_ + name):
            raise BundleError(f"{file} line {number} has a control character: save it as UTF-8")
        labels.append(Label(name, id_))
    _check_different(labels, file)
    return tuple(labels)


def _decode(data: bytes, file: str) -> str:
    mark, encoding = next((each for each in _MARKS if data.startswith(each[0])), (b"", "utf-8"))
    text = data[len(mark) :]
    try:
        return text.decode(encoding)
    except UnicodeDecodeError as error:
        before = text[: error.start].decode(encoding)
        line = len(_LINE_END.findall(before)) + 1
        raise BundleError(
            f"{file} line {line} is not a text in {encoding.upper()}: save the file as UTF-8"
        ) from None


def _check_different(labels: list[Label], file: str) -> None:
    """Raises BundleError for the first label that is no other than one before it: both have the
    same name, and not both an id of their own."""
    lines: dict[str, list[int]] = {}
    for number, label in enumerate(labels, 1):
        same_name = lines.setdefault(label.name, [])
        for other in same_name:
            if not label.id or labels[other - 1].id in ("", label.id):
                raise BundleError(
                    f"{file} has the label {label.name} twice, in lines {other} and {number}:"
                    " rename one, or give each an id, as in ID<TAB>LABEL"
                )
        same_name.append(number)
