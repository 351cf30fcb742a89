"""The listeners to answered frames that the settings ask for: journal, samples, drift, cache."""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from flask import Flask

from server.config.settings import Settings
from server.observe.drift import Drift
from server.observe.metrics import Metrics
from server.recognition.sample import Reason
from server.store.bundles.repository import BundleRepository
from server.store.cache.answers import AnswerCache
from server.store.journal.schema import FILE
from server.store.journal.writer import Journal, JournalLimits
from server.system.clock import clock_fault

if TYPE_CHECKING:
    from server.store.samples.sampler import Sampler

logger = logging.getLogger(__name__)

SAMPLES = "samples"


def make_drift(settings: Settings, metrics: Metrics, store: BundleRepository) -> Drift:
    """Return what measures the drift of the models of `store`, and register it in `metrics`."""
    drift = Drift(
        store.manifest_of,
        settings.drift_window_s,
        settings.drift_min_frames,
        settings.max_cameras,
    )
    metrics.registry.register(drift)
    return drift


def samples_on(settings: Settings, *, keys_asked_for: bool) -> bool:
    """Return whether frames are kept: by `auto` only if nobody sees them without a key."""
    wanted = settings.samples == "on" or (settings.samples == "auto" and keys_asked_for)
    return wanted and settings.samples_mb > 0


def make_sampler(
    settings: Settings, metrics: Metrics, store: BundleRepository, *, keys_asked_for: bool
) -> "Sampler | None":
    """Return what keeps samples of the answered frames; None if none are kept.

    keys_asked_for: whether nobody comes in without a key, as the server starts.
    """
    if not samples_on(settings, keys_asked_for=keys_asked_for):
        return None
    from server.store.samples.folder import SampleFolder
    from server.store.samples.sampler import LOSS_REASONS, Policy, Sampler

    folder = SampleFolder(Path(settings.data) / SAMPLES, int(settings.samples_mb * 1e6))
    policy = Policy(
        labels=frozenset(settings.samples_labels),
        margin=settings.samples_margin,
        below=settings.samples_below,
        share=settings.samples_share,
        per_minute=settings.samples_per_minute,
    )
    sampler = Sampler(
        folder,
        policy,
        store.policy_of,
        lambda reason: metrics.samples.labels(reason).inc(),
        lambda reason: metrics.samples_lost.labels(reason).inc(),
    )
    # There from the start, so that Prometheus sees the first one as an increase.
    for reason in get_args(Reason):
        metrics.samples.labels(reason)
    for reason in LOSS_REASONS:
        metrics.samples_lost.labels(reason)
    metrics.samples_bytes.set_function(lambda: folder.size)
    return sampler


def data_fault(settings: Settings) -> str:
    """Say why nothing can be kept in the folder `data`; empty if something can, as far as can be
    seen without writing to it."""
    folder = Path(settings.data).absolute()
    # Unlike Path.exists, this raises nothing for a folder that can't be looked into.
    there = next(path for path in (folder, *folder.parents) if os.path.exists(path))
    if not there.is_dir():
        return f"data: {there} is no folder"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"data: {there} can't be written, so no journal, sample or job is kept"
    return ""


def log_faults(settings: Settings) -> None:
    """Log if nothing can be kept in `data`, or this machine's clock is not set; frames are answered
    all the same."""
    for fault in filter(None, (data_fault(settings), clock_fault())):
        logger.error(fault)


def open_journal(settings: Settings, metrics: Metrics) -> Journal | None:
    """Return the journal of `settings`; None if it is switched off."""
    if not settings.journal:
        return None
    bounds = JournalLimits(
        settings.journal_days,
        int(settings.journal_mb * 1e6),
        int(settings.journal_write_mb_per_minute * 1e6),
    )
    path = Path(settings.data) / FILE
    return Journal(path, bounds, metrics.journal_lost.inc, metrics.journal_rows.inc)


def open_cache(app: Flask, settings: Settings) -> AnswerCache:
    """Return the cache of answers for frames that come again: set up at once if it is switched on,
    else with the first frame that wants it."""
    cache = AnswerCache(app, settings)
    if settings.cache or settings.cache_url:
        cache.open()
    return cache
