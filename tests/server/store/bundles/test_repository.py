"""The model repository: what is verified before a version serves, and what is said if it fails."""

import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from images import encode, plain
from tiny_models import COLORS, RECIPE, MakeModel, change_manifest, write_bundle

from server.config.settings import Settings
from server.engine import make_store
from server.errors import BundleError, ModelNotFoundError, NotReadyError
from server.observe.metrics import Metrics
from server.process.startup import preflight
from server.recognition.admission import Admission
from server.recognition.answers import Answer, Options
from server.recognition.manifest import LABELS, MANIFEST, MODEL, Golden, Recipe, read_bundle
from server.recognition.recognizer import Recognizer
from server.store.bundles.folder import ModelsFolder
from server.store.bundles.layout import fingerprint, open_bundle, versions
from server.store.bundles.repository import BundleRepository
from server.store.bundles.version_history import CHOICE_FILE, VersionChoice, write_choice

RED, GREEN = encode(plain((255, 0, 0)), "PNG"), encode(plain((0, 255, 0)), "PNG")


def store_of(models: Path, **settings: Any) -> BundleRepository:
    made = Settings(models=str(models), interpreters=1, wide_interpreter=False, **settings)
    return make_store(made, Metrics(), Admission(1, 4))


def recognize(store: BundleRepository, name: str, data: bytes) -> Answer:
    model = store.load(name)
    assert isinstance(model, Recognizer)
    return model.recognize(data, Options())


LEFT: dict[str, Any] = {"name": "left", "box": [0, 0, 0.5, 1]}


@pytest.fixture
def bundle(tiny_model: MakeModel, tmp_path: Path) -> Path:
    """A good bundle colors/1, for the test to spoil."""
    return write_bundle(tmp_path / "models" / "colors" / "1", tiny_model("colors"))


def test_a_good_bundle_is_read(bundle: Path) -> None:
    read = read_bundle(bundle)
    assert read.model_path == bundle / MODEL
    assert tuple(label.name for label in read.labels) == COLORS
    assert read.manifest.recipe == RECIPE


def test_labels_may_carry_an_outside_id(tiny_model: MakeModel, tmp_path: Path) -> None:
    folder = tmp_path / "colors" / "1"
    read = read_bundle(write_bundle(folder, tiny_model("colors"), ("r0\tred", "green", "b0\tblue")))
    assert [(label.id, label.name) for label in read.labels] == [
        ("r0", "red"),
        ("", "green"),
        ("b0", "blue"),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not a valid bundle.json"),
        ("[]", "is not a valid bundle.json"),
        ('{"name": "colors"}', "version is missing"),
        (b"\xff\xfe", "is not a valid bundle.json"),
    ],
)
def test_an_unreadable_manifest_is_named(bundle: Path, text: str | bytes, says: str) -> None:
    content = text.encode() if isinstance(text, str) else text
    (bundle / MANIFEST).write_bytes(content)
    with pytest.raises(BundleError, match=says) as caught:
        read_bundle(bundle)
    assert str(bundle / MANIFEST) in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"colour": "rgb"}, "colour"),
        ({"version": 0}, "version"),
        ({"version": "1"}, "version"),
        ({"quantization": "int4"}, "int4"),
        ({"task": "detect"}, "detect"),
        ({"name": "../colors"}, "not usable in an address"),
        ({"recipe": {"width": 32, "height": 0}}, "height"),
        ({"recipe": {"width": 32, "height": 32, "resize": "zoom"}}, "zoom"),
        ({"recipe": {"width": 32, "height": 32, "colour": "rgb"}}, "colour"),
        (
            {"recipe": {"width": 32, "height": 32, "tiles": {"columns": 9, "rows": 8}}},
            r"regions and tiles make 72 views of a frame; at most 64 are taken",
        ),
        (
            {
                "recipe": {
                    "width": 32,
                    "height": 32,
                    "resize": "crop",
                    "tiles": {"columns": 2, "rows": 2},
                }
            },
            r"recipe\.tiles needs the resize stretch or letterbox",
        ),
        (
            {"recipe": {"width": 32, "height": 32, "regions": [LEFT, LEFT]}},
            r"recipe\.regions has two regions of one name",
        ),
        (
            {"recipe": {"width": 32, "height": 32, "region": [0, 0, 1, 1], "regions": [LEFT]}},
            r"recipe\.region and recipe\.regions exclude each other",
        ),
        (
            {"recipe": {"width": 32, "height": 32, "regions": [LEFT | {"box": [0, 0.9, 1, 1]}]}},
            r"recipe\.regions\[0\]\.box reaches beyond the frame",
        ),
        (
            {"recipe": {"width": 32, "height": 32, "region": [0.5, 0, 0.6, 1]}},
            r"recipe\.region reaches beyond the frame",
        ),
        ({"verdict": {"accept": ["reed"]}}, "accepts reed"),
        ({"verdict": {"accept": ["red"], "min_probability": 1.5}}, "min_probability"),
        ({"sha256": {}}, "gives no sha256 for model.tflite"),
        ({"golden": [{"file": "a.png", "label": "red", "probability": 1}]}, "sha256 for a.png"),
    ],
)
def test_a_wrong_field_is_named(bundle: Path, fields: dict[str, Any], says: str) -> None:
    change_manifest(bundle, **fields)
    with pytest.raises(BundleError, match=says) as caught:
        read_bundle(bundle)
    assert str(bundle / MANIFEST) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_golden_frames_need_a_recipe(tiny_model: MakeModel, tmp_path: Path) -> None:
    golden = (("golden/frame.png", RED),)
    folder = write_bundle(tmp_path / "colors" / "1", tiny_model("colors"), golden=golden)
    expected = Golden(file="golden/frame.png", label="red", probability=1)
    change_manifest(folder, recipe=None, golden=msgspec.to_builtins((expected,)))
    with pytest.raises(BundleError, match="golden frames but no recipe"):
        read_bundle(folder)


