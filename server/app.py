"""The factory: puts the parts together and does nothing else."""

import logging
import os
from collections.abc import Callable, Iterable
from functools import partial
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec
from flask import Flask

from server.api.audit import Auditor, AuditRoutes
from server.api.compat.open_inference import OpenInferenceRoutes
from server.api.compat.tensorflow_serving import TensorFlowServingRoutes
from server.api.compat.triton import TritonRoutes
from server.api.compat.tutorials import TutorialRoutes
from server.api.console import ConsoleRoutes
from server.api.health import HealthRoutes
from server.api.jobs import JobIntake, JobRoutes, job_detail
from server.api.journal import JournalRoutes
from server.api.keys import KeyRoutes
from server.api.line.alerts import AlertRoutes
from server.api.line.cameras import CameraRoutes
from server.api.line.image_health import ImageHealthRoutes
from server.api.line.last_pictures import LastPictures
from server.api.line.now import NowRoutes
from server.api.line.outputs import OutputRoutes
from server.api.line.products import ProductRoutes
from server.api.models import ModelRoutes, SampleFrameRoutes, UploadRoutes
from server.api.policy import PolicyRoutes
from server.api.recognize.caching import Caching
from server.api.recognize.compare import CompareRoutes
from server.api.recognize.explain import ExplainRoutes
from server.api.recognize.fast_path import FastPath
from server.api.recognize.input import no_fetch
from server.api.recognize.pictures import Pictures
from server.api.recognize.routes import Fetch, RecognizeRoutes
from server.api.recognize.service import RecognitionService
from server.api.samples import SampleRoutes
from server.api.session import SessionRoutes
from server.config import load as config_reading
from server.config.settings import Settings
from server.config.thread_budget import most_requests
from server.engine import Engine
from server.http.access.auth import Authenticator, install_auth
from server.http.access.proxies import TrustedProxies
from server.http.body.multipart import take_bodies
from server.http.body.timeout import BodyTimeoutMiddleware
from server.http.errors import register_errors
from server.http.request_log import RequestLog, observe_requests
from server.http.routes import RouteTable, install_routes
from server.http.wsgi import FEATURES, GRPC, Entrance, Reserve
from server.jobs.events import JobEvents
from server.jobs.service import Jobs
from server.line.cameras.judge import Judge, Trigger
from server.line.cameras.service import Cameras
from server.line.health.monitor import HealthMonitor
from server.line.products import Products
from server.line.votes import Votes
from server.observe.alerts import Alerts
from server.observe.cameras import SuspectFrames
from server.observe.drift import Drift
from server.observe.inferences import Inferences
from server.observe.logs import LogThrottle, LogWriter
from server.observe.metrics import Metrics
from server.observe.recent import RecentFrames
from server.recognition.answers import Listener
from server.recorders import log_faults, make_drift, make_sampler, open_cache, open_journal
from server.store.bundles.repository import BundleRepository
from server.store.bundles.signatures import Signers
from server.store.cameras import CameraFile
from server.store.crashes import CrashGuard
from server.store.jobs.records import JobRecord
from server.store.journal.writer import Journal
from server.system.background import in_order

if TYPE_CHECKING:
    from server.grpc.server import GrpcServer
    from server.line.outputs.service import Outputs
    from server.line.triggers.service import Triggers

logger = logging.getLogger(__name__)

# In a Flask application's extensions: the steps that end its parts, in their order.
AT_END = "lineside.at_end"


class Part(Protocol):
    """A part that ends with the application."""

    def close(self) -> object:
        """End it. Whoever calls it waits for that."""


def shut_down(steps: Iterable[Callable[[], object]]) -> None:
    """Run all `steps`, one after the other. One that fails is logged."""
    for step in steps:
        try:
            step()
        except Exception:
            fields = {"step": getattr(step, "__qualname__", repr(step))}
            logger.exception("a part could not be closed", extra={"fields": fields})


def image_fetcher(settings: Settings) -> Fetch:
    """Return what fetches the image at an image_url, or refuses to if no host is listed.

    Raises SettingsError for a host that can't be understood.
    """
    if not settings.image_url_hosts:
        return no_fetch
    from server.api.recognize.image_url import ImageFetcher

    return ImageFetcher(
        settings.image_url_hosts, int(settings.max_body_mb * 1e6), settings.image_url_timeout
    )


def make_jobs(
    settings: Settings,
    service: RecognitionService,
    products: Products,
    metrics: Metrics,
    guard: CrashGuard,
    health: HealthMonitor | None,
) -> Jobs:
    def render(job: JobRecord) -> bytes:
        return msgspec.json.encode(job_detail(job, prefix=settings.url_prefix))

    events = JobEvents(
        settings,
        metrics,
        service.report_answered,
        service.report_refused,
        service.has_listeners,
        render,
        # Frames of jobs are answered in any order, and long after they came.
        partial(health.judge, in_order=False) if health else None,
    )
    return Jobs(settings, service.store, events, products.reader, guard)


