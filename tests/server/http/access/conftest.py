"""What the tests of access share."""

from pathlib import Path

import pytest
from sites import Site


@pytest.fixture(scope="module")
def site(colors: Path, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A site with a key of each right."""
    return Site(colors, tmp_path_factory.mktemp("site"))