@pytest.mark.parametrize("name", [MODEL, LABELS])
def test_a_damaged_file_is_named(bundle: Path, name: str) -> None:
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    with pytest.raises(BundleError, match="is damaged: its sha256 differs") as caught:
        read_bundle(bundle)
    assert str(bundle / name) in str(caught.value)


@pytest.mark.parametrize("name", [MODEL, LABELS, MANIFEST])
def test_a_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    if name == MANIFEST:
        with pytest.raises(BundleError, match="set `recipe`"):
            open_bundle(bundle)
    with pytest.raises(BundleError, match="is missing") as caught:
        read_bundle(bundle)
    assert str(bundle / name) in str(caught.value)


@pytest.mark.parametrize("name", ["../../secret", "/etc/hostname", "golden/../../../secret"])
def test_a_path_out_of_the_bundle_is_refused(bundle: Path, name: str) -> None:
    digests = msgspec.json.decode((bundle / MANIFEST).read_bytes())["sha256"]
    change_manifest(bundle, sha256={**digests, name: "0" * 64})
    with pytest.raises(BundleError, match="outside the bundle"):
        read_bundle(bundle)


def test_a_link_out_of_the_bundle_is_refused(bundle: Path) -> None:
    (bundle / LABELS).rename(bundle.parent / LABELS)
    (bundle / LABELS).symlink_to(bundle.parent / LABELS)
    with pytest.raises(BundleError, match="outside the bundle"):
        read_bundle(bundle)


def test_an_empty_label_is_counted(tiny_model: MakeModel, tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "colors" / "1", tiny_model("colors"), ("red", " ", "blue"))
    with pytest.raises(BundleError, match=r"labels.txt line 2 is empty"):
        read_bundle(folder)


def test_labels_that_are_not_utf8_are_named(tiny_model: MakeModel, tmp_path: Path) -> None:
    folder = tmp_path / "colors" / "1"
    folder.mkdir(parents=True)
    shutil.copy(tiny_model("colors"), folder / MODEL)
    (folder / LABELS).write_bytes("grün\nrot\nblau\n".encode("latin-1"))
    with pytest.raises(BundleError, match=r"labels.txt line 1 is not a text in UTF-8"):
        open_bundle(folder, RECIPE)


def test_a_bundle_in_another_ones_folder_is_refused(bundle: Path) -> None:
    copied = bundle.with_name("2")
    shutil.copytree(bundle, copied)
    with pytest.raises(BundleError, match="is of colors/1, but lies in colors/2"):
        open_bundle(copied)


def test_versions_are_numbers_newest_first(bundle: Path) -> None:
    for name in ("10", "9", "02", "latest", "0"):
        (bundle.parent / name).mkdir()
    assert versions(bundle.parent.parent) == {"colors": (10, 9, 1)}


def test_a_models_folder_that_holds_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="absent does not exist"):
        versions(tmp_path / "absent")
    (tmp_path / "notes").mkdir()
    with pytest.raises(BundleError, match="holds no bundle"):
        versions(tmp_path)


