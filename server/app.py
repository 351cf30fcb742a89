"""The factory: puts the parts together and does nothing else."""

import logging
import os
import threading
import time
from pathlib import Path

from flask import Flask

from server import config
from server.api import (
    batch,
    console,
    health,
    inference_protocol,
    models,
    recognize,
    tensorflow_serving,
    tutorials,
)
from server.api.forms import take_bodies
from server.api.frames import no_fetch
from server.api.gate import Gate
from server.api.observing import observe_requests
from server.api.paths import name_models
from server.api.recognize import Fetch
from server.api.recognizing import Recognizing
from server.api.responses import register_errors
from server.config import Settings
from server.errors import NotReadyError
from server.observe.logs import LOGGER
from server.observe.metrics import Metrics
from server.recognition.admission import Admission
from server.recognition.frame import Limits
from server.recognition.interpreter import InterpreterPool
from server.recognition.manifest import MODEL, Bundle
from server.recognition.recognizer import STAGES
from server.recognition.tensors import Model, make_model
from server.store.bundles import BundleStore

logger = logging.getLogger(LOGGER)


def make_store(settings: Settings, metrics: Metrics, admission: Admission) -> BundleStore:
    """The model repository of `settings`, whose models share `admission` and tell `metrics`."""
    limits = Limits(max_pixels=settings.max_pixels, max_side=settings.max_side)
    on_stage = metrics.on_stage(STAGES)

    def load(bundle: Bundle) -> Model:
        started = time.perf_counter()
        size = settings.pool_size
        wide = size if settings.wide_interpreter and size > 1 else 0
        pool = InterpreterPool(bundle.model_path, size, settings.threads_per_interpreter, wide)
        model = make_model(bundle, pool, admission, limits, on_stage)
        seconds = time.perf_counter() - started
        manifest = bundle.manifest
        metrics.loaded(manifest, manifest.sha256.get(MODEL, ""), seconds)
        metrics.interpreters.inc(pool.size)
        logger.info(
            "model loaded",
            extra={
                "fields": {
                    "model": f"{manifest.name}/{manifest.version}",
                    "seconds": round(seconds, 3),
                    "interpreters": pool.size,
                }
            },
        )
        return model

    return BundleStore(Path(settings.models), settings.model, load, settings.recipe)


def image_fetcher(settings: Settings) -> Fetch:
    """What gets the image at an image_url; where no host is listed, what refuses to.

    Raises SettingsError for a host that can't be understood.
    """
    if not settings.image_url_hosts:
        return no_fetch
    from server.api.image_url import ImageFetcher

    return ImageFetcher(
        settings.image_url_hosts, int(settings.max_body_mb * 1e6), settings.image_url_timeout
    )


def create_app(settings: Settings | None = None) -> Flask:
    """The WSGI application; without `settings`, those of the environment.

    The default model is loaded by a thread of its own, so that /livez answers meanwhile. Raises
    StartError where settings or the models folder are unusable.
    """
    settings = settings or config.load(os.environ)
    metrics = Metrics()
    admission = Admission(settings.slots, settings.max_waiting)
    metrics.watch(admission)
    store = make_store(settings, metrics, admission)

    app = Flask("server", static_folder=None)
    take_bodies(app, int(settings.max_body_mb * 1_000_000))
    app.wsgi_app = Gate(app.wsgi_app, admission, settings, metrics)  # type: ignore[method-assign]
    observe_requests(app, metrics)
    register_errors(app)
    name_models(app)
    recognizing = Recognizing(store, metrics)
    app.register_blueprint(recognize.blueprint(recognizing, settings, image_fetcher(settings)))
    for make in (
        batch.blueprint,
        tutorials.blueprint,
        inference_protocol.blueprint,
        tensorflow_serving.blueprint,
    ):
        app.register_blueprint(make(recognizing, settings))
    app.register_blueprint(models.blueprint(store))
    app.register_blueprint(health.blueprint(store, metrics))
    app.register_blueprint(console.blueprint(store))

    def preload() -> None:
        try:
            store.load(store.default)
        except NotReadyError as error:
            logger.error("no version may serve", extra={"fields": {"reason": error.message}})

    threading.Thread(target=preload, name="preload", daemon=True).start()
    return app
