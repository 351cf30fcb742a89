"""What all tests share: the shipped bundle, tiny models, and live servers."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from clients import client_models, clients
from hypothesis import HealthCheck, settings
from job_workers import departed
from server_process import ROOT, SHARED, LiveServer, live_server
from tiny_models import colors, tiny_model

__all__ = ["client_models", "clients", "colors", "departed", "tiny_model"]

# How long an example takes says nothing on a machine that others use too.
settings.register_profile("lineside", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("lineside")


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
    with live_server(models=ROOT / "models", model="parts") as running:
        yield running


@pytest.fixture(scope="session")
def colors_server(colors: Path) -> Iterator[LiveServer]:
    """A live server with the tiny bundle `colors` and settings as they come."""
    with live_server(models=colors) as running:
        yield running


@pytest.fixture(scope="session")
def frames() -> Path:
    """Photographs in ../shared/frames; skips where a machine has none."""
    folder = SHARED / "frames"
    if not folder.is_dir():
        pytest.skip("../shared/frames is not on this machine")
    return folder