def test_the_newest_intact_version_is_found(tiny_model: MakeModel, bundle: Path) -> None:
    newer = write_bundle(bundle.with_name("2"), tiny_model("colors"))
    models = bundle.parent.parent
    assert ModelsFolder(models, "colors").verify_default().manifest.version == 2
    (newer / MODEL).write_bytes(b"damaged")
    assert ModelsFolder(models, "colors").verify_default().manifest.version == 1
    (bundle / LABELS).unlink()
    with pytest.raises(BundleError, match=r"colors/2/model\.tflite is damaged"):
        ModelsFolder(models, "colors").verify_default()


@pytest.fixture
def opened() -> Iterator[Counter[str]]:
    """How often files were opened by name, for the length of a test."""
    names, watching = Counter[str](), [True]

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event == "open" and isinstance(arguments[0], str):
            names[arguments[0].rpartition("/")[2]] += 1

    sys.addaudithook(watch)  # for good
    yield names
    watching.clear()


def test_bundle_is_read_once_at_a_start(bundle: Path, opened: Counter[str]) -> None:
    models = bundle.parent.parent
    write_choice(bundle.parent, VersionChoice(1))
    opened.clear()
    settings = Settings(models=str(models), interpreters=1, wide_interpreter=False)
    folder = preflight(settings)
    store = make_store(settings, Metrics(), Admission(1, 4), models=folder)
    assert store.load("colors").manifest.version == 1
    assert [opened[name] for name in (MANIFEST, CHOICE_FILE)] == [1, 1]
    # Once to be hashed, once to be used.
    assert [opened[name] for name in (LABELS, MODEL)] == [2, 2]


def test_bundle_changed_since_preflight_is_read_anew(bundle: Path) -> None:
    folder = ModelsFolder(bundle.parent.parent, "colors")
    assert folder.verify_default().folder == bundle
    (bundle / MODEL).write_bytes(b"damaged")
    with pytest.raises(BundleError, match=r"model\.tflite is damaged"):
        folder.open("colors", 1, fingerprint(bundle))


def test_which_model_is_the_default(tiny_model: MakeModel, bundle: Path) -> None:
    models = bundle.parent.parent
    assert store_of(models, model="parts").default == "colors"
    write_bundle(models / "shapes" / "1", tiny_model("colors"))
    assert store_of(models, model="shapes").default == "shapes"
    with pytest.raises(BundleError, match="holds colors, shapes, but not parts: set `model`"):
        store_of(models, model="parts")


