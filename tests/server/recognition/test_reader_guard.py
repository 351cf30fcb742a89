"""Memory of frames in hand, which outlives the process that reads them."""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from images import encode, plain

from server.recognition import frame
from server.recognition.frame import Limits
from server.recognition.manifest import Recipe
from server.recognition.reader_guard import RELEASE_MIN_BYTES, FramesInHand

SLOTS, FRAME_BYTES = 4, 300_000
LARGE = os.urandom(FRAME_BYTES)


def hold_and_die(memory: int, held: list[bytes], done: list[bytes]) -> None:
    """Dies with the frames `held` in hand, after those `done`."""
    frames = FramesInHand(SLOTS, FRAME_BYTES, memory)
    for data in done:
        with frames.hold(data, {}):
            pass
    with ExitStack() as stack:
        for number, data in enumerate(held):
            stack.enter_context(frames.hold(data, {"camera": f"c{number}"}))
        os.kill(os.getpid(), signal.SIGKILL)


def left_by(held: list[bytes], done: list[bytes]) -> FramesInHand:
    before = FramesInHand(SLOTS, FRAME_BYTES)
    arguments = (before.descriptor, held, done)
    process = multiprocessing.get_context("fork").Process(target=hold_and_die, args=arguments)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    return FramesInHand(SLOTS, FRAME_BYTES, before.descriptor)


def test_what_was_in_hand_outlives_the_process() -> None:
    frames = left_by([b"one", LARGE], done=[b"before", LARGE])
    assert sorted((each.data, each.about["camera"]) for each in frames.held_frames) == sorted(
        [(b"one", "c0"), (LARGE, "c1")]
    )
    frames.close()


def test_frames_left_keep_their_slots_until_released() -> None:
    frames = left_by([b"one"] * SLOTS, done=[])
    assert len(frames.held_frames) == SLOTS
    with frames.hold(b"no room", {}):
        again = FramesInHand(SLOTS, FRAME_BYTES, os.dup(frames.descriptor))
        assert {each.data for each in again.held_frames} == {b"one"}
        again.close()
    for each in frames.held_frames:
        frames.release(each)
    with frames.hold(b"new", {}):
        again = FramesInHand(SLOTS, FRAME_BYTES, os.dup(frames.descriptor))
        assert [each.data for each in again.held_frames] == [b"new"]
        again.close()
    frames.close()


def test_memory_of_other_slots_is_not_used_and_freed() -> None:
    frames = left_by([LARGE], done=[])
    other = FramesInHand(SLOTS + 1, FRAME_BYTES, frames.descriptor)
    assert other.held_frames == ()
    assert other.descriptor != frames.descriptor
    assert os.fstat(frames.descriptor).st_blocks == 0
    other.close()


def test_frame_that_is_too_large_is_not_held() -> None:
    frames = FramesInHand(SLOTS, FRAME_BYTES)
    with frames.hold(LARGE + b"x", {}), frames.hold(b"x", {"camera": "c" * 5000}):
        again = FramesInHand(SLOTS, FRAME_BYTES, os.dup(frames.descriptor))
        assert again.held_frames == ()
        again.close()
    frames.close()


def test_memory_of_large_frames_goes_back() -> None:
    frames, large = FramesInHand(SLOTS, 2 * RELEASE_MIN_BYTES), bytes(RELEASE_MIN_BYTES + 1)
    for _ in range(SLOTS):
        with ExitStack() as together:
            for _ in range(SLOTS):
                together.enter_context(frames.hold(large, {}))
    assert os.fstat(frames.descriptor).st_blocks * 512 < RELEASE_MIN_BYTES
    frames.close()


class HeldError(Exception):
    """A guard was asked."""


@contextmanager
def asked(_: bytes) -> Iterator[None]:
    raise HeldError
    yield


RECIPE = Recipe(width=16, height=16)
PLAIN = plain((0, 255, 0))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM"])
def test_readers_of_all_formats_are_guarded(kind: str) -> None:
    with pytest.raises(HeldError):
        frame.decode(encode(PLAIN, kind), RECIPE, Limits(), asked)
