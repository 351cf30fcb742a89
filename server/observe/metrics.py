"""The server's Prometheus metrics: base units, `_total` on counters, labels from closed sets."""

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from server import __version__
from server.observe.cameras import Cameras, ClockSkew
from server.recognition.admission import Admission
from server.recognition.answers import Answer
from server.recognition.manifest import Manifest
from server.recognition.tasks.task import TaskMetric, all_tasks, find_task
from server.recognition.tensor_model import Model
from server.system.program import program_id

# 1 ms to 10 s: a frame on a PC takes a few ms, one that waits on a loaded Raspberry Pi seconds.
_MS = (1, 2.5, 5, 7.5, 10, 15, 25, 50, 100, 250, 500, 1000, 1500, 2500, 5000, 10_000)
DURATION_BUCKETS_S = tuple(ms / 1000 for ms in _MS)

M = TypeVar("M", Counter, Histogram)


class Metrics:
    """All metrics in one registry of their own, so that two servers in one process do not mix."""

    def __init__(self, max_cameras: int = 64, fail_run: int = 5) -> None:
        """max_cameras: those with series of their own. fail_run: as in `Cameras`."""
        disable_created_metrics()
        self.registry = CollectorRegistry()
        self._children: dict[tuple[Counter | Histogram, tuple[str, ...]], Counter | Histogram] = {}
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.cameras = Cameras(self.registry, max_cameras, fail_run)
        self.clock_skew = ClockSkew(self.registry, max_cameras)
        self.registry.register(BuildCollector())
        self.ready = self._gauge("ready", "1 while the default model serves, else 0")
        self.requests = self._counter("requests_total", "Requests answered", "route", "status")
        self.request_duration = self._histogram(
            "request_duration_seconds", "From a request's arrival to its answer", "route"
        )
        self.grpc_calls = self._counter(
            "grpc_calls_total", "Calls over gRPC answered, by status code", "method", "code"
        )
        self.stage_duration = self._histogram(
            "stage_duration_seconds", "One stage of one frame", "stage"
        )
        self.refused = self._counter(
            "frames_refused_total", "Frames that got no labels, by error code", "reason"
        )
        self.request_errors = self._counter(
            "request_errors_total",
            "Requests answered with an error, by its code or finer cause",
            "route",
            "reason",
        )
        self.worker_crashes = self._counter(
            "worker_crashes_total", "Workers that a signal ended, since the server started"
        )
        self.crashed_frames = self._gauge(
            "crashed_frames", "Frames that are refused, since they ended the process that read them"
        )
        self.suspect = self._counter(
            "frames_suspect_total", "Frames whose image may be read wrongly, by reason", "reason"
        )
        self.waiting = self._gauge("waiting_frames", "Frames waiting for an interpreter")
        self.busy = self._gauge("busy_interpreters", "Interpreters at work")
        # Tasks may share a metric.
        of_tasks = {metric.name: metric for task in all_tasks() for metric in task.metrics}
        self._of_tasks = {name: self._task_metric(each) for name, each in of_tasks.items()}
        self.verdicts = self._counter("verdicts_total", "Frames by verdict", "model", "verdict")
        self.model_load = self._gauge(
            "model_load_seconds", "Time to load, warm up and check a version", "model", "version"
        )
        self.model_unloads = self._counter(
            "model_unloads_total",
            "Versions let go, by reason: swap, memory or request",
            "model",
            "reason",
        )
        self.golden_checks = self._counter(
            "golden_checks_total",
            "Checks of golden frames by a serving model: passed, missed, skipped (no free slot)",
            "model",
            "result",
        )
        self.samples = self._counter("samples_total", "Frames kept, by reason", "reason")
        self.samples_bytes = self._gauge("samples_bytes", "Disk that kept frames take")
        self.samples_lost = self._counter(
            "samples_lost_total", "Frames that should have been kept and were not", "reason"
        )

        self.cache_lookups = self._counter(
            "cache_lookups_total",
            "Frames asked of the cache: hit, miss, shared with one in hand, bypass, error",
            "result",
        )
        self.journal_rows = self._counter("journal_rows_total", "Rows that the journal has written")
        self.journal_lost = self._counter(
            "journal_lost_total", "Rows that the journal could not keep"
        )

        self.camera_connected = self._gauge(
            "camera_connected", "1 while a camera that the server reads is there", "camera"
        )
        self.camera_frame_age = self._gauge(
            "camera_frame_age_seconds",
            "Time since the newest frame that was taken from a camera was captured",
            "camera",
        )
        self.camera_triggers = self._counter(
            "camera_triggers_total",
            "Triggers of a camera that the server reads: accepted, refused with an error, duplicate"
            " or retained (ignored)",
            "camera",
            "result",
        )
        self.trigger_connected = self._gauge(
            "trigger_connected", "1 while a source of triggers is listened to", "trigger"
        )
        self.votes = self._counter(
            "votes_total", "Votes over several frames by their verdict", "vote", "verdict"
        )
        self.output_messages = self._counter(
            "output_messages_total",
            "Messages by result: delivered, failed (tries), dropped (too many), expired (too old)",
            "output",
            "result",
        )
        self.output_waiting = self._gauge(
            "output_waiting", "Messages that the other side does not have yet", "output"
        )
        self.output_connected = self._gauge(
            "output_connected", "1 while the other side of an output is there", "output"
        )

        self.jobs = self._counter("jobs_total", "Jobs that have come into a state", "state")
        self.jobs_pending = self._gauge("jobs_pending", "Jobs that wait or run")

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"lineside_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"lineside_{name}", text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, *labels: str, buckets: Sequence[float] = DURATION_BUCKETS_S
    ) -> Histogram:
        return Histogram(f"lineside_{name}", text, labels, registry=self.registry, buckets=buckets)

    def _task_metric(self, metric: TaskMetric) -> Counter | Histogram:
        labels = ("model", *metric.labels)
        if metric.buckets:
            return self._histogram(metric.name, metric.help, *labels, buckets=metric.buckets)
        return self._counter(metric.name, metric.help, *labels)

    def watch(self, admission: Admission) -> None:
        """Takes the waiting and busy gauges from `admission` whenever Prometheus asks."""
        self.waiting.set_function(lambda: admission.waiting)
        self.busy.set_function(lambda: admission.busy)

    def watch_crashes(self, crashes: int, frames: Callable[[], int]) -> None:
        """Counts the crashes before this worker, and takes the frames that are refused for one from
        `frames` whenever Prometheus asks."""
        self.worker_crashes.inc(crashes)
        self.crashed_frames.set_function(frames)

    def loaded(self, manifest: Manifest, seconds: float) -> None:
        self.model_load.labels(manifest.name, str(manifest.version)).set(seconds)

    def checked_golden(self, model: str, result: str) -> None:
        """Counts one check of a model's golden frames, by its result."""
        self.golden_checks.labels(model, result).inc()

    def finished(self, route: str, status: int, seconds: float) -> None:
        self._child(self.requests, route, str(status)).inc()
        self._child(self.request_duration, route).observe(seconds)

    def failed(self, route: str, reason: str) -> None:
        """Counts one request that was answered with an error, by its code or finer cause."""
        self._child(self.request_errors, route, reason).inc()

    def called(self, method: str, code: str) -> None:
        """Counts one call over gRPC, by its status code."""
        self._child(self.grpc_calls, method, code).inc()

    def refuse(self, code: str) -> None:
        """Counts one frame that got no labels, by its error code."""
        self._child(self.refused, code).inc()

    def worked(self, stage: str, seconds: float) -> None:
        self._child(self.stage_duration, stage).observe(seconds)

    def answered(self, answer: Answer) -> None:
        """Counts one recognised frame by label, confidence and verdict."""
        observe = find_task(answer.task).observe
        for name, labels, value in chain.from_iterable(map(observe, answer.parts())):
            metric = self._of_tasks[name]
            if isinstance(metric, Histogram):
                self._child(metric, answer.model, *labels).observe(value)
            else:
                self._child(metric, answer.model, *labels).inc(value)
        if answer.verdict is not None:
            self._child(self.verdicts, answer.model, answer.verdict).inc()

    def _child(self, metric: M, *labels: str) -> M:
        """`metric.labels(*labels)`, looked up once: it checks its arguments each time."""
        key = (metric, labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        return child  # type: ignore[return-value]

    def render(self) -> bytes:
        """Returns the text exposition format, version 0.0.4."""
        return generate_latest(self.registry)


class BuildCollector(Collector):
    """Says which program runs. Its files are read when Prometheus asks first: a start must not
    wait for them."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        build = GaugeMetricFamily(
            "lineside_build_info",
            "1, with what runs as labels; program: digest of its files",
            labels=("version", "python", "program"),
        )
        try:
            program = program_id()
        except OSError:
            program = ""  # a scrape must not fail for it
        build.add_metric((__version__, platform.python_version(), program), 1)
        yield build


class ModelsCollector(Collector):
    """Reads the models whenever Prometheus asks, so that a version that was unloaded is not
    reported again."""

    def __init__(
        self, served: Callable[[], Mapping[str, Model]], memory: Callable[[], Mapping[str, int]]
    ) -> None:
        """served: the models that serve, by name. memory: bytes by name, of those as well that
        only finish their last frames."""
        self._served = served
        self._memory = memory

    def collect(self) -> Iterator[GaugeMetricFamily]:
        info = GaugeMetricFamily(
            "lineside_model_info",
            "1 for each model that serves",
            labels=("model", "version", "quantization", "sha256"),
        )
        served = self._served()
        for name, recognizer in served.items():
            manifest = recognizer.manifest
            version, sha256 = str(manifest.version), manifest.model_sha256
            info.add_metric((name, version, manifest.quantization, sha256), 1)
        yield info
        yield GaugeMetricFamily("lineside_models_loaded", "Models that serve", value=len(served))
        yield GaugeMetricFamily(
            "lineside_interpreters",
            "Interpreters of all loaded models",
            value=sum(recognizer.pool.size for recognizer in served.values()),
        )
        misses = GaugeMetricFamily(
            "lineside_golden_misses",
            "Golden checks in a row that a serving model has missed; from 3 on it is not ready",
            labels=("model",),
        )
        for name, recognizer in served.items():
            misses.add_metric((name,), recognizer.golden_misses)
        yield misses
        faults = GaugeMetricFamily(
            "lineside_delegate_failed",
            "1 for each serving model whose delegate failed, so that the CPU computes",
            labels=("model",),
        )
        for name, recognizer in served.items():
            faults.add_metric((name,), bool(recognizer.pool.engine.fault))
        yield faults
        memory = GaugeMetricFamily(
            "lineside_model_memory_bytes",
            "Memory of a model and its interpreters, measured when it was loaded",
            labels=("model",),
        )
        for name, size in self._memory().items():
            memory.add_metric((name,), size)
        yield memory
