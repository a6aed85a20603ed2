"""Rows that go through the stages together, and the records they came from, which decisions name and filters read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from engine.decode.decoder import Decoder
from engine.model import EVENT, Block
from engine.reorder import GoneOn


class Batch:
    """EVENT[N] in log order, and how to find and read each again.

    late  held events among the rows: their `record` is the number of records of the block, plus a place in it
    """

    __slots__ = ("_block", "_decoder", "_late", "events")

    def __init__(self, decoder: Decoder, block: Block, events: np.ndarray, late: GoneOn | None = None) -> None:
        self.events = events
        self._decoder = decoder
        self._block = block
        self._late = late

    def __getitem__(self, rows: slice) -> Batch:
        return Batch(self._decoder, self._block, self.events[rows], self._late)

    def places(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return positions and items of rows, -1 both for row -1."""
        if not len(self.events):
            nowhere = np.full(len(rows), -1)
            return nowhere, nowhere
        position = self._block.position
        if self._late is not None:
            position = np.concatenate((position, self._late.position))
        chosen, known = self.events[rows], rows >= 0
        return np.where(known, position[chosen["record"]], -1), np.where(known, chosen["item"], -1)

    def place(self, row: int) -> tuple[int, int]:
        event = self.events[row]
        record, records = int(event["record"]), len(self._block)
        if self._late is not None and record >= records:
            return int(self._late.position[record - records]), int(event["item"])
        return int(self._block.position[record]), int(event["item"])

    def names(self, row: int) -> Any:
        """Return what names a usage event."""
        return self._read(self._decoder.read_names, self.events[row])

    def usage(self, event: Any) -> Any:
        """Return names and properties of a usage event, a row of `events`."""
        return self._read(self._decoder.read_usage, event)

    def _read(self, read: Callable[[Any, Any], Any], event: Any) -> Any:
        late = self._late
        return read(self._block.data if late is None or event["record"] < len(self._block) else late.data, event)


_NONE = np.zeros(0, np.int64)
NO_RECORDS = Block(b"", _NONE, _NONE, _NONE, _NONE, np.zeros(0, np.uint8))
NO_EVENTS = np.zeros(0, EVENT)
