"""/v1/samples: frames that were kept for a person to look at and to label."""

import io
import re
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated, Any

import msgspec
from flask import Response, request
from msgspec import Meta

from server.api.recognize.options import IMAGE_TYPES
from server.config.thread_budget import SAMPLE_EXPORTS_MAX
from server.errors import BundleError, InvalidFieldError, NotFoundError, OverloadedError
from server.http.body.image import need_length, read_options
from server.http.body.json_body import read_json
from server.http.routes import ADMIN, route
from server.recognition.answers import Prediction
from server.recognition.manifest import LABELS, read_labels
from server.recognition.sample import ID, MediaType, Reason, Sample
from server.store.bundles.repository import BundleRepository
from server.store.samples.folder import SampleFolder
from server.store.samples.index import Filter
from server.system.clock import rfc3339
from server.values.validation import NUMBER_TOO

# Most labels that an error message lists.
LISTED_LABELS = 20
ZIP = "application/zip"
# Samples that are looked up at once for an export.
EXPORT_PAGE = 100
# Of a label that becomes the name of a folder: also a first dot, and what Windows does not take.
NO_FOLDER = re.compile(r'^\.|[/\\:*?"<>|]')


class SampleQuery(Filter, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Filters of the list of samples. predicted: the most probable label. label: the one that a
    person gave; labelled: whether a person gave one. cursor: the `next` of the page before."""

    limit: Annotated[int, Meta(ge=1, le=200)] = 50
    cursor: Annotated[str, Meta(pattern=ID, description="the `next` of a page")] | None = None


class SampleAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A kept frame: `server.recognition.sample.Sample` with its times as RFC 3339 in UTC.

    at: when it was answered. label: given by a person, at `labelled_at`.
    """

    id: str
    at: str
    reason: Reason
    request_id: str
    model: str
    model_version: int
    camera: str | None
    part: str | None
    best: Prediction | None
    predictions: tuple[Prediction, ...]
    verdict: str | None
    image: MediaType
    bytes: int
    label: str | None
    labelled_at: str | None


class SamplePage(msgspec.Struct, frozen=True):
    """Samples, newest first. keeping: whether frames are kept on this server. kept, labelled,
    bytes, cap_bytes: how many there are in all, and the disk that they take and may take. labels:
    how many got each label, by model. next: the `cursor` of the page after, null at the end."""

    keeping: bool
    kept: int
    labelled: int
    bytes: int
    cap_bytes: int
    samples: tuple[SampleAnswer, ...]
    next: str | None
    labels: dict[str, dict[str, int]] = {}


class LabelBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The label that a person gives a sample: one of the model's or, if `new`, any other; null
    removes the label."""

    label: Annotated[str, Meta(max_length=128, extra=NUMBER_TOO)] | None
    new: bool = False


def sample_answer(sample: Sample) -> SampleAnswer:
    fields: dict[str, Any] = msgspec.structs.asdict(sample)
    labelled_at = None if sample.labelled_at is None else rfc3339(sample.labelled_at)
    return SampleAnswer(**{**fields, "at": rfc3339(sample.at), "labelled_at": labelled_at})


def check_label(label: str, sample: Sample, store: BundleRepository, *, new: bool) -> None:
    """Raise InvalidFieldError if `label` is none of the model's, unless it is a `new` one that can
    name a class."""
    known = _labels_of(sample, store)
    if label in known:
        return
    if not new:
        has = ", ".join(known[:LISTED_LABELS]) + " and others" * (len(known) > LISTED_LABELS)
        raise InvalidFieldError(
            f"{label!r} is not a label of {sample.model}, which has {has or 'none any more'};"
            ' send also "new": true to make it one'
        )
    if not label.isprintable() or label != label.strip() or not label:
        raise InvalidFieldError(
            "a new label is of printable characters, with none of space before or after them"
        )


def _labels_of(sample: Sample, store: BundleRepository) -> tuple[str, ...]:
    """Return the labels of the model that answered the sample; none if that is gone."""
    if model := store.served().get(sample.model):
        return tuple(label.name for label in model.labels)
    file = store.folder / sample.model / str(sample.model_version) / LABELS
    try:
        return tuple(label.name for label in read_labels(file))
    except BundleError:
        return ()


class ExportQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """model: whose samples; without, those of all."""

    model: Annotated[str, Meta(max_length=128)] | None = None


class _Pieces(io.RawIOBase):
    """Keeps what a zip writes until it is taken."""

    def __init__(self) -> None:
        self._data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._data += data
        return len(data)

    def take(self) -> bytes:
        data, self._data = bytes(self._data), bytearray()
        return data


def _zip_of(folder: SampleFolder, model: str | None) -> Iterator[bytes]:
    """Yield a zip file, a sample at a time, so that no more than one is in memory. Names of folders
    are labels, in which `/` and what is no name of a folder become `_`."""
    pieces, cursor = _Pieces(), ""
    with zipfile.ZipFile(pieces, "w") as archive:
        while True:
            page, after = folder.find(Filter(model=model, labelled=True), cursor, EXPORT_PAGE)
            for sample in page:
                # It may have been removed, or its label, meanwhile.
                with suppress(NotFoundError):
                    label = NO_FOLDER.sub("_", sample.label or "")
                    archive.writestr(f"{label}/{sample.image_name}", folder.image(sample))
                yield pieces.take()
            if after is None:
                break
            cursor = after
    yield pieces.take()


_SAMPLE = "/v1/samples/<sample>"


class SampleRoutes:
    """The samples in `folder`, None if none are kept."""

    def __init__(self, folder: SampleFolder | None, store: BundleRepository) -> None:
        self._folder = folder
        self._store = store
        self._exports = threading.BoundedSemaphore(SAMPLE_EXPORTS_MAX)

    def _opened(self, name: str) -> SampleFolder:
        if self._folder is None:
            raise NotFoundError(f"there is no sample {name}: none are kept on this server")
        return self._folder

    @route("GET", "/v1/samples", rights=ADMIN, query=SampleQuery, errors=(400, 503))
    def samples(self) -> SamplePage:
        """Return a page of the frames that were kept for a person to look at."""
        query = read_options(SampleQuery, request)
        if self._folder is None:
            return SamplePage(False, 0, 0, 0, 0, (), None)
        # First, so that the page has each sample that is counted and was not removed meanwhile.
        now = self._folder.contents()
        page, after = self._folder.find(query, query.cursor or "", query.limit)
        return SamplePage(
            True,
            now.samples,
            now.labelled,
            now.bytes,
            now.cap_bytes,
            tuple(map(sample_answer, page)),
            after,
            now.labels,
        )

    @route(
        "GET",
        "/v1/samples.zip",
        rights=ADMIN,
        query=ExportQuery,
        answer={ZIP: bytes},
        errors=(400, 404, 503),
    )
    def export(self) -> Response:
        """Return the labelled samples of a model as a zip of one folder for each label, as
        `python -m convert train` takes it."""
        query = read_options(ExportQuery, request)
        if self._folder is None:
            raise NotFoundError("no samples are kept on this server")
        if not self._exports.acquire(blocking=False):
            raise OverloadedError("samples are being exported already", retry_after=5)
        response = Response(_zip_of(self._folder, query.model), content_type=ZIP)
        response.headers["Content-Disposition"] = "attachment; filename=samples.zip"
        response.headers["Cache-Control"] = "no-store"
        response.call_on_close(self._exports.release)
        return response

    @route("GET", _SAMPLE, rights=ADMIN, errors=(404, 503))
    def sample(self, sample: str) -> SampleAnswer:
        """Return one kept frame with its answer."""
        return sample_answer(self._opened(sample).get(sample))

    @route(
        "GET",
        f"{_SAMPLE}/image",
        rights=ADMIN,
        answer=dict.fromkeys((*IMAGE_TYPES, "image/x-portable-anymap"), bytes),
        errors=(404, 503),
    )
    def image(self, sample: str) -> Response:
        """Return the image of a kept frame as it was received."""
        folder = self._opened(sample)
        record = folder.get(sample)
        response = Response(folder.image(record), content_type=record.image)
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Cache-Control"] = "private, max-age=3600"
        return response

    @route(
        "POST",
        f"{_SAMPLE}/label",
        rights=ADMIN,
        body=LabelBody,
        example={"label": "scratched"},
        errors=(400, 403, 404, 413, 503),
    )
    def label(self, sample: str) -> SampleAnswer:
        """Keep what a person says that a kept frame shows."""
        need_length(request)
        body = read_json(LabelBody)
        folder = self._opened(sample)
        if body.label is not None:
            check_label(body.label, folder.get(sample), self._store, new=body.new)
        return sample_answer(folder.label(sample, body.label, round(time.time(), 3)))

    @route("DELETE", _SAMPLE, rights=ADMIN, errors=(400, 403, 404, 503))
    def delete(self, sample: str) -> SampleAnswer:
        """Remove a kept frame."""
        return sample_answer(self._opened(sample).delete(sample))
