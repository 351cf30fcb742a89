"""The journal's CSV export: no text in it runs as a formula in a spreadsheet, and none is lost."""

import csv
import io
import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.store.journal.reader import as_csv
from server.store.journal.schema import Row

# A spreadsheet may split a line at any of these, and each of the others begins a formula.
SEPARATORS = ",;|\t\r\n\v\f"
FORMULA = "=+-@\uff1d\uff0b\uff0d\uff20"
BLANKS = ' "\u00a0\u3000\ufeff'
BLANK = msgspec.convert(
    dict.fromkeys(Row.__struct_fields__)
    | {"id": 1, "time": "t", "request_id": "r", "cached": True}
    | {"status": 200},
    Row,
)


def exported(text: str) -> str:
    """The cell of a row whose part is `text`."""
    data = b"".join(as_csv(iter([[msgspec.structs.replace(BLANK, part=text)]])))
    names, row = csv.reader(io.StringIO(data.decode(), newline=""))
    return row[names.index("part")]


@given(st.text(st.sampled_from(SEPARATORS + FORMULA + BLANKS + "'a1(")))
def test_no_cell_begins_a_formula(text: str) -> None:
    cell = exported(text)
    for piece in re.split(f"[{re.escape(SEPARATORS)}]", cell):
        assert not piece.lstrip(BLANKS).startswith(tuple(FORMULA)), cell
    assert not cell.startswith(("\t", "\r", "\n"))


@given(st.text(st.characters(codec="utf-8", exclude_characters="\x00")))
def test_nothing_but_apostrophes_is_added(text: str) -> None:
    cell = exported(text)
    assert cell.replace("'", "") == text.replace("'", "")
    assert len(cell) >= len(text)


@pytest.mark.parametrize(
    "text", ["A-1093", "st4 top", "a+b", "x=y", "1;2", "mail@plant", "a;b-c", "\uff21\uff1d"]
)
def test_harmless_texts_are_left_alone(text: str) -> None:
    assert exported(text) == text
