"""Triton's extensions of the Open Inference Protocol: configuration, statistics, repository.

Sources: triton-inference-server/server, docs/protocol/extension_model_configuration.md,
extension_statistics.md, extension_model_repository.md.
"""

from functools import partial
from typing import Any

import msgspec

from server.api.audit import Auditor
from server.api.compat.open_inference import GROUP, MODEL, VERSION
from server.api.compat.open_inference_tensors import NAMES, Parameters
from server.errors import InvalidFieldError, ModelNotFoundError
from server.http.body.json_body import decode_json, read_body
from server.http.routes import ADMIN, KNOWN, route
from server.observe.inferences import Counts, Inferences
from server.recognition import tensor_model as tensors
from server.recognition.preprocessing import TensorSpec
from server.recognition.tensor_model import Model
from server.store.bundles.layout import versions
from server.store.bundles.repository import BundleRepository

_route = partial(route, group=GROUP)
_ADMINISTRATION = (400, 403, 404, 409, 413, 422, 503)
READY, LOADING, UNAVAILABLE = "READY", "LOADING", "UNAVAILABLE"


class TensorConfig(msgspec.Struct, frozen=True):
    """A tensor; its dims leave out the first one if that counts the rows of a batch, and -1 is any
    size."""

    name: str
    data_type: str
    dims: tuple[int, ...]


class VersionChoice(msgspec.Struct, frozen=True):
    """The versions that are served."""

    versions: tuple[int, ...]


class VersionPolicy(msgspec.Struct, frozen=True):
    """Names the versions that are served."""

    specific: VersionChoice


class ModelConfig(msgspec.Struct, frozen=True):
    """A model's configuration. max_batch_size: 0 if its tensors do not count rows."""

    name: str
    platform: str
    version_policy: VersionPolicy
    max_batch_size: int
    input: tuple[TensorConfig, ...]
    output: tuple[TensorConfig, ...]


class StatisticDuration(msgspec.Struct, frozen=True):
    """Counts how often something was done, and the nanoseconds that it took in all."""

    count: int = 0
    ns: int = 0


class InferStatistics(msgspec.Struct, frozen=True):
    """Inferences by their end, and their stages: waiting, decoding and preprocessing, the model,
    and what comes after it. cache_hit: answers that were made for another request."""

    success: StatisticDuration
    fail: StatisticDuration
    queue: StatisticDuration
    compute_input: StatisticDuration
    compute_infer: StatisticDuration
    compute_output: StatisticDuration
    cache_hit: StatisticDuration


class BatchStatistics(msgspec.Struct, frozen=True):
    """The stages of all runs of one batch size; the server runs each frame alone."""

    batch_size: int
    compute_input: StatisticDuration
    compute_infer: StatisticDuration
    compute_output: StatisticDuration


class MemoryUsage(msgspec.Struct, frozen=True):
    """Memory of a model."""

    type: str
    id: int
    byte_size: int


class ModelStatistics(msgspec.Struct, frozen=True):
    """The work of a version that serves, since the start. last_inference: in milliseconds since
    1970; 0 for never. inference_count: frames, and rows of tensors."""

    name: str
    version: str
    last_inference: int
    inference_count: int
    execution_count: int
    inference_stats: InferStatistics
    batch_stats: tuple[BatchStatistics, ...]
    memory_usage: tuple[MemoryUsage, ...]


class Statistics(msgspec.Struct, frozen=True):
    """The statistics of models that serve."""

    model_stats: tuple[ModelStatistics, ...]


class ModelIndex(msgspec.Struct, frozen=True):
    """One version on disk. state: READY if it serves, LOADING, or UNAVAILABLE with the reason."""

    name: str
    version: str
    state: str
    reason: str = ""


class IndexRequest(msgspec.Struct, frozen=True):
    """ready: only those that are READY."""

    ready: bool = False


class RepositoryRequest(msgspec.Struct, frozen=True):
    """A change of what is loaded. Of Triton's parameters `unload_dependents` is taken, which
    changes nothing, since no model depends on another."""

    parameters: Parameters = {}


class Done(msgspec.Struct, frozen=True):
    """The answer to a change: an empty object."""


def _read(kind: Any) -> Any:
    body = read_body()
    return decode_json(kind, body) if body else kind()


def _tensor_config(spec: TensorSpec, rows: bool) -> TensorConfig:
    name = NAMES[spec.dtype]
    return TensorConfig(spec.name, f"TYPE_{name}", spec.shape[1:] if rows else spec.shape)


