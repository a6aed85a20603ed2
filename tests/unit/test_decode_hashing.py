"""The hash that ids, dedupe and tables rest on (T7)."""

from __future__ import annotations

import random

import numpy as np

from engine.hashing_kernel import combine_hashes, hash_bytes, hash_text

MASK = (1 << 64) - 1


def fold(first: int, second: int) -> int:
    product = first * second
    return (product & MASK) ^ (product >> 64)


def slow_hash(raw: bytes) -> int:
    """The same hash in Python integers, written from its description."""
    one, two = 0xA0761D6478BD642F, 0xE7037ED1A0B428DB
    state = 0x9E3779B97F4A7C15 ^ len(raw)
    rest = raw
    while len(rest) > 16:
        state = fold(int.from_bytes(rest[:8], "little") ^ one, int.from_bytes(rest[8:16], "little") ^ state)
        rest = rest[16:]
    state = fold(int.from_bytes(rest[:8], "little") ^ one, int.from_bytes(rest[8:16], "little") ^ state)
    return fold(state ^ two, len(raw) ^ one) or 1


def test_the_hash_of_any_bytes_at_any_place_is_that_of_the_slow_twin() -> None:
    chance = random.Random(5)
    for _ in range(600):
        raw = chance.randbytes(chance.randrange(70))
        before, after = chance.randbytes(chance.randrange(9)), chance.randbytes(chance.randrange(9))
        buffer = np.frombuffer(before + raw + after + b"\0", np.uint8)
        assert int(hash_bytes(buffer, len(before), len(before) + len(raw))) == slow_hash(raw)


def test_bytes_at_the_end_of_a_page_hash_as_anywhere() -> None:
    """Wide loads must not look past the page; every distance from its end is tried."""
    buffer = np.arange(3 * 4096, dtype=np.int64).astype(np.uint8)
    page = -buffer.ctypes.data % 4096 + 4096
    for start in range(page - 40, page + 2):
        for length in (1, 7, 8, 9, 15, 16, 17, 33):
            assert int(hash_bytes(buffer, start, start + length)) == slow_hash(bytes(buffer[start : start + length]))


def test_text_hashes_as_its_utf_8_bytes_and_stays_the_same_for_ever() -> None:
    assert hash_text("淘宝") == slow_hash("淘宝".encode())
    # Frozen: dedupe ids in checkpoints hold these.
    assert hash_text("") == slow_hash(b"") == 0x14CBB45E71663F30
    assert hash_text("taobao") == slow_hash(b"taobao") == 0xA5F26198721A6648


def test_combining_keeps_order_apart() -> None:
    assert combine_hashes(1, 2) != combine_hashes(2, 1)
    assert combine_hashes(1, 2, 3) == combine_hashes(combine_hashes(1, 2), 3)
