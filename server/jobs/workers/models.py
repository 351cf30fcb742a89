"""The models of a worker, and a frame's way through one."""

from collections import OrderedDict
from pathlib import Path

import msgspec

from server.config.settings import Settings
from server.errors import InvalidFieldError, LinesideError, ModelNotFoundError, StartError
from server.jobs.messages import FrameTask
from server.recognition import tensor_model as tensors
from server.recognition.admission import Admission
from server.recognition.answers import Options
from server.recognition.interpreter import InterpreterPool
from server.recognition.manifest import MODEL
from server.recognition.recognizer import OnStage, Recognizer
from server.recognition.tensor_model import Model, make_model
from server.recognition.tensor_values import model_inputs, named_arrays, real_outputs
from server.store.bundles.layout import open_bundle
from server.store.jobs.records import FrameOutcome, JobError, NumbersAnswer

# Versions that a worker keeps loaded: the one that serves and one that is asked for beside it.
KEPT = 2


class WorkerModels:
    """Versions as the server names them, loaded when first asked for: not the newest that this
    machine holds, so that an answer is that of the version that served."""

    def __init__(self, settings: Settings, on_stage: OnStage) -> None:
        self._settings, self._on_stage = settings, on_stage
        self._limits = settings.image_limits
        # A worker has one frame in hand.
        self._admission = Admission(1, 0)
        self._loaded: OrderedDict[tuple[str, int, str], Model] = OrderedDict()

    def get(self, name: str, version: int, sha256: str) -> Model:
        """Raises ModelNotFoundError where this machine has no such version, or another file under
        its number."""
        key = name, version, sha256
        if key not in self._loaded:
            while len(self._loaded) >= KEPT:
                self._loaded.popitem(last=False)[1].pool.close()
            self._loaded[key] = self._load(name, version, sha256)
        self._loaded.move_to_end(key)
        return self._loaded[key]

    def _load(self, name: str, version: int, sha256: str) -> Model:
        folder = Path(self._settings.models) / name / str(version)
        try:
            bundle = open_bundle(folder, self._settings.recipe)
            if bundle.manifest.sha256.get(MODEL, "") != sha256:
                raise ModelNotFoundError(
                    f"the worker's {folder} is not the version {version} of {name} that serves:"
                    " copy the server's"
                )
            pool = InterpreterPool(bundle.model_path, 1, self._settings.threads_per_interpreter, 0)
            return make_model(bundle, pool, self._admission, self._limits, self._on_stage)
        except (StartError, OSError, ValueError, RuntimeError) as error:
            raise ModelNotFoundError(
                f"the worker can't load version {version} of {name}: {error}"
            ) from None

    def answer(self, work: FrameTask, data: bytes) -> FrameOutcome:
        """The outcome of one frame: what the synchronous route would have answered, or the fault
        that it would have told."""
        try:
            model = self.get(work.model, work.version, work.sha256)
            options = Options(
                top_k=work.ask.top_k,
                threshold=work.ask.threshold,
                camera=work.ask.camera or "",
                part=work.ask.part or "",
            )
            if work.kind == "numbers":
                return FrameOutcome(numbers=_numbers(model, data, options))
            if not isinstance(model, Recognizer):
                raise InvalidFieldError(f"the model {work.model} takes numbers, not an image")
            return FrameOutcome(answer=model.recognize(data, options))
        except LinesideError as error:
            return FrameOutcome(fault=JobError(error.code, error.message))


def _numbers(model: Model, data: bytes, options: Options) -> NumbersAnswer:
    arrays = named_arrays(msgspec.json.decode(data), model.pool.inputs)
    outcome = tensors.run_tensors(model, model_inputs(model, arrays), options)
    manifest = model.manifest
    return NumbersAnswer(
        manifest.name, manifest.version, real_outputs(model, outcome), outcome.answers
    )
