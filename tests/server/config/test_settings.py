"""Settings: precedence, strictness, and that the README tells all of them."""

from pathlib import Path

import msgspec
import pytest

from server.config.load import describe_settings, load, to_environ, write_settings
from server.config.settings import Settings
from server.errors import SettingsError
from server.recognition.manifest import Recipe


def toml(folder: Path, text: str) -> Path:
    path = folder / "lineside.toml"
    path.write_text(text, "utf-8")
    return path


def test_without_any_source_the_defaults_hold() -> None:
    assert load({}) == Settings()


def test_flags_override_environment_overrides_file(tmp_path: Path) -> None:
    """The file yields to the environment, and the environment to flags."""
    file = toml(tmp_path, 'port = 1001\nhost = "0.0.0.0"\nmodel = "file"\n')
    environ = {"LINESIDE_PORT": "1002", "LINESIDE_MODEL": "environment", "HOME": "/root"}
    loaded = load(environ, {"port": "1003"}, file)
    assert (loaded.host, loaded.model, loaded.port) == ("0.0.0.0", "environment", 1003)


def test_environment_names_the_file_and_flag_another(tmp_path: Path) -> None:
    """The environment may name the file and a flag another."""
    (tmp_path / "flag").mkdir()
    named = toml(tmp_path, "port = 1001")
    flagged = toml(tmp_path / "flag", "port = 1002")
    environ = {"LINESIDE_CONFIG": str(named)}
    assert load(environ).port == 1001
    assert load(environ, {}, flagged).port == 1002


def test_every_setting_can_be_given_by_every_source(tmp_path: Path) -> None:
    for row in describe_settings():
        value = {"recipe": '{"width": 32, "height": 32}'}.get(row.name, row.default)
        if value == "":
            continue
        from_environment = load({row.env: value})
        assert load({}, {row.name: value}) == from_environment
        literals = {"text": f'"{value}"', "table": "{width = 32, height = 32}"}
        literals["list"] = str(value.split(","))
        literal = literals.get(row.type, value)
        if " or " in row.type and row.type != "true or false":
            literal = f'"{value}"'
        assert load({}, {}, toml(tmp_path, f"{row.name} = {literal}")) == from_environment


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("image_formats", "JPEG,GIF", "image_formats can't be GIF: name one or more of JPEG, PNG"),
        ("image_formats", "", "image_formats can't be empty: name one or more"),
        ("significant_bits", "8", "significant_bits can't be 8: say 9 to 16, or 0"),
    ],
)
def test_what_images_can_not_be_stops_the_start(name: str, value: str, says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load({f"LINESIDE_{name.upper()}": value})
    assert str(caught.value).startswith(says)


def test_image_formats_of_any_case_and_once() -> None:
    assert load({"LINESIDE_IMAGE_FORMATS": "tiff, Jpeg,TIFF"}).image_formats == ("TIFF", "JPEG")
    assert load({}).image_formats == ("JPEG", "PNG", "BMP", "WEBP")
    assert "tiff" not in load({}).image_limits.formats


def test_a_recipe_is_a_table_or_json(tmp_path: Path) -> None:
    want = Recipe(width=32, height=24, scale=(1.0, 2.0, 3.0))
    text = msgspec.json.encode(want).decode()
    assert load({"LINESIDE_RECIPE": text}).recipe == want
    table = "[recipe]\nwidth = 32\nheight = 24\nscale = [1.0, 2.0, 3.0]\n"
    assert load({}, {}, toml(tmp_path, table)).recipe == want


BAD_VALUES = [
    ("port", "eighty", "a whole number from 1 to 65535"),
    ("port", "0", "from 1"),
    ("port", "65536", "to 65535"),
    ("interpreters", "-1", "from 0"),
    ("interpreters", "1.5", "a whole number"),
    ("max_body_mb", "0", "above 0"),
    ("log_level", "loud", "loud"),
    ("log_format", "xml", "xml"),
    ("latest_only", "perhaps", "true or false"),
    ("models", "", "at least 1 character"),
    ("recipe", "{", "ends too early"),
    ("significant_bits", "17", "16"),
    ("recipe", '{"width": 32}', "height"),
    ("recipe", '{"widht": 32}', "recipe.widht is not known here, did you mean recipe.width"),
]


@pytest.mark.parametrize(("name", "value", "says"), BAD_VALUES)
def test_an_unusable_value_is_named_with_its_source(name: str, value: str, says: str) -> None:
    env, flag = f"LINESIDE_{name.upper()}", "--" + name.replace("_", "-")
    for source, attempt in (
        (env, lambda: load({env: value})),
        (flag, lambda: load({}, {name: value})),
    ):
        with pytest.raises(SettingsError) as caught:
            attempt()
        message = str(caught.value)
        assert message.startswith(f"{source} can't be {value!r}")
        assert says in message
        assert "\n" not in message


@pytest.mark.parametrize(
    "line", ['port = "8080"', "port = 8080.5", "port = true", "host = 1", "latest_only = 1"]
)
def test_the_file_is_typed_strictly(tmp_path: Path, line: str) -> None:
    file = toml(tmp_path, line)
    with pytest.raises(SettingsError, match=f"{file}: {line.split()[0]} can't be"):
        load({}, {}, file)


def test_an_unknown_key_is_named_with_its_source(tmp_path: Path) -> None:
    file = toml(tmp_path, "prot = 1")
    for source, attempt in (
        (f"{file}: prot", lambda: load({}, {}, file)),
        ("LINESIDE_PROT", lambda: load({"LINESIDE_PROT": "1"})),
        ("--prot", lambda: load({}, {"prot": "1"})),
    ):
        with pytest.raises(SettingsError, match="there is no such setting") as caught:
            attempt()
        assert str(caught.value).startswith(source)


def test_an_unusable_file_is_named(tmp_path: Path) -> None:
    absent = tmp_path / "absent.toml"
    with pytest.raises(SettingsError, match=r"absent\.toml does not exist"):
        load({}, {}, absent)
    with pytest.raises(SettingsError, match="can't be read"):
        load({}, {}, tmp_path)
    with pytest.raises(SettingsError, match="is not valid TOML"):
        load({}, {}, toml(tmp_path, "port = "))
    with pytest.raises(SettingsError, match="nested too deeply"):
        load({}, {}, toml(tmp_path, "port = " + "[" * 5000))
    with pytest.raises(SettingsError, match="more digits than any setting takes"):
        load({}, {}, toml(tmp_path, "port = " + "9" * 5000))
    for value in ("0x" + "f" * 5000, f"[0x{'f' * 5000}]"):
        with pytest.raises(SettingsError, match="port can't be"):
            load({}, {}, toml(tmp_path, f"port = {value}"))
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match="can't be read"):
        load({}, {}, binary)


