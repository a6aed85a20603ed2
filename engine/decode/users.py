"""Texts interned to slots: the user table, and the plain table it grows from (cells, feeds).

Memory beside the bytes of the ids: 5 B header, 8 B offset, 2 B generation and 10 to 20 B of table a user.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from engine.decode.table_kernel import (
    COUNT,
    FREE_COUNT,
    FREE_HEAD,
    HEADER,
    LONGEST,
    OCCUPIED,
    SPARE,
    USED,
    Texts,
    has_room,
    intern_text,
    look_up_text,
    remove_slots,
    repack,
    spread_entries,
)

LONGEST_USER = 128
"""Bytes of the longest user id (docs/contracts.md, Event)."""


class TextTable:
    """Give every distinct text a small number, in order of first sight."""

    def __init__(self, slots: int = 1024, arena_bytes: int = 0) -> None:
        self.texts = _empty(slots, arena_bytes or slots * 24)
        self._freed_bytes = 0

    @property
    def count(self) -> int:
        """How many slots were ever handed out: every slot is below this."""
        return int(self.texts.state[COUNT])

    def slot_of(self, text: str, intern: bool = True) -> int:
        """Return the slot of a text; add it if it is new and `intern`, else -1."""
        raw = np.frombuffer(text.encode(), np.uint8)
        return self.slot_of_bytes(raw, 0, len(raw), intern)

    def slot_of_bytes(self, buffer: np.ndarray, start: int, end: int, intern: bool = True) -> int:
        """As `slot_of`, for buffer[start:end]."""
        if not 1 <= end - start <= LONGEST:
            if intern:
                raise ValueError(f"a text of {end - start} bytes cannot be interned; 1 to {LONGEST} are possible")
            return -1
        if not intern:
            return int(look_up_text(self.texts, buffer, start, end))
        self.make_room(1)
        return int(intern_text(self.texts, buffer, start, end))

    def id_of(self, slot: int) -> str:
        """Return the text of a used slot."""
        at = int(self.texts.offset[slot])
        if not 0 <= slot < self.count or at < 0:
            raise KeyError(f"slot {slot} is not in use")
        start = at + HEADER
        return bytes(self.texts.arena[start : start + int(self.texts.arena[at + 4])]).decode()

    def ids_of(self, slots: np.ndarray) -> list[str]:
        """Return the texts of many used slots, at a tenth of the cost of asking for each."""
        if len(slots) == 0:
            return []
        if np.min(slots) < 0 or np.max(slots) >= self.count:
            raise KeyError("a slot is not in use")
        at = self.texts.offset[slots]
        if np.min(at) < 0:
            raise KeyError("a slot is not in use")
        length = self.texts.arena[at + 4].astype(np.int64)
        end = np.cumsum(length)
        place = np.repeat(at + HEADER - end + length, length) + np.arange(end[-1])
        raw = self.texts.arena[place].tobytes()
        ends = end.tolist()
        text = raw.decode()
        if len(text) == len(raw):
            return [text[start:stop] for start, stop in zip([0, *ends], ends, strict=False)]
        return [raw[start:stop].decode() for start, stop in zip([0, *ends], ends, strict=False)]

    def make_room(self, wanted: int) -> None:
        """Make sure that `wanted` texts of any length can be added. Each array grows by itself: no long pause."""
        texts = self.texts
        if has_room(texts, wanted, LONGEST):
            return
        state = texts.state
        used_bytes, live = int(state[USED]), int(state[COUNT] - state[FREE_COUNT])
        needed_bytes = wanted * (HEADER + LONGEST) + SPARE
        if used_bytes + needed_bytes > len(texts.arena) and self._freed_bytes * 4 > used_bytes:
            kept = used_bytes - self._freed_bytes
            packed = _empty(len(texts.offset), kept * 3 // 2 + needed_bytes, entries_for=live + wanted)
            repack(texts, packed)
            self._freed_bytes = 0
            texts = packed
        elif used_bytes + needed_bytes > len(texts.arena):
            texts = texts._replace(arena=_grown(texts.arena, used_bytes * 3 // 2 + needed_bytes, 0))
        if (int(texts.state[OCCUPIED]) + wanted) * 5 > len(texts.entries) * 4:
            entries = np.zeros(_entries_for(live + wanted), np.uint64)
            texts.state[OCCUPIED] = spread_entries(texts.entries, entries)
            texts = texts._replace(entries=entries)
        if live + wanted > len(texts.offset):
            texts = texts._replace(offset=_grown(texts.offset, max(len(texts.offset) * 2, live + wanted), -1))
        self.texts = texts


class UserTable(TextTable):
    """User ids as slots; a slot given back is used again under the next generation number."""

    def __init__(self, slots: int = 1024) -> None:
        super().__init__(slots)
        self.generation = np.zeros(slots, np.uint16)
        """uint16[S], of every slot: rises when its user is evicted."""

    @property
    def live(self) -> int:
        """How many slots hold a user now."""
        return int(self.texts.state[COUNT] - self.texts.state[FREE_COUNT])

    def evict(self, slots: Iterable[int]) -> None:
        """Forget these users; their slots are handed out again, newest first, under a new generation."""
        chosen = np.fromiter(slots, np.int64)
        for slot in chosen[~self.are_used(chosen)].tolist():
            raise KeyError(f"slot {slot} is not in use")
        self._freed_bytes += int(remove_slots(self.texts, chosen))
        self.generation[chosen] += 1

    def are_used(self, slots: np.ndarray) -> np.ndarray:
        """Say of each slot whether it holds a user now."""
        known = (slots >= 0) & (slots < self.count)
        known[known] = self.texts.offset[slots[known]] >= 0
        return known

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what a checkpoint holds: copies of the ids, their places, generations and the chain of free slots."""
        state = self.texts.state
        count = int(state[COUNT])
        return {
            "arena": self.texts.arena[: int(state[USED])].copy(),
            "offset": self.texts.offset[:count].copy(),
            "generation": self.generation[:count].copy(),
            "free": np.array([state[FREE_HEAD], state[FREE_COUNT]], np.int64),
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> UserTable:
        """Build the table that `arrays` describe: the same users in the same slots."""
        offset, arena = arrays["offset"], arrays["arena"]
        count = len(offset)
        table = cls(max(1024, count))
        old = Texts(
            np.zeros(1, np.uint64),
            arena,
            offset,
            np.array([count, len(arena), arrays["free"][0], arrays["free"][1], 0], np.int64),
        )
        new = _empty(max(1024, count + count // 8), len(arena) * 9 // 8, entries_for=count)
        repack(_writable(old), new)
        table.texts = new
        table.generation = _grown(arrays["generation"], len(new.offset), 0)
        return table

    def make_room(self, wanted: int) -> None:
        super().make_room(wanted)
        if len(self.generation) < len(self.texts.offset):
            self.generation = _grown(self.generation, len(self.texts.offset), 0)


def _empty(slots: int, arena_bytes: int, entries_for: int = 0) -> Texts:
    return Texts(
        np.zeros(_entries_for(entries_for), np.uint64),
        np.zeros(max(64, arena_bytes + SPARE), np.uint8),
        np.full(slots, -1, np.int64),
        np.array([0, 0, -1, 0, 0], np.int64),
    )


def _entries_for(texts: int) -> int:
    """Return a power of two of which `texts` fill at most 0.54, so that the table may half fill again."""
    entries = 16
    while entries * 8 < (texts + 1) * 15:
        entries *= 2
    return entries


def _grown(array: np.ndarray, length: int, fill: int) -> np.ndarray:
    grown = np.zeros(length, array.dtype) if fill == 0 else np.full(length, fill, array.dtype)
    grown[: len(array)] = array
    return grown


def _writable(texts: Texts) -> Texts:
    """Checkpoints may hand over read-only views; the kernels are compiled for writable arrays only."""
    return Texts(*(np.require(one, requirements=["C", "W"]) for one in texts))