def make_outputs(
    settings: Settings, engine: Engine, trigger: Callable[[str, Trigger], object]
) -> "Outputs | None":
    """Return what sends verdicts to the outputs of `settings`; None if there are none. trigger:
    has a frame of the camera of a name judged."""
    if not settings.output:
        return None
    from server.line.outputs.service import Outputs

    return Outputs(
        settings,
        engine.metrics,
        ready=lambda: engine.ready()[0],
        busy=lambda: engine.admission.busy > 0,
        trigger=trigger,
    )


def make_health(settings: Settings, engine: Engine) -> HealthMonitor | None:
    """Return what judges the health of pictures; None if it is switched off."""
    return HealthMonitor(settings, engine.afterwards.submit) if settings.measures_images else None


def make_votes(
    settings: Settings, metrics: Metrics, outputs: "Outputs | None", journal: Journal | None
) -> Votes | None:
    """Return the votes of `settings`, whose results go to `outputs`; None if there are none."""
    if not settings.vote:
        return None

    def ignore(_: object) -> None:
        """Stands in for outputs and journal, if there are none."""

    def count(vote: str, verdict: str) -> None:
        metrics.votes.labels(vote, verdict).inc()

    return Votes(
        settings.vote,
        outputs.put if outputs else ignore,
        outputs.refused if outputs else ignore,
        journal.refused if journal else ignore,
        count,
    )


def make_cameras(settings: Settings, metrics: Metrics, service: RecognitionService) -> Cameras:
    judge = Judge(settings, service.pulled, service.report_answered, service.report_refused)
    return Cameras(settings, metrics, judge, CameraFile(Path(settings.data)))


def make_triggers(settings: Settings, metrics: Metrics, cameras: Cameras) -> "Triggers | None":
    """Return what triggers `cameras` by the sources of `settings`; None if there are none."""
    if not settings.trigger:
        return None
    from server.line.triggers.service import Triggers

    return Triggers(settings, metrics, cameras)


def make_grpc(app: Flask, settings: Settings, metrics: Metrics) -> "GrpcServer | None":
    """Return what answers calls over gRPC by `app` once it listens; None if it is switched off."""
    if not settings.grpc_port:
        return None
    from server.grpc.server import GrpcServer

    return GrpcServer(app.wsgi_app, settings, metrics.called)


def bare_app(settings: Settings) -> Flask:
    """Return an application without routes, that takes bodies within the limits of `settings`."""
    app = Flask("server", static_folder=None)
    # Flask takes FLASK_DEBUG from the environment, and somebody may have set it there.
    app.debug = False
    take_bodies(app, int(settings.max_body_mb * 1_000_000))
    app.config["MAX_FORM_PARTS"] = settings.max_form_parts
    return app


def frame_routes(
    settings: Settings, service: RecognitionService, jobs: Jobs, fetch: Fetch, pictures: Pictures
) -> list[object]:
    """Return the routes by which frames come, to be answered at once or later."""
    intake, most = JobIntake(jobs, service, settings, fetch), settings.max_batch
    return [
        RecognizeRoutes(service, most, fetch, pictures),
        JobRoutes(intake, most),
        TutorialRoutes(service, intake),
        OpenInferenceRoutes(service, most),
        TensorFlowServingRoutes(service),
    ]


def model_routes(
    settings: Settings,
    store: BundleRepository,
    drift: Drift,
    inferences: Inferences,
    auditor: Auditor,
) -> list[object]:
    """Return the routes that show, send and change the models of `store`."""
    most, signers = int(settings.max_bundle_mb * 1e6), Signers(settings.bundle_keys)
    return [
        ModelRoutes(store, drift, auditor),
        TritonRoutes(store, inferences, auditor, settings.max_batch),
        PolicyRoutes(store, auditor),
        UploadRoutes(Path(settings.models), most, auditor, signers),
        SampleFrameRoutes(store),
    ]


def put_before(
    app: Flask,
    settings: Settings,
    engine: Engine,
    service: RecognitionService,
    authenticator: Authenticator,
    log: RequestLog,
    table: RouteTable,
) -> None:
    """Put the middleware before `app`: the entrance, the threads kept for probes, the time and
    memory of bodies, and the fast path of a camera's frame."""
    unguarded = frozenset(each.rule for each in table if each.unguarded)
    probes = frozenset(each.rule for each in table if each.probe)
    fast_path = FastPath(
        app.wsgi_app,
        service,
        engine.admission,
        settings,
        authenticator,
        log,
        engine.afterwards,
        unguarded,
    )
    most_bytes = int(max(settings.bodies_mb, settings.max_body_mb) * 1_000_000)
    bodies = BodyTimeoutMiddleware(
        fast_path,
        settings.body_timeout,
        most_bytes,
        table.is_foreign,
        tls=bool(settings.tls_certificate),
    )
    most = most_requests(settings.slots, settings.max_waiting)
    reserve = Reserve(bodies, refusing=app.wsgi_app, most=most, probes=probes)
    proxies = TrustedProxies(settings.trusted_proxies) if settings.trusted_proxies else None
    app.wsgi_app = Entrance(reserve, settings.url_prefix, proxies)  # type: ignore[method-assign]


