"""The console's words: all of them are there in Chinese too."""

import json
import re
from pathlib import Path

from server.observe.alert_rules import RULES

FOLDER = Path(__file__).parents[3] / "server" / "console"
# Of the API's page, which is in English, as the API is.
ENGLISH = ("docs.js", "docs.html")
IN_SCRIPT = re.compile(r'\bt\(\s*"((?:[^"\\]|\\.)*)",?\s*\)')
IN_PAGE = re.compile(r"<(\w+)((?:\s[^>]*)?\sdata-t(?:=\"([^\"]*)\")?[^>]*)>([^<]*)<", re.DOTALL)


def chinese() -> set[str]:
    text = (FOLDER / "words-zh.js").read_text()
    return {json.loads(f'"{key}"') for key in re.findall(r'"((?:[^"\\]|\\.)*)":', text)}


def of_scripts() -> set[str]:
    scripts = [path for path in FOLDER.rglob("*.js") if path.name not in ENGLISH]
    return {
        json.loads(f'"{word}"') for path in scripts for word in IN_SCRIPT.findall(path.read_text())
    }


def of_page() -> set[str]:
    words = set()
    for _, attributes, names, text in IN_PAGE.findall((FOLDER / "index.html").read_text()):
        words |= {
            match[1]
            for name in names.split()
            if (match := re.search(rf'\b{name}="([^"]*)"', attributes))
        }
        words |= set() if names else {text.strip()}
    return words


def test_every_word_is_there_in_chinese() -> None:
    known = chinese()
    assert of_scripts() - known == set()
    assert of_page() - known == set()
    assert {rule.name for rule in RULES} - known == set()
