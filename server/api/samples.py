"""/v1/samples: frames that were kept for a person to look at, and to say what they show."""

import time
from typing import Annotated, Any

import msgspec
from flask import Blueprint, Response, request
from msgspec import Meta

from server.errors import BundleError, InvalidFieldError, NotFoundError
from server.http.body.image import need_length, read_options
from server.http.body.json_body import read_json
from server.http.errors import to_json
from server.recognition.manifest import LABELS, read_labels
from server.recognition.results import Prediction
from server.recognition.sample import ID, MediaType, Reason, Sample
from server.store.bundles.repository import BundleRepository
from server.store.samples.folder import SampleFolder
from server.store.samples.index import Filter
from server.system.clock import rfc3339
from server.values.validation import NUMBER_TOO

# Labels that an error message lists.
MOST_NAMED = 20


class SampleQuery(Filter, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which samples are listed; without any, all. predicted: their most probable label. label:
    what a person said; labelled: whether one has. cursor: the `next` of the page before."""

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
    best: Prediction
    predictions: tuple[Prediction, ...]
    verdict: str | None
    image: MediaType
    bytes: int
    label: str | None
    labelled_at: str | None


class SamplePage(msgspec.Struct, frozen=True):
    """Samples, newest first. keeping: whether frames are kept on this server. kept, labelled,
    bytes, cap_bytes: how many there are in all, and the disk that they take and may take. next:
    the `cursor` of the page after, null at the end."""

    keeping: bool
    kept: int
    labelled: int
    bytes: int
    cap_bytes: int
    samples: tuple[SampleAnswer, ...]
    next: str | None


class LabelBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a sample shows, as a person sees it: one of the model's labels, or, if `new`, any other;
    null takes back what was said."""

    label: Annotated[str, Meta(max_length=128, extra=NUMBER_TOO)] | None
    new: bool = False


def sample_answer(sample: Sample) -> SampleAnswer:
    """`sample` as the API answers it."""
    fields: dict[str, Any] = msgspec.structs.asdict(sample)
    labelled_at = None if sample.labelled_at is None else rfc3339(sample.labelled_at)
    return SampleAnswer(**{**fields, "at": rfc3339(sample.at), "labelled_at": labelled_at})


def blueprint(folder: SampleFolder | None, store: BundleRepository) -> Blueprint:
    """The routes of the samples in `folder`, None where none are kept."""
    routes = Blueprint("samples", __name__, url_prefix="/v1/samples")

    def opened(name: str) -> SampleFolder:
        if folder is None:
            raise NotFoundError(f"there is no sample {name}: none are kept on this server")
        return folder

    @routes.get("")
    def samples() -> Response:
        query = read_options(SampleQuery, request)
        if folder is None:
            return to_json(SamplePage(False, 0, 0, 0, 0, (), None))
        found, after = folder.find(query, query.cursor or "", query.limit)
        now = folder.contents()
        page = SamplePage(
            True,
            now.samples,
            now.labelled,
            now.bytes,
            now.cap_bytes,
            tuple(map(sample_answer, found)),
            after,
        )
        return to_json(page)

    @routes.get("/<sample>")
    def sample(sample: str) -> Response:
        return to_json(sample_answer(opened(sample).get(sample)))

    @routes.get("/<sample>/image")
    def image(sample: str) -> Response:
        kept = opened(sample)
        found = kept.get(sample)
        response = Response(kept.image(found), content_type=found.image)
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Cache-Control"] = "private, max-age=3600"
        return response

    @routes.post("/<sample>/label")
    def label(sample: str) -> Response:
        need_length(request)
        said = read_json(LabelBody)
        kept = opened(sample)
        if said.label is not None:
            check_label(said.label, kept.get(sample), store, new=said.new)
        return to_json(sample_answer(kept.label(sample, said.label, round(time.time(), 3))))

    @routes.delete("/<sample>")
    def delete(sample: str) -> Response:
        return to_json(sample_answer(opened(sample).delete(sample)))

    return routes


def check_label(label: str, sample: Sample, store: BundleRepository, *, new: bool) -> None:
    """Raises InvalidFieldError where `label` is none of the model's, unless it is a `new` one that
    can name a class."""
    known = _labels_of(sample, store)
    if label in known:
        return
    if not new:
        has = ", ".join(known[:MOST_NAMED]) + " and others" * (len(known) > MOST_NAMED)
        raise InvalidFieldError(
            f"{label!r} is not a label of {sample.model}, which has {has or 'none any more'};"
            ' send also "new": true to make it one'
        )
    if not label.isprintable() or label != label.strip() or not label:
        raise InvalidFieldError(
            "a new label is of printable characters, with none of space before or after them"
        )


def _labels_of(sample: Sample, store: BundleRepository) -> tuple[str, ...]:
    """The labels of the model that answered the sample; none where it is there no more."""
    if model := store.served().get(sample.model):
        return tuple(label.name for label in model.labels)
    file = store.folder / sample.model / str(sample.model_version) / LABELS
    try:
        return tuple(label.name for label in read_labels(file))
    except BundleError:
        return ()
