"""`Reorder`: decoded rows in, the same out, those of a reordering feed later and sorted. Cold twin of the kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from engine.model import EVENT, Block
from engine.reorder import kernel
from engine.settings import FeedTable

FOREVER_MS = kernel.FOREVER
MOST_EVENTS = 1 << 20
"""Held at once, 144 bytes each: eight seconds of 130,000 events a second."""
MOST_TEXT_BYTES = 128 << 20
"""Of usage events that are held at once."""
MOST_OF_A_USER = 1024
"""So that one user cannot make the search for a place in the list long."""

_OUT_ROWS = 8192
_NO_EVENTS = np.zeros(0, EVENT)
_NO_POSITIONS = np.zeros(0, np.int64)
_NO_DATA = np.frombuffer(b"\0", np.uint8)
_KEPT = ("due_ms", "position", "number")


@dataclass(frozen=True, slots=True)
class GoneOn:
    """Rows that go on to the stages, good until the next are asked for.

    events    EVENT[N]  in the order they go on; `now_ms` of a held one is the instant it went on, its `record` the
                        number of records of the block, plus a place in `position`
    position  int64[M]  of the records of held ones
    data      what their spans lie in
    """

    events: np.ndarray
    position: np.ndarray
    data: memoryview


class Reorder:
    """Holds events of feeds with `reorder_s` for that long in log time, then lets them go on sorted (T5).

    Sorted is what is held of one user, of all feeds: by (at, accuracy, id). An event goes on when it is due, that is
    `reorder_s` after it came, and takes with it what sorts before it; its `now` is that instant, whether or not a
    record of the log carries it. Beyond the limits the one due first goes on early, and is counted.
    """

    def __init__(
        self,
        feeds: FeedTable,
        *,
        most_events: int = MOST_EVENTS,
        most_text_bytes: int = MOST_TEXT_BYTES,
        most_of_a_user: int = MOST_OF_A_USER,
    ) -> None:
        hold_ms = feeds.array["reorder_ms"].copy()
        queue_of = np.where(hold_ms > 0, np.cumsum(hold_ms > 0), -1).astype(np.int32)
        most = np.array([most_events, most_text_bytes, most_of_a_user], np.int64)
        self._limits = kernel.Limits(queue_of, hold_ms, most)
        self._queues = 1 + int((hold_ms > 0).sum())
        self._out = kernel.Out(np.zeros(_OUT_ROWS, EVENT), np.zeros(_OUT_ROWS, np.int64))
        self._users = 0
        self._buffer = self._blank()

    def _blank(self, rows: int = 1024, text: np.ndarray | None = None) -> kernel.Buffer:
        control = np.zeros(kernel.CONTROLS, np.int64)
        control[[kernel.DUE, kernel.FREE]] = FOREVER_MS, -1
        return kernel.Buffer(
            np.zeros(rows, EVENT),
            np.zeros(rows, kernel.LINK),
            np.zeros(1 << 16, np.uint8) if text is None else text,
            np.full(self._users, -1, np.int32),
            np.full((self._queues, 2), -1, np.int32),
            control,
        )

    def ensure(self, users: int) -> None:
        """Make room for user slots below `users`."""
        self._users = max(users, self._users)
        have = len(self._buffer.first)
        if users > have:
            more = np.full(max(users - have, have // 4), -1, np.int32)
            self._buffer = self._buffer._replace(first=np.concatenate((self._buffer.first, more)))

    # --- the stream -------------------------------------------------------------------------------------------------

    @property
    def due_ms(self) -> int:
        """When the next event goes on by itself; FOREVER_MS where nothing is held."""
        return int(self._buffer.control[kernel.DUE])

    @property
    def last_due_ms(self) -> int:
        """When the last event that is held now will have gone on; 0 where nothing is held."""
        tails = self._buffer.queue[:, 1]
        return int(self._buffer.link["due_ms"][tails[tails >= 0]].max(initial=0))

    def __len__(self) -> int:
        return int(self._buffer.control[kernel.LIVE])

    def take(self, block: Block, events: np.ndarray) -> Iterator[GoneOn]:
        """Hold or pass on the rows of a block; give what goes on up to the last row's `now`, in order."""
        # Read-only bytes and positions that may be written: one kind of each, or the kernel is compiled again.
        data = np.frombuffer(bytes(block.data) or b"\0", np.uint8)
        position = np.require(block.position, np.int64, ["C", "W"])
        yield from self._advance(events, position, data, int(events["now_ms"][-1]))

    def pass_time(self, now_ms: int) -> Iterator[GoneOn]:
        """Give what is due by `now_ms`."""
        if self.due_ms <= now_ms:
            yield from self._advance(_NO_EVENTS, _NO_POSITIONS, _NO_DATA, now_ms)

    def let_go(self, user: int, now_ms: int) -> Iterator[GoneOn]:
        """Give all that is held of a user, who leaves."""
        answer = kernel.MORE_OUT
        while answer != kernel.DONE and user < len(self._buffer.first):
            answer = kernel.let_go_user(self._buffer, self._out, user, now_ms, 0)
            yield from self._gone_on()

    def _advance(self, events: np.ndarray, position: np.ndarray, data: np.ndarray, until_ms: int) -> Iterator[GoneOn]:
        row, answer = 0, kernel.MORE_OUT
        while answer != kernel.DONE:
            row, answer = kernel.advance(self._buffer, self._limits, self._out, events, position, data, row, until_ms)
            # Before the text is packed: what has gone on is read where it lay.
            yield from self._gone_on()
            if answer == kernel.MORE_ROWS:
                self._add_rows(len(self._buffer.link))
            elif answer == kernel.MORE_TEXT:
                self._repack(int(self._buffer.control[kernel.WANTED]))

    def _gone_on(self) -> Iterator[GoneOn]:
        control = self._buffer.control
        rows, late = int(control[kernel.OUT]), int(control[kernel.LATE])
        control[kernel.OUT] = control[kernel.LATE] = 0
        if rows:
            yield GoneOn(self._out.event[:rows], self._out.position[:late], self._buffer.text.data)

    def _add_rows(self, rows: int) -> None:
        event, link = self._buffer.event, self._buffer.link
        self._buffer = self._buffer._replace(
            event=np.concatenate((event, np.zeros(rows, EVENT))),
            link=np.concatenate((link, np.zeros(rows, kernel.LINK))),
        )

    def _repack(self, wanted: int) -> None:
        """Close the gaps in the text; half of it is free then, so that this pays for itself."""
        living = int(self._buffer.control[kernel.TEXT_LIVE])
        text = np.zeros(max(1 << 16, 2 * (living + wanted)), np.uint8)
        kernel.repack(self._buffer, text)
        self._buffer = self._buffer._replace(text=text)

    def take_early(self) -> int:
        """Return how many went on before they were due since this was asked last."""
        early = int(self._buffer.control[kernel.EARLY])
        self._buffer.control[kernel.EARLY] = 0
        return early

    # --- users and content ------------------------------------------------------------------------------------------

    def are_held(self, users: np.ndarray) -> np.ndarray:
        """Say of each user slot whether an event of its user is held."""
        known = users < len(self._buffer.first)
        known[known] = self._buffer.first[users[known]] >= 0
        return known

    def forget(self, user: int) -> None:
        """Take out what is held of a user, the bytes included (I2)."""
        if user < len(self._buffer.first):
            kernel.discard_user(self._buffer, user)
        # The bytes of what is gone are still in its place: keep what is held, and nothing else.
        self.restore(self.arrays())
        self._out.event[:] = np.zeros((), EVENT)

    def renumber_cells(self, new_row: np.ndarray | None) -> None:
        """Follow a change of cells: int32[C], the new row of each old cell, -1 where it is gone; None: none moved.

        A fix by a cell that is gone keeps its place and accuracy.
        """
        if new_row is None:
            return
        events = self._buffer.event[: int(self._buffer.control[kernel.UNUSED])]
        by_cell = events["cell"] >= 0
        events["cell"][by_cell] = new_row[events["cell"][by_cell]]

    def discard(self, is_unwanted: Callable[[int, int], bool]) -> None:
        """Take out events that position and item say are unwanted: those that were set aside as faulty."""
        kept = self.arrays()
        places = zip(kept["position"].tolist(), kept["event"]["item"].tolist(), strict=True)
        wanted = np.array([not is_unwanted(*place) for place in places], np.bool_)
        if not wanted.all():
            text = kept["text"]
            self.restore({name: array[wanted] for name, array in kept.items() if name != "text"} | {"text": text})

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what a checkpoint needs: copies, of what is held alone, in order of arrival."""
        buffer = self._buffer
        used = int(buffer.control[kernel.UNUSED])
        places = np.flatnonzero(buffer.link["queue"][:used] >= 0)
        places = places[np.argsort(buffer.link["number"][places])]
        self._repack(0)
        return {
            "event": buffer.event[places],
            **{name: buffer.link[name][places] for name in _KEPT},
            "text": self._buffer.text[: int(buffer.control[kernel.TEXT_USED])].copy(),
        }

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Hold what `arrays()` returned and nothing else; each event keeps its due instant."""
        events = arrays["event"]
        now_ms, early = self._buffer.control[[kernel.NOW, kernel.EARLY]].tolist()
        link = np.zeros(len(events), kernel.LINK)
        for name in _KEPT:
            link[name] = arrays[name]
        order = np.lexsort((link["number"], link["due_ms"]))
        users = max(self._users, int(events["user"].max(initial=-1)) + 1)
        self._users = users
        text = np.zeros(max(1 << 16, 2 * len(arrays["text"])), np.uint8)
        text[: len(arrays["text"])] = arrays["text"]
        self._buffer = self._blank(max(1024, 2 * len(events)), text)
        control = self._buffer.control
        control[kernel.TEXT_USED] = len(arrays["text"])
        kernel.take_back(self._buffer, np.ascontiguousarray(events[order]), link[order])
        control[[kernel.NOW, kernel.EARLY]] = now_ms, early
