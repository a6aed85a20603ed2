"""Find texts in a byte arena by open addressing, compared exactly.

A text is one arena record: slot (4 bytes), length (1 byte), bytes. A table entry is one 64-bit word: the upper 30 bits
of the text's hash as a tag above its arena offset + 1; 0 is empty. So a miss is answered by the table's own cache
line, and a hit costs one further line, where the slot stands beside the bytes that prove it. An entry's place is given
by the upper bits of its tag: a larger table is filled in one pass in order, without looking at a text.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from engine.hashing_kernel import (
    address_of,
    hash_at,
    hash_bytes,
    load_1,
    load_8,
    load_upto_8,
    trailing_zeros,
)
from engine.kernels import inlined_kernel, kernel, lean_kernel
from engine.prefetch_kernel import prefetch

HEADER = 5
LONGEST = 255
SPARE = 16  # bytes kept free behind the arena's last record, so that 8 bytes may be read anywhere in it

COUNT, USED, FREE_HEAD, FREE_COUNT, OCCUPIED = range(5)
"""Places in `state`: slots handed out, arena bytes used, first free slot or -1, free slots, entries ever filled."""

_OFFSET_BITS = np.uint64(34)
_OFFSET_MASK = np.uint64((1 << 34) - 1)
_GRAVE = np.uint64((1 << 34) - 1)
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


class Table(NamedTuple):
    """Where the arrays of a Texts lie, for finding; valid until a text is added that makes them grow."""

    entries: int
    mask: int
    shift: Any  # from a hash to a place
    arena: int


@lean_kernel
def table_of(texts: Any) -> Any:
    """Return the Table of a Texts."""
    return table_at(address_of(texts.entries), len(texts.entries) - 1, address_of(texts.arena))


@inlined_kernel
def table_at(entries: int, mask: int, arena: int) -> Any:
    """Return the Table of arrays at these addresses; mask is the number of entries less 1."""
    return Table(entries, mask, np.uint64(64 - trailing_zeros(np.uint64(mask + 1))), arena)


@inlined_kernel
def find_text(table: Any, address: int, length: int, hashed: Any) -> Any:
    """Return the slot of the text of `length` bytes at `address`, whose hash is `hashed`, or -1."""
    tag = hashed >> _OFFSET_BITS
    place = np.int64(hashed >> table.shift)
    while True:
        entry = load_8(table.entries + place * 8)
        if entry == _EMPTY:
            return -1
        if entry >> _OFFSET_BITS == tag and entry != _GRAVE:
            record = table.arena + np.int64(entry & _OFFSET_MASK) - 1
            head = np.int64(load_8(record))
            if (head >> 32) & 0xFF == length and same_bytes(record + HEADER, address, length):
                return head & 0xFFFFFFFF
        place = (place + 1) & table.mask


@inlined_kernel
def same_bytes(first: int, second: int, length: int) -> Any:
    """Compare `length` bytes at two addresses."""
    while length >= 8:
        if load_8(first) != load_8(second):
            return False
        first += 8
        second += 8
        length -= 8
    return load_upto_8(first, length) == load_upto_8(second, length)


@lean_kernel
def has_room(texts: Any, wanted: int, longest: int) -> Any:
    """Say whether `wanted` more texts of at most `longest` bytes fit without growing anything."""
    state = texts.state
    slots = len(texts.offset) - state[COUNT] + state[FREE_COUNT]
    return bool(
        slots >= wanted
        and state[USED] + wanted * (HEADER + longest) + SPARE <= len(texts.arena)
        and (state[OCCUPIED] + wanted) * 5 <= len(texts.entries) * 4
    )


@lean_kernel
def add_text(texts: Any, address: int, length: int, hashed: Any) -> Any:
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
    texts.arena[at + 4] = np.uint8(length)
    for k in range(length):
        texts.arena[at + HEADER + k] = np.uint8(load_1(address + k))
    state[USED] = at + HEADER + length
    texts.offset[slot] = at
    _enter(texts, at, hashed)
    return np.int64(slot)


@lean_kernel
def _enter(texts: Any, at: int, hashed: Any) -> None:
    entry = ((hashed >> _OFFSET_BITS) << _OFFSET_BITS) | np.uint64(at + 1)
    texts.state[OCCUPIED] += _put(texts.entries, table_of(texts), entry, hashed)


@inlined_kernel
def _put(entries: Any, table: Any, entry: Any, hashed: Any) -> Any:
    """Put an entry into the first free place; return 1 if that was never used, 0 if it was a grave."""
    place = np.int64(hashed >> table.shift)
    while entries[place] != _EMPTY and entries[place] != _GRAVE:
        place = (place + 1) & table.mask
    was_empty = entries[place] == _EMPTY
    entries[place] = entry
    return 1 if was_empty else 0


@lean_kernel
def spread_entries(old: Any, new: Any) -> Any:
    """Put all entries of `old` into `new` (zeroed, 2 ** 30 at most), leaving out graves; return how many."""
    table = table_at(address_of(new), len(new) - 1, 0)
    count = 0
    for entry in old:
        if entry != _EMPTY and entry != _GRAVE:
            count += _put(new, table, entry, entry)
    return count


@kernel
def intern_text(texts: Any, buffer: Any, start: int, end: int) -> Any:
    """Return the slot of buffer[start:end], added if new; the caller has seen that there is room for one."""
    address = address_of(buffer) + start
    hashed = hash_at(address, end - start)
    slot = find_text(table_of(texts), address, end - start, hashed)
    return slot if slot >= 0 else add_text(texts, address, end - start, hashed)


@kernel
def look_up_text(texts: Any, buffer: Any, start: int, end: int) -> Any:
    """Return the slot of buffer[start:end], or -1."""
    address = address_of(buffer) + start
    return find_text(table_of(texts), address, end - start, hash_at(address, end - start))


@kernel
def remove_slot(texts: Any, slot: int) -> None:
    """Forget the text of a used slot and put the slot on the free chain; its arena bytes stay until `repack`."""
    at = texts.offset[slot]
    start = at + HEADER
    end = start + texts.arena[at + 4]
    wanted = np.uint64(at + 1)
    table = table_of(texts)
    place = np.int64(hash_bytes(texts.arena, start, end) >> table.shift)
    while texts.entries[place] & _OFFSET_MASK != wanted:
        place = (place + 1) & table.mask
    texts.entries[place] = _GRAVE
    for k in range(start, end):
        texts.arena[k] = 0
    texts.offset[slot] = -2 - texts.state[FREE_HEAD]
    texts.state[FREE_HEAD] = slot
    texts.state[FREE_COUNT] += 1


@kernel
def remove_slots(texts: Any, slots: np.ndarray) -> int:
    """Remove used slots one after another; return the arena bytes that `repack` will win back."""
    freed = 0
    for slot in slots:
        freed += HEADER + texts.arena[texts.offset[slot] + 4]
        remove_slot(texts, slot)
    return freed


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


@inlined_kernel
def touch_entry(table: Any, hashed: Any) -> None:
    """Ask the processor for the cache line of the entry that `hashed` begins at."""
    prefetch(table.entries + np.int64(hashed >> table.shift) * 8)


@inlined_kernel
def touch_record(table: Any, hashed: Any) -> None:
    """Ask the processor for the arena record of the first entry with the tag of `hashed`, within four entries."""
    tag = hashed >> _OFFSET_BITS
    place = np.int64(hashed >> table.shift)
    for _ in range(4):
        entry = load_8(table.entries + place * 8)
        if entry == _EMPTY:
            return
        if entry >> _OFFSET_BITS == tag and entry != _GRAVE:
            prefetch(table.arena + np.int64(entry & _OFFSET_MASK) - 1)
            return
        place = (place + 1) & table.mask
