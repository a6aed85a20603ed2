"""64-bit hashes of text, the same in kernels and in Python, and the unaligned loads they are made of.

The hash is a multiply-fold in the manner of wyhash: 16 bytes a round, folded to 64 bits by xor of the two halves of
a 128-bit product. It is stable across machines and versions because dedupe ids and checkpoints hold it. It does not
defend against chosen collisions: whoever needs exactness compares the bytes (the user table does).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic as numba_intrinsic

from engine.kernels import kernel

intrinsic: Callable[[Callable[..., Any]], Callable[..., Any]] = numba_intrinsic
"""Numba's decorator, typed as what it makes: a function that kernels call without the typing context."""

_K0 = np.uint64(0x9E3779B97F4A7C15)
_K1 = np.uint64(0xA0761D6478BD642F)
_K2 = np.uint64(0xE7037ED1A0B428DB)
_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)
_ZERO = np.uint64(0)
_ONE = np.uint64(1)


@kernel
def hash_bytes(buffer: Any, start: int, end: int) -> Any:
    """Hash buffer[start:end] to a uint64 that is never 0.

    buffer  uint8[N], contiguous.  Cost: one multiplication per 16 bytes and two more.
    Oracle: tests/unit/test_decode_hashing.py, written in Python integers.
    """
    length = np.uint64(end - start)
    state = _K0 ^ length
    i = start
    while end - i > 16:
        state = fold(load_u64(buffer, i) ^ _K1, load_u64(buffer, i + 8) ^ state)
        i += 16
    low = load_upto_8(buffer, i, min(end - i, 8))
    high = load_upto_8(buffer, i + 8, end - i - 8) if end - i > 8 else _ZERO
    state = fold(low ^ _K1, high ^ state)
    state = fold(state ^ _K2, length ^ _K1)
    return state if state != _ZERO else _ONE


@kernel
def combine(first: Any, second: Any) -> Any:
    """Fold two hashes into one, in order; never 0."""
    state = fold(first ^ _K1, second ^ _K2)
    return state if state != _ZERO else _ONE


def hash_text(text: str) -> int:
    """Hash a text as its UTF-8 bytes; equal to `hash_bytes` over them."""
    raw = np.frombuffer(text.encode(), np.uint8)
    return int(hash_bytes(raw, 0, len(raw)))


def combine_hashes(*hashes: int) -> int:
    """Fold several hashes from left to right by `combine`."""
    state = np.uint64(hashes[0])
    for one in hashes[1:]:
        state = np.uint64(combine(state, np.uint64(one)))
    return int(state)


@kernel
def load_u64(buffer: Any, index: int) -> Any:
    """Read 8 bytes, least significant first; bytes past the end of the buffer read as 0."""
    if index + 8 <= len(buffer):
        return load_u64_inside(buffer, np.int64(index))
    value = _ZERO
    for k in range(len(buffer) - index):
        value |= np.uint64(buffer[index + k]) << np.uint64(8 * k)
    return value


@kernel
def load_upto_8(buffer: Any, index: int, count: int) -> Any:
    """Read `count` (0..8) bytes, least significant first, the rest 0."""
    if count <= 0:
        return _ZERO
    return load_u64(buffer, index) & (_ALL >> np.uint64(64 - 8 * count))


@intrinsic
def load_u64_inside(typing_context: Any, buffer: Any, index: Any) -> Any:
    """Read 8 bytes at any alignment; the caller knows that they lie inside the buffer."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        address = builder.gep(array.data, [arguments[1]])
        word = ir.IntType(64)
        return builder.load(builder.bitcast(address, word.as_pointer()), align=1)

    return types.uint64(buffer, types.int64), generate


@intrinsic
def fold(typing_context: Any, first: Any, second: Any) -> Any:
    """Multiply two uint64 to 128 bits and xor the halves."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wide = ir.IntType(128)
        word = ir.IntType(64)
        product = builder.mul(builder.zext(arguments[0], wide), builder.zext(arguments[1], wide))
        high = builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), word)
        return builder.xor(builder.trunc(product, word), high)

    return types.uint64(types.uint64, types.uint64), generate