def test_every_setting_is_described() -> None:
    rows = describe_settings()
    assert [row.name for row in rows] == list(Settings.__struct_fields__)
    for row in rows:
        assert row.help
        assert row.type


@pytest.mark.parametrize(
    ("name", "value"), [("cache_url", "redis:/:s3cret@10.0.0.5/0"), ("webhook_secret", 123456789)]
)
def test_a_secret_is_not_told(tmp_path: Path, name: str, value: object) -> None:
    text = f'{name} = "{value}"' if isinstance(value, str) else f"{name} = {value}"
    with pytest.raises(SettingsError) as caught:
        load({}, {}, toml(tmp_path, text))
    assert f"{name} can't be that" in str(caught.value)
    assert str(value) not in str(caught.value)


@pytest.mark.parametrize("items", [("a,b", " c", ""), ('["x', "y"), ("[::1]", "b"), ()])
def test_lists_of_any_items_reach_other_processes(items: tuple[str, ...]) -> None:
    settings = Settings(preload=items)
    assert load(to_environ(settings)) == settings


def test_list_that_is_no_json_is_named() -> None:
    for text in ('["a"', '["a", 1]'):
        with pytest.raises(SettingsError, match="LINESIDE_PRELOAD can't be"):
            load({"LINESIDE_PRELOAD": text})


def test_file_nested_too_deeply_is_not_changed(tmp_path: Path) -> None:
    file = toml(tmp_path, "port = " + "[" * 5000)
    with pytest.raises(SettingsError, match="nested too deeply"):
        write_settings(file, {"port": 1})
