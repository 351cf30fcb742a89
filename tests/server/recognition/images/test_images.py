"""The readers of JPEG, PNG, BMP and WebP together: every kind right, no damage answered."""

import random

import numpy as np
import pytest
from fuzz.fuzz_images import by_pillow, compare
from fuzz.image_kinds import KINDS
from image_reading import Damage, noise, read, repeat, swap, zeros

from server.errors import LinesideError, UnsupportedImageError
from server.recognition.frame import Limits
from server.recognition.images.header import FORMATS

OURS = ("JPEG", "PNG", "BMP", "WEBP")
ALL = [(format_, kind) for format_ in OURS for kind in KINDS[format_]]
READ = [pair for pair in ALL if pair != ("WEBP", "animation")]


@pytest.mark.parametrize(("format_", "kind"), READ)
def test_every_kind_is_read_as_pillow_reads_it(format_: str, kind: str) -> None:
    data = KINDS[format_][kind]
    ours, theirs = read(data), by_pillow(data, format_)
    assert ours.shape == theirs.shape
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= (2 if format_ == "JPEG" else 1)


def cut(data: bytes, start: int, size: int) -> bytes:
    return data[:start]


@pytest.mark.parametrize("damage", [zeros, noise, repeat, swap, cut])
@pytest.mark.parametrize(("format_", "kind"), ALL)
def test_damage_is_refused_or_seen_by_no_reader(format_: str, kind: str, damage: Damage) -> None:
    data = KINDS[format_][kind]
    for start in range(20, len(data) - 80, max(1, len(data) // 12)):
        damaged = damage(data, start, 40)
        assert compare(damaged, format_) is None
        if damaged != data and (format_ == "PNG" or damage is cut):
            with pytest.raises(LinesideError):
                read(damaged)


@pytest.mark.parametrize("format_", FORMATS)
def test_format_that_is_not_named_is_unsupported(format_: str) -> None:
    data = next(iter(KINDS[format_].values()))
    others = tuple(name for name in FORMATS if name != format_)
    with pytest.raises(UnsupportedImageError, match="image_formats"):
        read(data, Limits(formats=others))
    assert read(data, Limits(formats=(format_,))).shape[2] == 3


def test_native_readers_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(0)
    for format_, kind in ALL:
        data = KINDS[format_][kind]
        for _ in range(10):
            at = rng.randrange(len(data))
            try:
                read(zeros(data, at, 30))
            except LinesideError:
                continue
    assert capfd.readouterr() == ("", "")
