"""scripts/fuzz_images.py: a small run of each format that is decoded without a library."""

import pytest
from fuzz_images import run


@pytest.mark.parametrize("format_", ["TIFF", "PPM"])
def test_no_damaged_file_is_answered(format_: str) -> None:
    assert list(run(format_, seed=2, count=500)) == []
