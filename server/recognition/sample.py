"""A kept frame as files: ID.jpg (or another image) as received, and ID.json beside it.

`server.store.samples.folder` writes them, `convert` trains on those that a person has labelled;
both through these types.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from server.recognition.answers import Prediction
from server.recognition.tasks.task import all_tasks
from server.system.files import read_plain_file
from server.values import json_values
from server.values.validation import InvalidValueError

# The reason of a picture with a problem, by `Answer.health`.
UNHEALTHY = "unhealthy"

if TYPE_CHECKING:
    Reason = str
else:
    # Those of the tasks, of pictures with a problem, and of frames that were drawn at random.
    _OF_TASKS = dict.fromkeys(name for task in all_tasks() for name in task.sample_reasons)
    Reason = Literal[(*_OF_TASKS, UNHEALTHY, "random")]
MediaType = Literal[
    "image/jpeg",
    "image/png",
    "image/bmp",
    "image/webp",
    "image/tiff",
    "image/x-portable-anymap",
]
SUFFIXES: dict[MediaType, str] = {
    "image/jpeg": ".jpg",
    "image/png": ".png",
    "image/bmp": ".bmp",
    "image/webp": ".webp",
    "image/tiff": ".tiff",
    "image/x-portable-anymap": ".ppm",
}
# Media types by the format of `frame.read_header`.
MEDIA_TYPES: dict[str, MediaType] = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "BMP": "image/bmp",
    "WEBP": "image/webp",
    "TIFF": "image/tiff",
    "PPM": "image/x-portable-anymap",
}
# A number that grows with each sample, and the first 16 hex digits of the image's SHA-256.
ID = r"^[0-9]{9}-[0-9a-f]{16}$"


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """ID.json: a frame that was kept, why, and what was answered.

    at: when it was answered, in Unix seconds. image, bytes: the type and size of the image file.
    best: the most probable label, whatever threshold `predictions` had to pass; None if the frame
    shows nothing that has one. label: what a
    person said that it shows, at `labelled_at`.
    """

    id: Annotated[str, msgspec.Meta(pattern=ID)]
    at: float
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
    label: str | None = None
    labelled_at: float | None = None

    @property
    def image_name(self) -> str:
        return self.id + SUFFIXES[self.image]


def read_sample(path: Path) -> Sample:
    """Reads the sample of the file `path`, ID.json.

    Raises OSError, and ValueError if it is damaged or not named by the sample's id.
    """
    try:
        sample = json_values.decode(read_plain_file(path), Sample, name="it", lenient=False)
    except InvalidValueError as error:
        raise ValueError(f"{path} is not a sample: {error}") from None
    if path.stem != sample.id:
        raise ValueError(f"{path} holds the sample {sample.id}: name it {sample.id}.json")
    return sample


def labelled_samples(folder: Path) -> Iterator[tuple[Path, Sample]]:
    """Yields the image file and the sample of each one in `folder` that a person has labelled,
    oldest first. Raises what `read_sample` raises."""
    for path in sorted(folder.glob("*.json")):
        sample = read_sample(path)
        if sample.label is not None:
            yield path.with_name(sample.image_name), sample
