"""Events that the engine itself fails on: found, set aside, and left out of every later replay (FAULTS F2).

A bug that one event wakes would otherwise stop the service at that event again after every restart. The list is part
of the state: with the same list the same records give the same decisions (T3).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import orjson

from engine.decode.split import split
from engine.model import Block, DeadLetter, DeadReason, RecordKind

WHOLE = -1
_NO_EVENT = b"{}"


class RecordFault(Exception):
    """The engine raised on a block; the cause says what."""

    def __init__(self, block: Block) -> None:
        self.block = block
        super().__init__(f"positions {int(block.position[0])} to {int(block.position[-1])}")


class _Entry(msgspec.Struct):
    position: int
    item: int


class Quarantine:
    """The list in a file, one JSON object a line: position, item of the record (-1: all of it), type of the error."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._items: dict[int, set[int]] = {}
        for line in path.read_bytes().splitlines() if path.exists() else ():
            try:
                entry = msgspec.json.decode(line, type=_Entry)
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue  # torn by a crash: the event is found again
            self._items.setdefault(entry.position, set()).add(entry.item)

    def __len__(self) -> int:
        return sum(map(len, self._items.values()))

    def holds(self, position: int, item: int) -> bool:
        return item in self._items.get(position, ())

    def add(self, position: int, item: int, error: str) -> None:
        """Set an event aside for good; durable on return."""
        self._items.setdefault(position, set()).add(item)
        with self._path.open("ab") as file:
            file.write(b"\n" + orjson.dumps({"position": position, "item": item, "error": error}) + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def without(self, block: Block) -> Block:
        """Return the block with what is set aside made harmless; the numbers of the other events stay."""
        if not self._items:
            return block
        rows = [row for row, position in enumerate(block.position.tolist()) if position in self._items]
        if not rows:
            return block
        data, kind = bytearray(block.data), block.kind.copy()
        for row in rows:
            items = self._items[int(block.position[row])]
            if WHOLE in items:
                kind[row] = RecordKind.TICK
                continue
            begin, end = int(block.start[row]), int(block.end[row])
            for item, (start, stop) in enumerate(split(bytes(data[begin:end]))):
                if item in items:
                    data[begin + start : begin + stop] = _NO_EVENT.ljust(stop - start)
        return Block(bytes(data), block.start, block.end, block.position, block.append_ms, kind, block.partition)

    def named(self, dead: list[DeadLetter]) -> list[DeadLetter]:
        """Give the dead letters of what is set aside their true reason."""
        if not self._items:
            return dead
        return [
            DeadLetter(DeadReason.ENGINE_FAULT, "", one.position, one.item, one.partition)
            if self.holds(one.position, one.item)
            else one
            for one in dead
        ]


def single_records(block: Block) -> Iterator[Block]:
    """Cut a block into blocks of one record."""
    for row in range(len(block)):
        yield block.part(row, row + 1)


def single_items(block: Block) -> Iterator[Block]:
    """Cut a block of one record into blocks of one event each, all at the record's position."""
    begin, end = int(block.start[0]), int(block.end[0])
    for start, stop in split(bytes(block.data[begin:end])):
        yield replace(block, start=np.array([begin + start]), end=np.array([begin + stop]))