def create_app(
    settings: Settings | None = None, *, engine: Engine | None = None, log: LogWriter | None = None
) -> Flask:
    """Return the WSGI application; without `settings`, those of the environment.

    engine: what recognises; it is begun to be loaded once all is put together, unless it has been.
    log: is stopped at the process's end, after all else. Raises StartError if settings or the
    models folder are unusable.
    """
    settings = settings or config_reading.load(os.environ)
    engine = engine or Engine(settings)
    metrics, store = engine.metrics, engine.store
    products = Products(settings.product, store, Path(settings.data))
    engine.conditions.append(products.ready)
    log_throttle = LogThrottle(settings.log_repeats)

    app = bare_app(settings)
    log_faults(settings)
    journal = open_journal(settings, metrics)

    def trigger(camera: str, trigger: Trigger) -> None:
        """Trigger a camera. They are made later, since their frames go to the outputs."""
        cameras.fire(camera, trigger)

    outputs = make_outputs(settings, engine, trigger)
    votes = make_votes(settings, metrics, outputs, journal)
    recent, inferences = RecentFrames(), Inferences()
    refusals = [
        metrics.cameras.refused,
        recent.refused,
        inferences.refused,
        *([votes.refused] if votes else [outputs.refused] if outputs else []),
        # Votes give the journal the refused frames, with their results.
        *([journal.refused] if journal and not votes else []),
    ]
    in_turn = [in_order(engine.afterwards, listener) for listener in refusals]
    request_log = RequestLog(metrics, log_throttle, in_turn)
    observe_requests(app, request_log)
    register_errors(app)
    authenticator = Authenticator(settings)
    install_auth(app, settings, authenticator)
    table = install_routes(app)
    drift = make_drift(settings, metrics, store)
    sampler = make_sampler(settings, metrics, store, keys_asked_for=authenticator.closed())
    suspect = SuspectFrames(metrics.suspect)
    listeners: list[Listener] = [metrics.cameras.answered, recent.answered, suspect, drift]
    listeners.append(inferences.answered)
    listeners += [sampler] if sampler else []
    health = make_health(settings, engine)
    service = RecognitionService(
        store,
        metrics,
        settings,
        (*listeners, *([journal.answered] if journal else [])),
        caching=Caching(open_cache(app, settings), metrics),
        afterwards=engine.afterwards,
        refusals=in_turn,
        products=products,
        before_answer=(outputs.answered,) if outputs else (),
        judge_health=health.judge if health else None,
        count_vote=votes.answered if votes else None,
        count_run=inferences.ran,
    )
    jobs = make_jobs(settings, service, products, metrics, engine.guard, health)
    cameras = make_cameras(settings, metrics, service)
    triggers = make_triggers(settings, metrics, cameras)
    auditor, pictures = Auditor(engine.audit, store), Pictures()
    table.add(
        app,
        *frame_routes(settings, service, jobs, image_fetcher(settings), pictures),
        ExplainRoutes(service, engine.admission),
        CompareRoutes(store, sampler.folder if sampler else None, engine.admission),
        *model_routes(settings, store, drift, inferences, auditor),
        ProductRoutes(products, auditor),
        JournalRoutes(journal),
        AuditRoutes(engine.audit),
        CameraRoutes(cameras, auditor),
        ImageHealthRoutes(health, auditor),
        OutputRoutes(outputs),
        AlertRoutes(Alerts(metrics.registry)),
        NowRoutes(
            settings,
            engine,
            recent,
            LastPictures(engine, recent, pictures),
            cameras.states,
            outputs.states if outputs else tuple,
            authenticator.knows,
        ),
        HealthRoutes(engine.ready, metrics, engine.guard),
        SampleRoutes(sampler.folder if sampler else None, store),
        SessionRoutes(authenticator),
        KeyRoutes(settings, authenticator, auditor),
        ConsoleRoutes(),
    )
    put_before(app, settings, engine, service, authenticator, request_log, table)
    grpc = app.extensions[GRPC] = make_grpc(app, settings, metrics)

    app.extensions[FEATURES] = {
        "keys": authenticator.closed(),
        "usable_keys": authenticator.usable_keys(),
        "samples": sampler is not None,
        "cache": settings.cache,
        "journal": journal is not None,
    }
    # What takes calls first, as the HTTP server has ended before. Then triggers, cameras and jobs:
    # all others are still notified of the frames that they answer.
    sources: list[Part | None] = [grpc, triggers, cameras, jobs, products, pictures]
    recorders: list[Part | None] = [votes, sampler, journal, outputs]
    at_end: list[Callable[[], object]] = [
        *(part.close for part in sources if part),
        # The recorders get all that was answered, before they close.
        engine.afterwards.flush,
        *(part.close for part in recorders if part),
        # The log last, since all others write to it.
        log_throttle.summarize,
        *([log.stop] if log else []),
    ]
    app.extensions[AT_END] = at_end
    # Unlike atexit's, this is run at the end of a forked worker too.
    Finalize(None, shut_down, args=(at_end,), exitpriority=0)
    for begin in (engine, products, votes, outputs, cameras, triggers):
        if begin:
            begin.start()
    jobs.resume()
    return app
