"""What outlives a request, as the settings say: where it is, within which bounds, until the end."""

from multiprocessing.util import Finalize
from pathlib import Path

from server.config import Settings
from server.observe.metrics import Metrics
from server.store.journal import Journal
from server.store.journal_rows import FILE
from server.store.journal_writer import Bounds


def journal_path(settings: Settings) -> Path:
    """The journal's file."""
    return Path(settings.data) / FILE


def open_journal(settings: Settings, metrics: Metrics) -> Journal | None:
    """The journal of `settings`, whose last rows are written when this process ends; None where
    it is switched off."""
    if not settings.journal:
        return None
    bounds = Bounds(
        settings.journal_days,
        int(settings.journal_mb * 1e6),
        int(settings.journal_write_mb_per_minute * 1e6),
    )
    journal = Journal(journal_path(settings), bounds, metrics.journal_lost.inc)
    # Before the log's, which still tells of it; unlike atexit's, run at a forked worker's end too.
    Finalize(None, journal.close, exitpriority=10)
    return journal
