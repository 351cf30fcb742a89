"""What the tests of the journal share."""

import logging
from collections.abc import Iterator

import pytest

from server.observe.logs import LOGGER


@pytest.fixture
def said(departed: None) -> Iterator[list[str]]:
    """What is logged."""
    lines: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler, logger = Handler(), logging.getLogger(LOGGER)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel("INFO")
    yield lines
    logger.removeHandler(handler)
    logger.setLevel(level)
