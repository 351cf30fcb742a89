"""POST /v1/models/NAME/compare: two versions or models side by side, on the same frames."""

import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from threading import BoundedSemaphore
from typing import Annotated

import msgspec
from flask import request
from msgspec import Meta

from server.api.recognize.explain import Turns
from server.api.recognize.options import Name, Version
from server.config.thread_budget import COMPARING_REQUESTS_MAX
from server.errors import (
    InvalidFieldError,
    LinesideError,
    ModelNotFoundError,
    NotFoundError,
    OverloadedError,
)
from server.http.body.image import need_length
from server.http.body.json_body import read_json
from server.http.routes import ADMIN, route
from server.recognition.admission import Admission
from server.recognition.answers import Answer, Options
from server.recognition.reader_guard import Sender
from server.recognition.recognizer import Recognizer, StageTimer
from server.recognition.tasks.task import NotFiniteError
from server.store.bundles.layout import versions
from server.store.bundles.repository import BundleRepository
from server.store.samples.folder import SampleFolder
from server.store.samples.index import Filter
from server.system.files import read_plain_file

COMPARE_TIMEOUT_S = 60.0
FRAMES_MAX, FRAMES = 60, 24
# Frames that a bundle brings along.
SAMPLES, SUFFIXES = "samples", (".jpg", ".jpeg", ".png", ".bmp", ".webp")


class CompareBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """version: of the model in the path; null for the one that serves. with_model, with_version:
    what it is compared with; null for the same model, and for the version that serves. frames: how
    many at most."""

    version: Version | None = None
    with_model: Name | None = None
    with_version: Version | None = None
    frames: Annotated[int, Meta(ge=1, le=FRAMES_MAX)] = FRAMES


class ComparedModel(msgspec.Struct, frozen=True):
    """One side. right: of the frames that a person has labelled, how many get that label. verdicts:
    frames by verdict, `none` without a policy and `error` for those without an answer. mean_ms: of
    decoding and running it here, beside the line; null if no frame had an answer."""

    model: str
    version: int
    right: int
    verdicts: dict[str, int]
    mean_ms: float | None


class ComparedAnswer(msgspec.Struct, frozen=True):
    """The answer of one side to a frame. error: the sentence, if it can't be answered."""

    label: str | None = None
    probability: float | None = None
    verdict: str | None = None
    error: str | None = None


class ComparedFrame(msgspec.Struct, frozen=True):
    """One frame. sample: its id in /v1/samples; file: its name in /v1/models/NAME/samples of the
    model; one of them is null. label: that a person gave. answers: of the two sides."""

    sample: str | None
    file: str | None
    label: str | None
    answers: tuple[ComparedAnswer, ...]


class Comparison(msgspec.Struct, frozen=True):
    """Two versions on the same frames: labelled samples first, then the newest, then those of the
    bundle. labelled: frames with a person's label. different: frames whose label or verdict
    differs."""

    sides: tuple[ComparedModel, ...]
    labelled: int
    different: int
    frames: tuple[ComparedFrame, ...]


class _Frame(msgspec.Struct, frozen=True):
    sample: str | None
    file: str | None
    label: str | None
    data: bytes


