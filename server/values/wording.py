"""Names and values in sentences: short, in one line, without keys and tokens. Pure functions."""

import difflib
import re
from collections.abc import Iterable, Mapping

# Characters of a value or a name that a sentence shows; known names that it lists.
SHOWN_CHARS_MAX, LISTED_NAMES_MAX = 64, 30
# Characters of an error's sentence that the log and the journal keep.
SENTENCE_MAX_CHARS = 300

# API keys (`server.store.keys`) and JSON Web Tokens, should a caller put one into a logged field.
SECRET = re.compile(r"ls_[A-Za-z0-9_-]{20,}|eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")


def hide_secrets(text: str) -> str:
    """Returns `text` without anything that looks like a key or token."""
    return SECRET.sub("(secret)", text)


def looks_secret(text: str) -> bool:
    """Returns whether a name has what looks like a key or token in it. A log line may hide too
    much, a name may not: a key counts only at the beginning of a word: a camera may be called
    wheels_..."""
    # This alone rules out nearly every name, at a tenth of the time.
    if "ls_" not in text and "eyJ" not in text:
        return False
    return any(
        match.start() == 0 or not text[match.start() - 1].isalnum()
        for match in SECRET.finditer(text)
    )


def kept_sentence(text: str) -> str:
    """Returns an error's sentence as the log and the journal keep it: of bounded length, without
    keys."""
    text = hide_secrets(text)
    return text if len(text) <= SENTENCE_MAX_CHARS else text[: SENTENCE_MAX_CHARS - 3] + "..."


def unknown_name(name: str, known: Iterable[str], parent: str = "") -> str:
    """Says that there is no `name`, and what was probably meant. parent: such as `parameters`."""
    known, path = list(known), shown_name(join_path(parent, name))
    if not known:
        return f"{path} is not known here: this takes no options"
    near = nearest(name, known)
    meant = f", did you mean {join_path(parent, near)}?" if near else "."
    listed = ", ".join(known[:LISTED_NAMES_MAX]) + ", ..." * (len(known) > LISTED_NAMES_MAX)
    return f"{path} is not known here{meant} Known: {listed}"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Returns the one of `known` that `name` is most like, if it is like any."""
    if len(name) > SHOWN_CHARS_MAX:
        return None
    matches = difflib.get_close_matches(name.lower(), list(known), 1)
    return matches[0] if matches else None


def shown_name(name: str) -> str:
    """Returns a name that a user chose, as a sentence shows it: short, in one line, no key."""
    name = _shortened(hide_secrets(name))
    return name if name.isprintable() and name else repr(name)


def shown(value: object) -> str:
    """Returns `value` as a sentence shows it: short, in one line, without keys."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return repr(_shortened(hide_secrets(value)))
    if isinstance(value, int):
        return (
            str(value)
            if abs(value) < 10**SHOWN_CHARS_MAX
            else f"a number of over {SHOWN_CHARS_MAX} digits"
        )
    if isinstance(value, float):
        return repr(value)
    return "an object" if isinstance(value, Mapping) else "a list"


def counted(count: int, one: str, many: str = "") -> str:
    """Returns `count` with its noun, such as «1 label» and «2 labels»."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _shortened(text: str) -> str:
    return text if len(text) <= SHOWN_CHARS_MAX else text[:SHOWN_CHARS_MAX] + "..."


def join_path(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
