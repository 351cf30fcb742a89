"""What tests of what is observed share."""

import logging
from collections.abc import Iterator

import pytest

from server.observe.logs import LOGGER


@pytest.fixture
def own_logger(departed: None) -> Iterator[logging.Logger]:
    """The server's logger, for the test to change: it is put back as it was."""
    logger = logging.getLogger(LOGGER)
    before = logger.handlers[:], logger.level, logger.propagate
    yield logger
    logger.handlers[:], level, logger.propagate = before
    logger.setLevel(level)
