"""Find texts in a byte arena by open addressing, compared exactly.

A text is one arena record: slot (4 bytes), length (1 byte), bytes. A table entry is one 64-bit word: the upper 24 bits
of the text's hash as a tag above its arena offset + 1; 0 is empty. So a miss is answered by the table's own cache
line, and a hit costs one further line, where the slot stands beside the bytes that prove it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils

from engine.hashing_kernel import hash_bytes, intrinsic, load_u64, load_u64_inside, load_upto_8
from engine.kernels import kernel

HEADER = 5
LONGEST = 255
SPARE = 16  # bytes kept free behind the arena's last record, so that 8 bytes may be read anywhere in it

COUNT, USED, FREE_HEAD, FREE_COUNT, OCCUPIED = range(5)
"""Places in `state`: slots handed out, arena bytes used, first free slot or -1, free slots, entries ever filled."""

_OFFSET_BITS = np.uint64(40)
_OFFSET_MASK = np.uint64((1 << 40) - 1)
_GRAVE = np.uint64((1 << 40) - 1)
_EMPTY = np.uint64(0)
_ONE = np.uint64(1)


class Texts(NamedTuple):
    """The arrays of one table.

    entries  uint64[C]  C a power of two
    arena    uint8[A]
    offset   int64[S]   arena offset of a slot's record; below 0: free, -2 - next free slot, -1 ends the chain
    state    int64[5]   see COUNT..OCCUPIED
    """

    entries: np.ndarray
    arena: np.ndarray
    offset: np.ndarray
    state: np.ndarray


@kernel
def find_text(texts: Any, buffer: Any, start: int, end: int, hashed: Any) -> Any:
    """Return the slot of buffer[start:end], whose hash is `hashed`, or -1."""
    length = end - start
    mask = np.uint64(len(texts.entries) - 1)
    tag = hashed >> _OFFSET_BITS
    place = hashed & mask
    while True:
        entry = texts.entries[place]
        if entry == _EMPTY:
            return -1
        if entry >> _OFFSET_BITS == tag and entry != _GRAVE:
            at = np.int64((entry & _OFFSET_MASK) - _ONE)
            head = load_u64_inside(texts.arena, at)
            if np.int64((head >> np.uint64(32)) & np.uint64(0xFF)) == length and _same(
                texts.arena, at + HEADER, buffer, start, length
            ):
                return np.int64(head & np.uint64(0xFFFFFFFF))
        place = (place + _ONE) & mask


@kernel
def _same(arena: Any, at: int, buffer: Any, start: int, length: int) -> Any:
    i = 0
    while length - i >= 8:
        if load_u64_inside(arena, at + i) != load_u64(buffer, start + i):
            return False
        i += 8
    return load_upto_8(arena, at + i, length - i) == load_upto_8(buffer, start + i, length - i)


@kernel
def has_room(texts: Any, wanted: int, longest: int) -> Any:
    """Say whether `wanted` more texts of at most `longest` bytes fit without growing anything."""
    state = texts.state
    slots = len(texts.offset) - state[COUNT] + state[FREE_COUNT]
    return bool(
        slots >= wanted
        and state[USED] + wanted * (HEADER + longest) + SPARE <= len(texts.arena)
        and (state[OCCUPIED] + wanted) * 5 <= len(texts.entries) * 4
    )


@kernel
def add_text(texts: Any, buffer: Any, start: int, end: int, hashed: Any) -> Any:
    """Add a text known to be absent and return its slot; the caller has seen that there is room."""
    state = texts.state
    if state[FREE_COUNT] > 0:
        slot = state[FREE_HEAD]
        state[FREE_HEAD] = -2 - texts.offset[slot]
        state[FREE_COUNT] -= 1
    else:
        slot = state[COUNT]
        state[COUNT] += 1
    at = state[USED]
    for k in range(4):
        texts.arena[at + k] = np.uint8((slot >> (8 * k)) & 255)
    texts.arena[at + 4] = np.uint8(end - start)
    for k in range(end - start):
        texts.arena[at + HEADER + k] = buffer[start + k]
    state[USED] = at + HEADER + end - start
    texts.offset[slot] = at
    _enter(texts, at, hashed)
    return np.int64(slot)


@kernel
def _enter(texts: Any, at: int, hashed: Any) -> None:
    mask = np.uint64(len(texts.entries) - 1)
    place = hashed & mask
    while texts.entries[place] != _EMPTY and texts.entries[place] != _GRAVE:
        place = (place + _ONE) & mask
    if texts.entries[place] == _EMPTY:
        texts.state[OCCUPIED] += 1
    texts.entries[place] = ((hashed >> _OFFSET_BITS) << _OFFSET_BITS) | np.uint64(at + 1)


@kernel
def intern_text(texts: Any, buffer: Any, start: int, end: int) -> Any:
    """Return the slot of a text, added if new; the caller has seen that there is room for one."""
    hashed = hash_bytes(buffer, start, end)
    slot = find_text(texts, buffer, start, end, hashed)
    return slot if slot >= 0 else add_text(texts, buffer, start, end, hashed)


@kernel
def look_up_text(texts: Any, buffer: Any, start: int, end: int) -> Any:
    """Return the slot of a text, or -1."""
    return find_text(texts, buffer, start, end, hash_bytes(buffer, start, end))


@kernel
def remove_slot(texts: Any, slot: int) -> None:
    """Forget the text of a used slot and put the slot on the free chain; its arena bytes stay until `repack`."""
    at = texts.offset[slot]
    start = at + HEADER
    end = start + texts.arena[at + 4]
    wanted = np.uint64(at + 1)
    mask = np.uint64(len(texts.entries) - 1)
    place = hash_bytes(texts.arena, start, end) & mask
    while texts.entries[place] & _OFFSET_MASK != wanted:
        place = (place + _ONE) & mask
    texts.entries[place] = _GRAVE
    for k in range(start, end):
        texts.arena[k] = 0
    texts.offset[slot] = -2 - texts.state[FREE_HEAD]
    texts.state[FREE_HEAD] = slot
    texts.state[FREE_COUNT] += 1


@kernel
def repack(old: Any, new: Any) -> None:
    """Copy every used slot of `old` into `new` (larger or as large, zeroed), without what was removed."""
    new.state[COUNT] = old.state[COUNT]
    new.state[FREE_HEAD] = old.state[FREE_HEAD]
    new.state[FREE_COUNT] = old.state[FREE_COUNT]
    used = 0
    for slot in range(old.state[COUNT]):
        at = old.offset[slot]
        if at < 0:
            new.offset[slot] = at
            continue
        size = HEADER + old.arena[at + 4]
        new.arena[used : used + size] = old.arena[at : at + size]
        new.offset[slot] = used
        _enter(new, used, hash_bytes(new.arena, used + HEADER, used + size))
        used += size
    new.state[USED] = used


@kernel
def touch_entry(texts: Any, hashed: Any) -> None:
    """Ask the processor for the cache line of the entry that `hashed` begins at."""
    prefetch(texts.entries, np.int64(hashed & np.uint64(len(texts.entries) - 1)))


@kernel
def touch_record(texts: Any, hashed: Any) -> None:
    """Ask the processor for the arena record of the first entry with the tag of `hashed`, within four entries."""
    mask = np.uint64(len(texts.entries) - 1)
    tag = hashed >> _OFFSET_BITS
    place = hashed & mask
    for _ in range(4):
        entry = texts.entries[place]
        if entry == _EMPTY:
            return
        if entry >> _OFFSET_BITS == tag and entry != _GRAVE:
            prefetch(texts.arena, np.int64((entry & _OFFSET_MASK) - _ONE))
            return
        place = (place + _ONE) & mask


@intrinsic
def prefetch(typing_context: Any, array: Any, index: Any) -> Any:
    """Ask the processor to bring array[index] near; reads nothing."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        view = context.make_array(signature.args[0])(context, builder, arguments[0])
        byte = ir.IntType(8).as_pointer()
        number = ir.IntType(32)
        address = builder.bitcast(builder.gep(view.data, [arguments[1]]), byte)
        function_type = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]
            builder.module, function_type, "llvm.prefetch.p0"
        )
        builder.call(function, [address, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(array, types.int64), generate
