"""The cache in memory: bounded by bytes, the least recently used out first, each for its time."""

import threading
import tracemalloc

import pytest

pytest.importorskip("flask_caching", reason="flask-caching is not installed")

from server.store.cache.memory_backend import ENTRY_OVERHEAD_BYTES, MemoryCache


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_value_stays_for_its_time() -> None:
    clock = Clock()
    cache = MemoryCache(10_000, default_timeout=60, clock=clock)
    assert cache.set("default", b"1")
    assert cache.set("short", b"2", timeout=5)
    assert cache.set("ever", b"3", timeout=0)
    clock.now += 4.9
    assert [cache.get(key) for key in ("default", "short", "ever")] == [b"1", b"2", b"3"]
    clock.now += 0.1
    assert cache.get("short") is None
    clock.now += 55
    assert cache.get("default") is None
    assert cache.get("ever") == b"3"
    assert cache.size == len("ever") + 1 + ENTRY_OVERHEAD_BYTES


def test_the_least_recently_used_goes_first() -> None:
    cache = MemoryCache(3 * (ENTRY_OVERHEAD_BYTES + 2))
    for key in "abc":
        assert cache.set(key, b"x")
    assert cache.get("a") == b"x"
    assert cache.set("d", b"x")
    assert [cache.get(key) is not None for key in "abcd"] == [True, False, True, True]


def test_what_has_no_room_is_refused_and_leaves_the_rest() -> None:
    cache = MemoryCache(1000)
    assert cache.set("a", b"x")
    assert not cache.set("b", bytes(1000))
    assert cache.get("a") == b"x"
    assert not cache.set("a", bytes(1000)), "the old value would be an old answer"
    assert cache.get("a") is None
    assert cache.size == 0


def test_the_bound_holds_in_memory() -> None:
    """For entries as small as they come, of which the overhead is most."""
    most = 4_000_000
    tracemalloc.start()
    try:
        cache = MemoryCache(most)
        before = tracemalloc.get_traced_memory()[0]
        for number in range(50_000):
            cache.set(f"request:{number:032}", bytes([number % 256]) * 64)
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert most * 0.9 < cache.size <= most
    assert used <= most


def test_threads_leave_it_whole() -> None:
    cache = MemoryCache(20 * (ENTRY_OVERHEAD_BYTES + 10))

    def work(seed: int) -> None:
        for turn in range(3000):
            key = str((turn * 7 + seed) % 40)
            if turn % 3:
                assert cache.get(key) in (None, key.encode())
            else:
                cache.set(key, key.encode())

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = [key for number in range(40) if cache.get(key := str(number))]
    assert cache.size == sum(2 * len(key) + ENTRY_OVERHEAD_BYTES for key in kept)
