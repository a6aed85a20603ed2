"""64-bit hashes of text, the same in kernels and in Python, and the unaligned loads they are made of.

The hash is a multiply-fold in the manner of wyhash: 16 bytes a round, folded to 64 bits by xor of the two halves of
a 128-bit product. It is stable across machines and versions because dedupe ids and checkpoints hold it. It does not
defend against chosen collisions: whoever needs exactness compares the bytes (the user table does).

Inner kernels pass bytes by address: an array handed from function to function is counted up and down each time, which
costs more than the work done here. Whoever holds the array keeps it alive.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic as numba_intrinsic

from engine.kernels import inlined_kernel, lean_kernel

intrinsic: Callable[[Callable[..., Any]], Callable[..., Any]] = numba_intrinsic
"""Numba's decorator, typed as what it makes: a function that kernels call without the typing context."""

PAGE = 4096
"""The smallest page of memory. What lies on the same page as a byte that may be read may be read too."""

_K0 = np.uint64(0x9E3779B97F4A7C15)
_K1 = np.uint64(0xA0761D6478BD642F)
_K2 = np.uint64(0xE7037ED1A0B428DB)
_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)
_ZERO = np.uint64(0)
_ONE = np.uint64(1)


@lean_kernel
def hash_bytes(buffer: Any, start: int, end: int) -> Any:
    """Hash buffer[start:end] (uint8[N], contiguous) to a uint64 that is never 0."""
    return hash_at(address_of(buffer) + start, end - start)


@inlined_kernel
def hash_at(address: int, length: int) -> Any:
    """Hash `length` bytes at an address to a uint64 that is never 0.

    Cost: one multiplication per 16 bytes and two more.
    Oracle: tests/unit/test_decode_hashing.py, written in Python integers.
    """
    size = np.uint64(length)
    state = _K0 ^ size
    while length > 16:
        state = fold(load_8(address) ^ _K1, load_8(address + 8) ^ state)
        address += 16
        length -= 16
    if length > 8:
        state = fold(load_8(address) ^ _K1, load_upto_8(address + 8, length - 8) ^ state)
    else:
        state = fold(load_upto_8(address, length) ^ _K1, state)
    state = fold(state ^ _K2, size ^ _K1)
    return state if state != _ZERO else _ONE


@inlined_kernel
def combine(first: Any, second: Any) -> Any:
    """Fold two hashes into one, in order; never 0."""
    state = fold(first ^ _K1, second ^ _K2)
    return state if state != _ZERO else _ONE


def hash_text(text: str) -> int:
    """Hash a text as its UTF-8 bytes; equal to `hash_bytes` over them."""
    raw = np.frombuffer(text.encode() or b"\0", np.uint8)
    return int(hash_bytes(raw, 0, len(raw) if text else 0))


def combine_hashes(*hashes: int) -> int:
    """Fold several hashes from left to right by `combine`."""
    state = np.uint64(hashes[0])
    for one in hashes[1:]:
        state = np.uint64(combine(state, np.uint64(one)))
    return int(state)


@inlined_kernel
def load_upto_8(address: int, count: int) -> Any:
    """Read `count` (0..8) bytes, least significant first, the rest 0."""
    if count == 0:
        return _ZERO
    if address & (PAGE - 1) <= PAGE - 8:
        return load_8(address) & (_ALL >> np.uint64(64 - 8 * count))
    return _load_singly(address, count)


@lean_kernel
def _load_singly(address: int, count: int) -> Any:
    value = _ZERO
    for k in range(count):
        value |= np.uint64(load_1(address + k)) << np.uint64(8 * k)
    return value


@intrinsic
def address_of(typing_context: Any, array: Any) -> Any:
    """Return where a contiguous array's first element lies; the array must be kept alive."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        view = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.ptrtoint(view.data, ir.IntType(64))

    return types.int64(array), generate


@intrinsic
def load_8(typing_context: Any, address: Any) -> Any:
    """Read 8 bytes at any alignment as uint64, least significant first."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(builder.inttoptr(arguments[0], ir.IntType(64).as_pointer()), align=1)

    return types.uint64(types.int64), generate


@intrinsic
def load_1(typing_context: Any, address: Any) -> Any:
    """Read one byte as int64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte = builder.load(builder.inttoptr(arguments[0], ir.IntType(8).as_pointer()))
        return builder.zext(byte, ir.IntType(64))

    return types.int64(types.int64), generate


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


@intrinsic
def trailing_zeros(typing_context: Any, word: Any) -> Any:
    """Count the zero bits below the lowest set one; the word is not 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), generate