def _statistics(model: Model, counts: Counts, memory: int) -> ModelStatistics:
    def of(stage: str) -> StatisticDuration:
        return StatisticDuration(counts.inferred, int(counts.seconds[stage] * 1e9))

    queue, before, infer, after = map(
        of, ("queue", "compute_input", "compute_infer", "compute_output")
    )
    succeeded = StatisticDuration(
        counts.inferred + counts.cached, int(counts.seconds["success"] * 1e9)
    )
    failed = StatisticDuration(counts.failed, int(counts.failed_seconds * 1e9))
    cached = StatisticDuration(counts.cached, 0)
    return ModelStatistics(
        model.manifest.name,
        str(model.manifest.version),
        int(counts.last * 1000),
        counts.inferred,
        counts.inferred,
        InferStatistics(succeeded, failed, queue, before, infer, after, cached),
        (BatchStatistics(1, before, infer, after),) if counts.inferred else (),
        (MemoryUsage("CPU", 0, memory),),
    )


class TritonRoutes:
    """The extensions' routes over the models of `store`. max_batch: images of one request."""

    def __init__(
        self, store: BundleRepository, inferences: Inferences, auditor: Auditor, max_batch: int
    ) -> None:
        self._store = store
        self._inferences = inferences
        self._auditor = auditor
        self._max_batch = max_batch

    @_route("GET", *(f"{MODEL}/config", f"{VERSION}/config"), rights=KNOWN, errors=(404, 503))
    def config(self, name: str, version: int | None = None) -> ModelConfig:
        """Return a model's configuration."""
        model = self._store.get(name, version)
        rows = tensors.batched(model)
        return ModelConfig(
            model.manifest.name,
            model.pool.engine.platform,
            VersionPolicy(VersionChoice((model.manifest.version,))),
            self._max_batch if rows else 0,
            tuple(_tensor_config(spec, rows) for spec in model.pool.inputs),
            tuple(_tensor_config(spec, rows) for spec in model.pool.outputs),
        )

    @_route("GET", "/v2/models/stats", rights=KNOWN)
    def all_statistics(self) -> Statistics:
        """Return what the models that serve have done."""
        return Statistics(tuple(map(self._of, self._store.served().values())))

    @_route("GET", *(f"{MODEL}/stats", f"{VERSION}/stats"), rights=KNOWN, errors=(404, 503))
    def statistics(self, name: str, version: int | None = None) -> Statistics:
        """Return what a model has done."""
        return Statistics((self._of(self._store.get(name, version)),))

    def _of(self, model: Model) -> ModelStatistics:
        name, version = model.manifest.name, model.manifest.version
        counts = self._inferences.of(name, version)
        return _statistics(model, counts, self._store.memory().get(name, 0))

    @_route(
        "POST",
        "/v2/repository/index",
        rights=KNOWN,
        body=IndexRequest,
        example={"ready": True},
        errors=(400, 413, 503),
    )
    def index(self) -> list[ModelIndex]:
        """Return all versions on disk."""
        only_ready = _read(IndexRequest).ready
        return [
            each
            for name, numbers in versions(self._store.folder).items()
            for each in self._index(name, numbers)
            if each.state == READY or not only_ready
        ]

    def _index(self, name: str, numbers: tuple[int, ...]) -> list[ModelIndex]:
        serving = self._store.served().get(name)
        serves = serving.manifest.version if serving else 0
        reasons = {each.version: each.reason for each in self._store.failures(name)}
        found = []
        for number in numbers:
            state, reason = UNAVAILABLE, reasons.get(number, "")
            if number == serves and serving:
                state, reason = (UNAVAILABLE, serving.unfit) if serving.unfit else (READY, "")
            elif not reason and serving:
                reason = f"version {serves} serves"
            elif not reason and name == self._store.default:
                state = LOADING
            elif not reason:
                reason = "not in memory: the first request loads it"
            found.append(ModelIndex(name, str(number), state, reason))
        return found

    @_route(
        "POST",
        "/v2/repository/models/<model:name>/load",
        rights=ADMIN,
        body=RepositoryRequest,
        example={},
        errors=_ADMINISTRATION,
    )
    def load(self, name: str) -> Done:
        """Load the newest version on disk, and have it serve."""
        if parameters := _read(RepositoryRequest).parameters:
            raise InvalidFieldError(
                f"the parameter {next(iter(parameters))} is not taken: a version on disk is loaded"
                " as its bundle says; POST /v1/models/NAME/upload brings one"
            )
        self._auditor.make("load", name, lambda: self._store.refresh(name))
        return Done()

    @_route(
        "POST",
        "/v2/repository/models/<model:name>/unload",
        rights=ADMIN,
        body=RepositoryRequest,
        example={},
        errors=_ADMINISTRATION,
    )
    def unload(self, name: str) -> Done:
        """Free a model's memory; the next request for it loads it again."""
        _read(RepositoryRequest)
        if name not in versions(self._store.folder):
            raise ModelNotFoundError(f"there is no model {name}")
        self._auditor.make("unload", name, lambda: self._store.unload(name))
        return Done()