class CompareRoutes:
    """Compares versions of `store`. samples: the kept ones, None if none are kept."""

    def __init__(
        self, store: BundleRepository, samples: SampleFolder | None, admission: Admission
    ) -> None:
        self._store = store
        self._samples = samples
        self._admission = admission
        self._places = BoundedSemaphore(COMPARING_REQUESTS_MAX)

    @route(
        "POST",
        "/v1/models/<model:name>/compare",
        rights=ADMIN,
        body=CompareBody,
        example={"with_version": 1},
        errors=(400, 403, 404, 413, 422, 503),
    )
    def compare(self, name: str) -> Comparison:
        """Return what two versions say of the same frames: kept samples and those of the bundle. A
        version that does not serve is loaded for that, its golden frames checked. Nothing is
        judged: journal, outputs and counts know nothing of it, and frames of the line go first."""
        if name not in versions(self._store.folder):
            raise ModelNotFoundError(f"there is no model {name}")
        need_length(request)
        body = read_json(CompareBody)
        if not self._places.acquire(blocking=False):
            raise OverloadedError("two versions are being compared already", retry_after=10)
        try:
            first = self._model(name, body.version)
            second = self._model(body.with_model or name, body.with_version)
            # One by one: each may have as many bytes as a body.
            frames = self._frames((first, second), body.frames)
            turns = Turns(self._admission, time.monotonic() + COMPARE_TIMEOUT_S)
            return _compare(first, second, frames, turns)
        finally:
            self._places.release()

    def _model(self, name: str, version: int | None) -> Recognizer:
        store = self._store
        model = store.get(name) if version is None else store.on_trial(name, version)
        if not isinstance(model, Recognizer):
            raise InvalidFieldError(f"the model {name} takes numbers, and frames are compared")
        return model

    def _frames(self, models: Sequence[Recognizer], most: int) -> Iterator[_Frame]:
        left = most
        for frame in self._kept(models, most):
            left -= 1
            yield frame
        folder = models[0].bundle.folder / SAMPLES
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        pictures = [each for each in files if each.suffix.lower() in SUFFIXES and each.is_file()]
        for path in pictures[:left]:
            yield _Frame(None, path.name, None, read_plain_file(path))

    def _kept(self, models: Sequence[Recognizer], most: int) -> Iterator[_Frame]:
        """Yield kept samples of both models, those with a label first, the newest first."""
        folder = self._samples
        if folder is None:
            return
        left = most
        names = dict.fromkeys(model.manifest.name for model in models)
        for labelled in (True, False):
            for name in names:
                if left <= 0:
                    return
                found, _ = folder.find(Filter(model=name, labelled=labelled), "", left)
                for sample in found:
                    # It may have been removed meanwhile.
                    try:
                        data = folder.image(sample)
                    except NotFoundError:
                        continue
                    left -= 1
                    yield _Frame(sample.id, None, sample.label, data)


def _answer(model: Recognizer, data: bytes, turns: Turns) -> tuple[ComparedAnswer, Answer | None]:
    """Return what `model` says of an image file's bytes. Raises OverloadedError of `turns`."""
    timer, options = StageTimer(), Options(top_k=1)
    try:
        with turns.take():
            seen = model.read(data, timer, sender=Sender("", "", options.deadline))
        answer = model.answer_of(seen, options, timer)
    except NotFiniteError:
        return ComparedAnswer(error="the model's output is not finite"), None
    except OverloadedError:
        raise
    except LinesideError as error:
        return ComparedAnswer(error=error.message), None
    best = answer.best
    shown = ComparedAnswer(
        best.label if best else None,
        round(best.probability, 4) if best else None,
        answer.verdict,
    )
    return shown, answer


def _compare(
    first: Recognizer, second: Recognizer, frames: Iterable[_Frame], turns: Turns
) -> Comparison:
    rows: list[ComparedFrame] = []
    timings: tuple[list[float], list[float]] = [], []
    for frame in frames:
        pair = []
        for model, seconds in zip((first, second), timings, strict=True):
            shown, answer = _answer(model, frame.data, turns)
            pair.append(shown)
            if answer is not None:
                seconds.append(answer.timing["total"])
        rows.append(ComparedFrame(frame.sample, frame.file, frame.label, (pair[0], pair[1])))
    side = partial(_side, rows)
    return Comparison(
        (side(first, 0, timings[0]), side(second, 1, timings[1])),
        sum(row.label is not None for row in rows),
        sum(_differ(*row.answers) for row in rows),
        tuple(rows),
    )


def _side(
    rows: Sequence[ComparedFrame], model: Recognizer, index: int, seconds: Sequence[float]
) -> ComparedModel:
    verdicts: dict[str, int] = {}
    for row in rows:
        answer = row.answers[index]
        verdict = "error" if answer.error else (answer.verdict or "none")
        verdicts[verdict] = verdicts.get(verdict, 0) + 1
    right = sum(row.label is not None and row.answers[index].label == row.label for row in rows)
    mean = round(sum(seconds) / len(seconds) * 1000, 2) if seconds else None
    return ComparedModel(model.manifest.name, model.manifest.version, right, verdicts, mean)


def _differ(first: ComparedAnswer, second: ComparedAnswer) -> bool:
    return (first.label, first.verdict, first.error) != (
        second.label,
        second.verdict,
        second.error,
    )
