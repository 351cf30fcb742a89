"""The dependency rule of docs/architecture.md: imports point one way, and there is no circle."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from server_process import ROOT

# Each may import what stands below it. Names in one line do not import each other.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("cli",),
    ("process",),
    ("app",),
    ("grpc",),
    ("api",),
    ("http", "jobs", "line", "engine", "recorders"),
    ("store",),
    ("observe", "config"),
    ("recognition",),
    ("values", "system"),
    ("errors",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# The rooms of the store, which do not import each other.
STORE_ROOMS = ("bundles", "journal", "jobs", "samples", "cache", "crashes")
# Rooms of the server that the workstation's half and the scripts may import.
SHARED_ROOMS = ("recognition", "values", "system", "errors")
TEST_NAME_MAX_LENGTH = 55


def modules(package: str) -> dict[str, Path]:
    """The modules of `package` by dotted name."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


SERVER = modules("server")


def imported(path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """The modules of `known` that the file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            children = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [child if child in known else node.module for child in children]
        yield from (name for name in names if name in known)


def room(module: str) -> str:
    """The second part of a dotted name: `api` of `server.api.models`."""
    return [*module.split("."), ""][1]


@pytest.mark.parametrize("module", [name for name in SERVER if room(name) in LEVEL])
def test_imports_point_one_way(module: str) -> None:
    mine = room(module)
    for other in imported(SERVER[module], SERVER):
        if (theirs := room(other)) and theirs != mine:
            assert LEVEL[theirs] > LEVEL[mine], f"{module} imports {other}"


def test_every_room_of_the_server_has_a_level() -> None:
    rooms = {room(name) for name in SERVER} - {"", "__main__"}
    assert rooms == set(LEVEL)


def test_rooms_of_the_store_stay_apart() -> None:
    for module, path in SERVER.items():
        parts = module.split(".")
        if parts[1:2] != ["store"] or len(parts) < 4:
            continue
        for other in imported(path, SERVER):
            theirs = other.split(".")
            if theirs[1:2] == ["store"] and len(theirs) > 2 and theirs[2] in STORE_ROOMS:
                assert theirs[2] == parts[2], f"{module} imports {other}"


def test_supervisor_imports_next_to_nothing() -> None:
    found = set(imported(SERVER["server.process.supervisor"], SERVER))
    assert found == {"server.system.handover"}


@pytest.mark.parametrize("package", ["convert", "scripts"])
def test_other_half_imports_shared_rooms_alone(package: str) -> None:
    for module, path in modules(package).items():
        # The benchmark runs the server's own parts beside the server.
        if module.startswith(("scripts.bench.", "scripts.fuzz_", "scripts.fuzz.")):
            continue
        for other in imported(path, SERVER):
            assert room(other) in (*SHARED_ROOMS, ""), f"{module} imports {other}"


@pytest.mark.parametrize("package", ["server", "convert"])
def test_imports_have_no_circle(package: str) -> None:
    known = modules(package)
    graph = {name: set(imported(path, known)) - {name} for name, path in known.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " > ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("package", ["server", "convert", "scripts"])
def test_a_folder_holds_a_dozen_files(package: str) -> None:
    for folder in {path.parent for path in modules(package).values()}:
        files = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(files) <= 12, f"{folder.relative_to(ROOT)} holds {len(files)} files"


def test_names_of_tests_have_at_most_55_characters() -> None:
    """Longer ones are sentences: they belong into the docstring."""
    long = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        if len(node.name) > TEST_NAME_MAX_LENGTH
    ]
    assert long == []
