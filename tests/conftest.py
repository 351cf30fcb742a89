"""Fixtures of all tests: the shipped bundle, tiny models, and live servers."""

import gc
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from clients import client_models, clients
from detector_bundles import detector_bundles
from hypothesis import HealthCheck, settings
from job_workers import departed
from server_process import ROOT, SHARED, LiveServer, live_server
from tiny_models import colors, tiny_model

__all__ = ["client_models", "clients", "colors", "departed", "detector_bundles", "tiny_model"]

# How long an example takes says nothing on a machine that others use too.
settings.register_profile("lineside", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("lineside")

# Files that take longest, under tests/. They begin first, so that no worker of pytest-xdist is busy
# alone at the end. The first one waits for an installation in a fresh clone.
LONGEST_FILES = (
    "test_readme.py",
    "convert/training/test_train.py",
    "server/api/test_openapi.py",
    "server/api/test_console_tabs.py",
    "server/jobs/test_workers.py",
    "server/store/test_damaged_data.py",
    "server/jobs/test_kills.py",
    "deploy/test_watched.py",
    "server/api/test_journal.py",
    "server/process/test_stopping.py",
    "server/store/test_crashes.py",
    "server/api/recognize/test_caching.py",
    "server/http/body/test_slow_bodies.py",
    "convert/anomaly/test_train_anomaly.py",
    "scripts/test_fleet_upgrade.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the longest files first."""
    order = {ROOT / "tests" / name: number for number, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep the garbage collector off what is imported, while tests are collected and later.

    Modules stay to the end. TensorFlow's are most of all objects, and each of its conversions would
    walk them all."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session")
def shipped() -> Path:
    """The folder of the bundle that ships with the project."""
    return ROOT / "models" / "parts" / "1"


@pytest.fixture(scope="session")
def sample(shipped: Path) -> bytes:
    """A shipped sample frame of a scratched part."""
    return next((shipped / "samples").glob("scratched*.jpg")).read_bytes()


@pytest.fixture(scope="session")
def server(shipped: Path) -> Iterator[LiveServer]:
    """A live server with the shipped bundle and settings as they come."""
    with live_server(models=ROOT / "models", model="parts", traced=True) as running:
        yield running


@pytest.fixture(scope="session")
def colors_server(colors: Path) -> Iterator[LiveServer]:
    """A live server with the tiny bundle `colors` and settings as they come."""
    with live_server(models=colors, traced=True) as running:
        yield running


@pytest.fixture(scope="session")
def frames() -> Path:
    """Photographs in ../shared/frames; skips where a machine has none."""
    folder = SHARED / "frames"
    if not folder.is_dir():
        pytest.skip("../shared/frames is not on this machine")
    return folder
