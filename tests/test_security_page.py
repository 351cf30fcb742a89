"""The tests that docs/security.md names are there."""

import ast
import re

import pytest
from server_process import ROOT

NAMED = re.findall(
    r"`((?:server|scripts)/[\w/]+\.py)(?:::(\w+))?`",
    (ROOT / "docs" / "security.md").read_text("utf-8"),
)


def test_page_names_tests() -> None:
    assert len(NAMED) > 30


@pytest.mark.parametrize(("file", "name"), NAMED, ids=str)
def test_named_test_is_there(file: str, name: str) -> None:
    tree = ast.parse((ROOT / "tests" / file).read_text("utf-8"))
    found = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert not name or name in found
