"""A frame as JSON or as form fields, with its options beside it."""

from typing import Any

import msgspec

from server.api.recognize.options import FrameOptions, Threshold, TopK


class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`top_k` and `threshold`, as some clients send them."""

    top_k: TopK | None = None
    threshold: Threshold | None = None


class JsonFrame(FrameOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A frame as JSON or as form fields: one of `image_base64` (a data: URL is taken too),
    `image_url` (where the operator has allowed its host) and, for a model that takes numbers,
    `input` (a tensor as nested lists, or an object of them by input name)."""

    image_base64: str | None = None
    image_url: str | None = None
    input: Any = None
    parameters: Parameters | None = None