@pytest.mark.parametrize(
    ("kind", "fields", "says"),
    [
        ("colors", {"labels": ("red", "green")}, "has 2 labels but the model answers 3"),
        ("colors", {"labels": ()}, r"has no labels\.txt, which names the model's 3 outputs"),
        ("colors", {"recipe": None}, "no recipe says how"),
        (
            "colors",
            {"recipe": Recipe(width=48, height=32)},
            r"\[32, 48, 3\] .*but the model takes",
        ),
        ("colors", {"recipe": Recipe(width=32, height=32, color="gray")}, r"\[32, 32, 1\] \(h"),
        (
            "int8",
            {"quantization": "int8"},
            "makes float32 .* takes int8 .*: set the recipe's dtype",
        ),
        ("two_outputs", {}, "this model has 1 and 2"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(
    tiny_model: MakeModel, tmp_path: Path, kind: str, fields: dict[str, Any], says: str
) -> None:
    write_bundle(tmp_path / "colors" / "1", tiny_model(kind), **fields)
    store = store_of(tmp_path)
    with pytest.raises(NotReadyError, match=says):
        store.load("colors")
    assert store.ready()[0] is False
    assert store.failures("colors")[0].version == 1
    with pytest.raises(NotReadyError, match=says):
        store.get()


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_quantised_model_uses_its_own_scales(
    tiny_model: MakeModel, tmp_path: Path, dtype: str
) -> None:
    """A quantised model is fed and read by its own scales."""
    recipe = msgspec.structs.replace(RECIPE, dtype=dtype)
    write_bundle(tmp_path / "colors" / "1", tiny_model(dtype), recipe=recipe, quantization="int8")
    answer = recognize(store_of(tmp_path), "colors", GREEN)
    assert answer.label == "green"
    assert answer.probability > 0.98


@pytest.mark.parametrize("output", ["logits", "sigmoid"])
def test_raw_outputs_are_read_as_the_manifest_says(
    tiny_model: MakeModel, tmp_path: Path, output: str
) -> None:
    write_bundle(tmp_path / "colors" / "1", tiny_model(output), output=output)
    answer = recognize(store_of(tmp_path), "colors", GREEN)
    assert answer.label == "green"
    assert answer.probability > 0.99
    assert sum(p.probability for p in answer.predictions) < 1.001


def test_bare_model_is_served_by_the_settings_recipe(tiny_model: MakeModel, tmp_path: Path) -> None:
    """A bare model is served by the recipe of the settings."""
    folder = tmp_path / "bare" / "7"
    folder.mkdir(parents=True)
    shutil.copy(tiny_model("colors"), folder / MODEL)
    (folder / LABELS).write_text("red\ngreen\nblue\n")
    with pytest.raises(NotReadyError, match="set `recipe`"):
        store_of(tmp_path).load("bare")
    answer = recognize(store_of(tmp_path, recipe=RECIPE), "bare", RED)
    assert (answer.model, answer.version, answer.label) == ("bare", 7, "red")


def test_a_half_copied_bundle_is_no_bare_model(
    tiny_model: MakeModel, bundle: Path, tmp_path: Path
) -> None:
    half = bundle.with_name("2")
    shutil.copytree(bundle, half)
    (half / MANIFEST).unlink()
    store = store_of(bundle.parent.parent, recipe=RECIPE)
    assert store.load("colors").manifest.version == 1
    (failure,) = store.failures("colors")
    assert failure.version == 2
    assert "its copy was cut off, or is under way" in failure.reason
    first = tmp_path / "first" / "1"
    write_bundle(first, tiny_model("colors"), golden=(("golden/frame.png", RED),))
    (first / MANIFEST).unlink()
    with pytest.raises(BundleError, match="its copy was cut off"):
        open_bundle(first, RECIPE)


def test_wrong_golden_frame_keeps_the_older_version(tiny_model: MakeModel, bundle: Path) -> None:
    """A wrong golden frame keeps the older version serving."""
    golden = Golden(file="golden/frame.png", label="red", probability=1.0)
    frames = (("golden/frame.png", GREEN),)
    write_bundle(bundle.with_name("2"), tiny_model("colors"), golden=frames)
    change_manifest(bundle.with_name("2"), golden=msgspec.to_builtins((golden,)))
    store = store_of(bundle.parent.parent)
    assert store.load("colors").manifest.version == 1
    (failure,) = store.failures("colors")
    assert failure.version == 2
    assert "should be red at 1.000 but this model says green" in failure.reason
    assert store.get("colors", 1).manifest.version == 1
    with pytest.raises(ModelNotFoundError, match="version 2 of colors is not served; 1 is"):
        store.get("colors", 2)


@pytest.mark.parametrize(("probability", "serves"), [(0.95, True), (0.85, False)])
def test_a_golden_frame_may_be_off_by_its_tolerance(
    tiny_model: MakeModel, tmp_path: Path, probability: float, serves: bool
) -> None:
    folder = tmp_path / "colors" / "1"
    write_bundle(folder, tiny_model("colors"), golden=(("golden/frame.png", RED),))
    golden = Golden(file="golden/frame.png", label="red", probability=probability)
    change_manifest(folder, golden=msgspec.to_builtins((golden,)))
    store = store_of(tmp_path)
    if serves:
        store.load("colors")
    else:
        with pytest.raises(NotReadyError, match="golden frame"):
            store.load("colors")


def test_a_golden_frame_that_is_no_image_is_named(tiny_model: MakeModel, tmp_path: Path) -> None:
    folder = tmp_path / "colors" / "1"
    write_bundle(folder, tiny_model("colors"), golden=(("golden/frame.png", b"no image"),))
    golden = Golden(file="golden/frame.png", label="red", probability=1)
    change_manifest(folder, golden=msgspec.to_builtins((golden,)))
    with pytest.raises(NotReadyError, match=r"golden frame .*frame\.png can't be used"):
        store_of(tmp_path).load("colors")


def test_an_unknown_model_is_not_found(bundle: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="there is no model shapes"):
        store_of(bundle.parent.parent).get("shapes")


def test_a_second_model_is_loaded_when_it_is_asked_for(tiny_model: MakeModel, bundle: Path) -> None:
    write_bundle(bundle.parent.parent / "shapes" / "1", tiny_model("colors"))
    store = store_of(bundle.parent.parent, model="colors")
    assert store.get("shapes").manifest.name == "shapes"
    assert set(store.served()) == {"shapes"}
    with pytest.raises(NotReadyError, match="is being loaded"):
        store.get()
