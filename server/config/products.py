"""The tables `[[product]]`: what a line makes, and the model, version and policy that judge it;
and `[[vote]]`: one verdict for several frames of a part."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from server.config.cameras import CameraTable
from server.config.tables import Table, key_help
from server.errors import SettingsError


class ProductTable(Table, frozen=True, kw_only=True, tag="product"):
    """One product."""

    model: Annotated[str, key_help("model that judges its frames", min_length=1)]
    version: Annotated[
        int,
        key_help("version of the model, which the product's activation makes serve; 0: any", ge=0),
    ] = 0
    policy: Annotated[
        dict[str, Any] | None,
        key_help(
            "verdict policy in place of the model's, with the fields of `verdict` in bundle.json"
        ),
    ] = None


Rule = Literal["majority", "all", "any", "best"]


class VoteTable(Table, frozen=True, kw_only=True, tag="vote"):
    """The frames that vote, and the rule. The first table whose filters let a frame through counts
    it."""

    products: Annotated[tuple[str, ...], key_help("products whose frames vote; empty: all")] = ()
    cameras: Annotated[tuple[str, ...], key_help("cameras whose frames vote; empty: all")] = ()
    frames: Annotated[
        int,
        key_help("frames of a part, or without `part` of a camera, that vote", ge=2, le=100),
    ]
    rule: Annotated[
        Rule,
        key_help(
            "verdict of more than half of the frames (majority); pass if all, or any, pass; or the"
            " verdict of the sharpest frame, or the one of the highest familiarity or probability"
            " (best)"
        ),
    ] = "majority"
    timeout_s: Annotated[
        float,
        key_help("time for all frames, from the first; then it is unsure", "s", ge=0.05, le=3600),
    ] = 2.0
    gap_s: Annotated[
        float,
        key_help(
            "without `part`: time from one frame of a camera to its next that ends a vote as"
            " timeout_s does; shorter than from part to part, so that frames of two parts never"
            " vote together; 0: none",
            "s",
            ge=0,
            le=3600,
        ),
    ] = 0.0


def check_cameras(cameras: Sequence[CameraTable], products: Sequence[ProductTable]) -> None:
    """Raise SettingsError for a camera whose product does not exist, or that names a model too."""
    names = {product.name for product in products}
    for camera in cameras:
        if camera.product and camera.model:
            raise SettingsError(
                f"[[camera]] {camera.name}: model and product can't both be set: a product has its"
                " model"
            )
        if camera.product and camera.product not in names:
            raise SettingsError(
                f"[[camera]] {camera.name}: product can't be {camera.product!r}: there is no such"
                " [[product]]"
            )


def check_votes(votes: Sequence[VoteTable], products: Sequence[ProductTable]) -> None:
    """Raise SettingsError for a vote of a product that does not exist: its frames would not be
    voted on."""
    names = {product.name for product in products}
    for vote in votes:
        if unknown := [name for name in vote.products if name not in names]:
            raise SettingsError(
                f"[[vote]] {vote.name}: products can't have {unknown[0]!r}: there is no such"
                " [[product]]"
            )


Products = tuple[ProductTable, ...]
Votes = tuple[VoteTable, ...]
