"""The start, before the first frame: checks settings and bundles, and sets the process up."""

import gc
import logging
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from server.config import load as config_reading
from server.config.outputs import ModbusServerOutput
from server.config.settings import Settings
from server.config.tables import check_files
from server.errors import NotReadyError, SettingsError
from server.http.access.caller import check_access
from server.process.certificates import certificate_files
from server.recognition.engines.engine import check_options
from server.store.backup import check_restored
from server.store.bundles.folder import ModelsFolder, models_folder
from server.store.bundles.layout import versions
from server.system.extras import install_command
from server.values.wording import counted, shown

if TYPE_CHECKING:
    from flask import Flask

    from server.observe.logs import LogWriter
    from server.store.crashes import CrashGuard
    from server.system.handover import Handover


# Seconds for which a worker that replaces another loads its model before it takes connections.
REPLACEMENT_S = 10.0
# Objects made and not yet freed, before garbage is looked for among them.
YOUNG = 10_000
BROKER = re.compile(r"rediss?://[^/?#\s]+(/[0-9]*)?(\?\S*)?")
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@\s]+")


def preflight(settings: Settings) -> ModelsFolder:
    """Checks what can be checked without loading a model; returns the models folder.

    Imports nothing heavy, so that a server that can't start says so at once. Raises StartError
    if a restore has not ended well, if strangers could come in, or if no version of the default
    model is intact.
    """
    check_restored(Path(settings.data), Path(settings.models))
    check_access(settings)
    models = models_folder(settings)
    models.verify_default()
    check_values(settings)
    return models


def check_values(settings: Settings) -> None:
    """Raises SettingsError for values that their types alone don't show to be unusable."""
    if files := certificate_files(settings):
        files.check()
    check_hosts(settings)
    check_cache(settings)
    check_origins(settings)
    for array in config_reading.arrays_of_tables():
        check_files(array, getattr(settings, array))
    check_triggered_cameras(settings)
    if settings.output or settings.trigger:
        from server.line.outputs.service import check_installed

        check_installed(settings)
    check_options(settings.engine_options)
    if settings.grpc_port and find_spec("grpc") is None:
        raise SettingsError(
            f"grpc_port needs a package that is not installed: {install_command('grpc')}"
        )
    if settings.allowed_hosts:
        from server.http.access.origins import OriginCheck

        OriginCheck(settings, loopback=True)
    if settings.trusted_proxies:
        from server.http.access.proxies import TrustedProxies

        TrustedProxies(settings.trusted_proxies)
    for name in ("rate_per_key", "rate_per_address"):
        if rate := getattr(settings, name):
            from server.http.access.rate_limits import check_rate

            check_rate(rate, name)


def check_triggered_cameras(settings: Settings) -> None:
    """Raise SettingsError if a trigger is for a camera that the server does not read."""
    known = {camera.name for camera in settings.camera}
    named = [
        *((f"[[trigger]] {each.name}: camera", each.camera) for each in settings.trigger),
        *(
            (f"[[output]] {each.name}: trigger_camera", each.trigger_camera)
            for each in settings.output
            if isinstance(each, ModbusServerOutput) and each.trigger_camera
        ),
    ]
    for key, camera in named:
        if camera not in known:
            raise SettingsError(
                f"{key} can't be {shown(camera)}: no table [[camera]] has this name; a camera that"
                " POST /v1/cameras added needs such a table, since it may be removed at any time"
            )


def check_origins(settings: Settings) -> None:
    """Raise SettingsError if `cors_origins` names what no browser sends as an Origin (RFC 6454,
    7)."""
    for origin in settings.cors_origins:
        if origin != "*" and not ORIGIN.fullmatch(origin):
            raise SettingsError(
                f"cors_origins can't have {origin!r}: say SCHEME://HOST or SCHEME://HOST:PORT,"
                " such as https://line.example, or * for all"
            )


def check_hosts(settings: Settings) -> None:
    """Raise SettingsError if an image_url may be fetched from what is no host, a webhook sent
    to one, or if the broker is none that is known."""
    lists = {
        "image_url_hosts": settings.image_url_hosts,
        "webhook_hosts": settings.webhook_hosts,
    }
    for setting, entries in lists.items():
        if entries:
            from server.system.outbound import parse_allowed

            for entry in entries:
                parse_allowed(entry, setting)
    check_broker(settings)


def check_broker(settings: Settings) -> None:
    """Raise SettingsError if `broker_url` is not of Redis."""
    if settings.broker_url and not BROKER.fullmatch(settings.broker_url):
        raise SettingsError("broker_url should be redis://HOST:PORT/NUMBER, rediss://... or empty")


