"""Arrays of tables in the settings: strict, and every fault names the table and its key."""

import tomllib
from pathlib import Path
from typing import Annotated

import pytest

from server.config.tables import (
    FILE,
    SECRET,
    Table,
    check_files,
    describe_tables,
    key_help,
    read_tables,
    table_kinds,
)
from server.errors import SettingsError


class Bell(Table, frozen=True, kw_only=True, tag="bell"):
    """A table of one kind."""

    host: Annotated[str, key_help("where it hangs", min_length=1)]
    port: Annotated[int, key_help("its port", ge=1, le=65535)] = 80
    every_s: Annotated[float, key_help("time between rings", "s", gt=0)] = 1.0
    password: Annotated[str, key_help("its password", "", SECRET)] = ""
    labels: Annotated[tuple[str, ...], key_help("labels for which it rings")] = ()
    certificate: Annotated[str, key_help("its certificate", "", FILE)] = ""


class Lamp(Table, frozen=True, kw_only=True, tag="lamp"):
    """A table of another kind, with a check of its own."""

    colour: Annotated[str, key_help("its colour")] = "red"
    port: Annotated[int, key_help("number of its switch")] = 1

    def __post_init__(self) -> None:
        if self.colour == "infrared":
            raise SettingsError("colour can't be infrared: nobody sees it")


ARRAY = Annotated[tuple[Bell | Lamp, ...], key_help("bells and lamps")]
KINDS = table_kinds(ARRAY)


def read(text: str) -> tuple[Table, ...]:
    return read_tables(tomllib.loads(text)["signal"], "signal", KINDS, "line.toml")


def test_kinds_are_those_of_the_type() -> None:
    assert table_kinds(ARRAY) == {"bell": Bell, "lamp": Lamp}
    assert table_kinds(Annotated[tuple[str, ...], key_help("texts")]) == {}
    assert table_kinds(Annotated[int, key_help("a number")]) == {}


def test_tables_are_read_from_toml_and_json() -> None:
    tables = read(
        '[[signal]]\nname = "hall"\nkind = "bell"\nhost = "h"\nevery_s = 2\nlabels = ["a"]\n'
        '[[signal]]\nname = "gate"\nkind = "lamp"\n'
    )
    assert tables == (Bell(name="hall", host="h", every_s=2.0, labels=("a",)), Lamp(name="gate"))
    text = '[{"name": "gate", "kind": "lamp"}]'
    assert read_tables(text, "signal", KINDS, "LINESIDE_SIGNAL") == (Lamp(name="gate"),)
    assert read_tables("", "signal", KINDS, "LINESIDE_SIGNAL") == ()


BELL = '[[signal]]\nname = "hall"\nkind = "bell"\nhost = "h"\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (BELL + "prot = 1", "hall: prot is not known here, did you mean port?"),
        (BELL + "port = 70000", "hall: port should be a whole number from 1 to 65535, not 70000"),
        (BELL + 'port = "80"', "hall: port should be a whole number from 1 to 65535, not '80'"),
        (BELL + "labels = [1]", "hall: labels[0] should be text, not 1"),
        (BELL + "password = 4711", "hall: password can't be that: it should be text"),
        (BELL + BELL, "hall: another table has this name"),
        ('[[signal]]\nname = "hall"\nkind = "bell"', "hall: host is missing: it should be text"),
        ('[[signal]]\nname = "hall"', "hall: kind is missing: it may be bell or lamp"),
        ('[[signal]]\nname = "hall"\nkind = "horn"', "hall: kind can't be 'horn': it may be bell"),
        ('[[signal]]\nkind = "lamp"', "number 1: name is missing: it should be 1 to 64 of"),
        ('[[signal]]\nkind = "lamp"\nname = "a b"', "a b: name should be 1 to 64 of"),
        ('[[signal]]\nkind = "lamp"\nname = "l"\ncolour = "infrared"', "l: colour can't be infra"),
    ],
)
def test_a_fault_names_source_table_and_key(text: str, says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read(text)
    message = str(caught.value)
    assert message.startswith(f"line.toml: [[signal]] {says}")
    assert "4711" not in message
    assert "\n" not in message


@pytest.mark.parametrize("value", [{"name": "hall"}, "{", "[1]", 3, [3]])
def test_anything_but_tables_is_refused(value: object) -> None:
    with pytest.raises(SettingsError, match=r"^line.toml"):
        read_tables(value, "signal", KINDS, "line.toml")


def test_a_missing_file_names_table_and_key(tmp_path: Path) -> None:
    absent = tmp_path / "absent.pem"
    with pytest.raises(SettingsError) as caught:
        check_files("signal", (Bell(name="hall", host="h", certificate=str(absent)),))
    assert str(caught.value).startswith("[[signal]] hall: certificate can't be")
    absent.write_text("there now")
    check_files("signal", (Bell(name="hall", host="h", certificate=str(absent)), Lamp(name="l")))


def test_keys_are_described_once_with_their_kinds() -> None:
    described = list(describe_tables(KINDS))
    switches = [(row.kinds, row.default) for row in described if row.name == "port"]
    assert switches == [(("bell",), "80"), (("lamp",), "1")]
    rows = {row.name: row for row in reversed(described)}
    assert list(dict.fromkeys(row.name for row in described)) == [
        *("kind", "name", "host", "port", "every_s", "password", "labels", "certificate", "colour")
    ]
    assert (rows["kind"].type, rows["name"].default, rows["port"].default) == (
        "bell or lamp",
        "required",
        "80",
    )
    assert (rows["name"].kinds, rows["port"].kinds) == ((), ("bell",))
    assert (rows["every_s"].unit, rows["every_s"].type, rows["labels"].type) == (
        "s",
        "number",
        "list",
    )
    assert all(row.help for row in rows.values())
