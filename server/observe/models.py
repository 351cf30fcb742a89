"""The models of this moment, for Prometheus: which serve, and what they take."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from server.recognition.manifest import MODEL
from server.recognition.tensors.model import Model


class ModelsCollector(Collector):
    """Read whenever Prometheus asks, so that a version that was let go is not told of again."""

    def __init__(
        self,
        served: Callable[[], Mapping[str, Model]],
        memory: Callable[[], Mapping[str, int]],
    ) -> None:
        """served: the models that serve, by name. memory: bytes by name, of those as well that
        only finish their last frames."""
        self._served, self._memory = served, memory

    def collect(self) -> Iterator[GaugeMetricFamily]:
        info = GaugeMetricFamily(
            "lineside_model_info",
            "1 for each model that serves",
            labels=("model", "version", "quantization", "sha256"),
        )
        served = self._served()
        for name, recognizer in served.items():
            manifest = recognizer.manifest
            sha256 = manifest.sha256.get(MODEL, "")
            info.add_metric((name, str(manifest.version), manifest.quantization, sha256), 1)
        yield info
        yield GaugeMetricFamily("lineside_models_loaded", "Models that serve", value=len(served))
        yield GaugeMetricFamily(
            "lineside_interpreters",
            "Interpreters of all loaded models",
            value=sum(recognizer.pool.size for recognizer in served.values()),
        )
        memory = GaugeMetricFamily(
            "lineside_model_memory_bytes",
            "Memory of a model and its interpreters, measured when it was loaded",
            labels=("model",),
        )
        for name, size in self._memory().items():
            memory.add_metric((name,), size)
        yield memory