def check_cache(settings: Settings) -> None:
    """Raise SettingsError if the cache's Redis has no address."""
    if settings.cache_url:
        from server.store.cache.redis_backend import check_url

        check_url(settings.cache_url)


def application(
    settings: Settings | None = None,
    root: Path = Path("/"),
    handover: "Handover | None" = None,
    models: ModelsFolder | None = None,
) -> "Flask":
    """The WSGI application in a process of its own, for any WSGI server: logging started, the
    process set up. Without `settings`, those of the environment. root: where the machine's `sys`
    and `proc` lie. handover: what workers leave to each other. models: the folder as `preflight`
    has read it. Raises StartError."""
    with _without_garbage_collection():
        from server.observe import logs
        from server.store.crashes import CrashGuard
        from server.system import process

        process.configure_process()
        settings = settings or config_reading.load(os.environ)
        log = logs.start(settings.log_level, settings.log_format)
        try:
            guard = CrashGuard(settings, handover)
            guard.start()
            app = _put_together(settings, log, root, guard, models)
        except BaseException:
            log.stop()
            raise
    if os.environ.get("NOTIFY_SOCKET"):
        from server.process import health

        health.start(settings, os.environ)
    return app


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Disable garbage collection during the start, then freeze the objects created so far: imports
    create hundreds of thousands, which live until exit. Scanning them takes a tenth of the start,
    and would stall frames for 40 ms."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        # What the requests in hand have made is not taken for a heap that grows.
        gc.set_threshold(YOUNG)
        gc.enable()


def _put_together(
    settings: Settings,
    log: "LogWriter",
    root: Path,
    guard: "CrashGuard",
    models: ModelsFolder | None,
) -> "Flask":
    """The application, whose models load while the rest of it is imported: after it where their
    memory counts, since what imports take would count as the first one's."""
    from server.engine import Engine

    engine = Engine(settings, root, guard, models)
    if not settings.models_memory_mb:
        engine.start()
    try:
        from server.app import create_app

        app = create_app(settings, engine=engine, log=log)
        if guard.crash_count:
            # Frames wait in the port's queue already, and are not to be told of a crash.
            engine.await_model(REPLACEMENT_S)
        return app
    except BaseException:
        # A process that ends while a model is built in a thread may crash.
        engine.stop()
        raise


def check(settings: Settings) -> Iterator[str]:
    """Loads what would be served and yields a line for each finding.

    Raises StartError, or NotReadyError, if the server would not come up.
    """
    check_access(settings)
    check_values(settings)
    # Not before: what can't be is to be said at once.
    from server.engine import make_store
    from server.observe import logs
    from server.observe.metrics import Metrics
    from server.recognition.admission import Admission
    from server.recognition.engines.litert import runtime
    from server.recorders import data_fault
    from server.system import process

    # Whatever is found is yielded; the log has no listener here.
    logging.getLogger(logs.LOGGER).addHandler(logging.NullHandler())
    process.configure_process()
    store = make_store(settings, Metrics(), Admission(settings.slots, settings.max_waiting))
    yield f"settings are valid; address {settings.host}:{settings.port}"
    threads = settings.threads_per_interpreter
    each = "1 thread" if threads == 1 else f"{threads} threads"
    yield f"{settings.pool_size} interpreters of {each}, {runtime()}"
    if fault := data_fault(settings):
        yield fault
    labels: set[str] = set()
    for name in versions(Path(settings.models)):
        try:
            recognizer = store.load(name)
        except NotReadyError as error:
            if name == store.default:
                raise
            yield f"{name} is refused: {error.message}"
            continue
        manifest = recognizer.manifest
        labels.update(label.name for label in recognizer.labels)
        default = " (default)" if name == store.default else ""
        golden = len(manifest.golden)
        engine = recognizer.pool.engine.runtime
        yield (
            f"{name}/{manifest.version}{default}: {manifest.quantization},"
            f" {counted(len(recognizer.labels), 'label')},"
            f" {f'{golden} golden frames right' if golden else 'no golden frames'}"
            f"{'' if engine == runtime() else f', {engine}'}"
        )
        for failure in store.failures(name):
            yield f"{name}/{failure.version} is refused: {failure.reason}"
    yield from _absent_names(settings, labels)


def _absent_names(settings: Settings, labels: Collection[str]) -> Iterator[str]:
    """A line for each model and label that `settings` names and that is not there, though it may
    come later."""
    models = versions(Path(settings.models))
    for name in settings.preload:
        if name not in models:
            yield f"preload: there is no model {name}"
    for label in settings.samples_labels:
        if label not in labels:
            yield f"samples_labels: no model has the label {label}"
