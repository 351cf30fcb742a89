"""Texts with places for values, `$name` or `${name}` (string.Template), checked before their use.

A text that begins with `{` or `[` is JSON: each value is put in as JSON, so that no value can end
its string or add a field. In any other text values are plain, without control characters.
"""

import json
import re
from collections.abc import Collection, Mapping
from string import Template

import msgspec

from server.values.wording import unknown_name

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class TextTemplate:
    """The template `text`, whose places may have the names `known`. Raises ValueError, with a
    sentence that begins with `key`, if a name is unknown or the text can't be used."""

    def __init__(self, text: str, known: Collection[str], key: str) -> None:
        self._template = Template(text)
        self.is_json = text.lstrip()[:1] in ("{", "[")
        if not self._template.is_valid():
            raise ValueError(f"{key} has a $ without a name: write $$ for the character itself")
        self.names = tuple(dict.fromkeys(self._template.get_identifiers()))
        for name in self.names:
            if name not in known:
                raise ValueError(
                    f"{key}: {unknown_name('$' + name, ['$' + each for each in known])}"
                )
        if self.is_json:
            self._check_json(key)

    def _check_json(self, key: str) -> None:
        try:
            for value in (None, 'a"b'):
                json.loads(self.render(dict.fromkeys(self.names, value)))
        except ValueError:
            raise ValueError(
                f'{key} is no JSON: write places without quotes, such as {{"part": $part}}'
            ) from None

    def render(self, values: Mapping[str, object]) -> str:
        """Return the text with `values` in its places."""
        put = _json if self.is_json else plain_text
        return self._template.substitute({name: put(values[name]) for name in self.names})


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def plain_text(value: object) -> str:
    """Return `value` as text without control characters; '' for none."""
    if isinstance(value, bool):
        return str(value).lower()
    return CONTROL.sub(" ", "" if value is None else str(value))
