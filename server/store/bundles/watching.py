"""Looking at the models folder from time to time."""

import logging
import threading

from server.errors import LinesideError, StartError
from server.store.bundles.repository import BundleRepository, Seen

logger = logging.getLogger(__name__)


def look_again(store: BundleRepository, seen: Seen) -> Seen:
    """One round: newer versions are swapped in. What can't be looked at now is logged, and looked
    at in the next round."""
    try:
        return store.look(seen)
    except (LinesideError, StartError, OSError) as error:
        logger.warning("models can't be looked at", extra={"fields": {"reason": str(error)}})
        return seen


def watch(store: BundleRepository, seconds: float, stop: threading.Event) -> None:
    """Looks every `seconds` until `stop` is set."""
    seen: Seen = {}
    while not stop.wait(seconds):
        seen = look_again(store, seen)
