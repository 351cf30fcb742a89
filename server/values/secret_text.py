"""Text that may hold a key or token, which is neither logged, kept nor shown."""

import re

# Characters of an error's sentence that the log and the journal keep.
LONGEST_SENTENCE = 300

# API keys (`server.store.keys`) and JSON Web Tokens, should a caller put one where it is logged.
SECRET = re.compile(r"ls_[A-Za-z0-9_-]{20,}|eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")


def hide_secrets(text: str) -> str:
    """`text` without anything that looks like a key or token."""
    return SECRET.sub("(secret)", text)


def looks_secret(text: str) -> bool:
    """Whether a name has what looks like a key or token in it. Unlike in a log line, where too much
    may be hidden, a key is one only where a word begins: a camera may be called wheels_..."""
    # Nearly every name is told from a key by this alone, at a tenth of the time.
    if "ls_" not in text and "eyJ" not in text:
        return False
    return any(
        match.start() == 0 or not text[match.start() - 1].isalnum()
        for match in SECRET.finditer(text)
    )


def kept_sentence(text: str) -> str:
    """An error's sentence as the log and the journal keep it: of bounded length, without keys."""
    text = hide_secrets(text)
    return text if len(text) <= LONGEST_SENTENCE else text[: LONGEST_SENTENCE - 3] + "..."
