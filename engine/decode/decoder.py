"""Bytes to rows: every well-formed event of a block as one row of EVENT, every other as a dead letter.

The compiled scanner fills the rows; what it does not recognise for certain it hands, event by event and in order, to
the typed reader, which also says what is wrong with what cannot be read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from engine.datum_kernel import to_wgs84
from engine.decode.envelopes import Ignored
from engine.decode.events import EVENT_TYPES, Event, Ping, RareEvent, UsageEvent
from engine.decode.split import is_whole_document, split
from engine.decode.typed import TypedReader
from engine.decode.users import TextTable, UserTable
from engine.definitions import CellTable
from engine.errors import EventError
from engine.hashing_kernel import combine_hashes, hash_bytes, hash_text
from engine.model import (
    DEFAULT_ACCURACY_M,
    DEGREE_E7,
    EVENT,
    Block,
    Datum,
    DeadLetter,
    DeadReason,
    Drop,
    Method,
    RecordKind,
)
from engine.settings import FeedTable

MAX_AHEAD_MS = 300_000
"""An event further ahead of the log's now than this is a dead letter (T6)."""


@dataclass(slots=True)
class Decoded:
    """What a block held, in log order.

    events   EVENT[N]  every well-formed event of every type
    rare     row -> typed event, for every type but ping and usage
    dead     one letter for each event that could not be read
    now_ms   the log's now after the block; ticks count toward it and give no row
    ignored  known payloads that carry no event for us (OwnTracks messages other than locations)
    """

    events: np.ndarray
    rare: dict[int, RareEvent] = field(default_factory=dict)
    dead: list[DeadLetter] = field(default_factory=list)
    now_ms: int = 0
    ignored: int = 0


class Decoder:
    """Decodes the blocks of one partition and interns its users.

    reader   `scanner`: compiled, with the typed reader behind it; `typed`: the typed reader alone, as an oracle
    """

    def __init__(
        self,
        feeds: FeedTable,
        cells: CellTable,
        users: UserTable,
        tenant: str = "default",
        reader: Literal["scanner", "typed"] = "scanner",
    ) -> None:
        self.users = users
        self._feeds = feeds
        self._origin_hash = [combine_hashes(hash_text(tenant), hash_text(name)) for name in feeds.names]
        self.set_cells(cells)
        self._typed = TypedReader(feeds, tenant, self._cell_row)

    def set_cells(self, cells: CellTable) -> None:
        """Take another cell table from the next block on."""
        self._cells = cells
        self._cell_table = TextTable(max(16, len(cells.ids)))
        for row, cell in enumerate(cells.ids):
            if self._cell_table.slot_of(cell) != row:
                raise ValueError(f"cell {cell} appears twice in the cell table")

    def decode(self, block: Block, now_ms: int) -> Decoded:
        """Decode every record of `block`; `now_ms` is the log's now before it (T2)."""
        sheet = _Sheet(block, now_ms)
        for record in range(len(block)):
            append_ms = int(block.append_ms[record])
            sheet.now_ms = max(sheet.now_ms, append_ms)
            if block.kind[record] != RecordKind.EVENTS:
                continue
            start, end = int(block.start[record]), int(block.end[record])
            value = bytes(block.data[start:end])
            for item, (from_, to) in enumerate(split(value)):
                if self._read_item(sheet, record, item, start + from_, start + to) > start + to:
                    break
        return sheet.decoded()

    def read(self, block: Block, event: np.void) -> Event:
        """Return the whole event behind a row of this block's events, with its props and text."""
        read = self._typed.read(bytes(block.data[int(event["span_start"]) : int(event["span_end"])]))
        assert not isinstance(read, Ignored)
        return read

    def _cell_row(self, cell: str) -> int:
        return self._cell_table.slot_of(cell, intern=False)

    def _read_item(self, sheet: _Sheet, record: int, item: int, start: int, end: int) -> int:
        """Read one event by the typed reader into the sheet; return where it ended.

        That is `end`, or the end of the record where the record turns out to be one text spread over lines.
        """
        block = sheet.block
        try:
            event = self._typed.read(bytes(block.data[start:end]))
        except EventError as error:
            if error.reason == DeadReason.BAD_JSON:
                value = bytes(block.data[int(block.start[record]) : int(block.end[record])])
                if is_whole_document(value, item, end - int(block.start[record])):
                    return self._read_item(sheet, record, item, start, start + len(value.strip(b" \t\r\n")))
            sheet.bury(error.reason, error.detail, record, item)
            return end
        if isinstance(event, Ignored):
            sheet.ignored += 1
            return end
        if block.append_ms[record] < 0:
            sheet.now_ms = max(sheet.now_ms, event.at_ms)
        elif event.at_ms > sheet.now_ms + MAX_AHEAD_MS:
            sheet.bury(DeadReason.FUTURE, "at", record, item)
            return end
        self._add(sheet, event, record, item, start, end)
        return end

    def _add(self, sheet: _Sheet, event: Event, record: int, item: int, start: int, end: int) -> None:
        app = category = action = 0
        lon_e7 = lat_e7 = 0
        accuracy_m = 0.0
        cell = -1
        method, drop = Method.UNKNOWN, Drop.NONE
        if isinstance(event, Ping):
            lon_e7, lat_e7, accuracy_m, drop = self._place(event)
            cell, method = event.cell, event.method
        elif isinstance(event, UsageEvent):
            app, category, action = (hash_text(one) if one else 0 for one in (event.app, event.category, event.action))
        else:
            sheet.rare[sheet.count] = event
        sheet.next_row()[...] = (
            event.at_ms,
            sheet.now_ms,
            self._id_hash(event, sheet.block.data, start, end),
            app,
            category,
            action,
            start,
            end,
            lon_e7,
            lat_e7,
            accuracy_m,
            self.users.slot_of(event.user),
            cell,
            record,
            item,
            event.feed,
            method,
            EVENT_TYPES[type(event)],
            drop,
        )

    def _place(self, ping: Ping) -> tuple[int, int, float, Drop]:
        """Return lon_e7, lat_e7, accuracy_m and drop of a ping (L2, L3, L6, L8)."""
        feed = self._feeds.array[ping.feed]
        stated_m = ping.accuracy_m * float(feed["radius_factor"])
        default_m = DEFAULT_ACCURACY_M[ping.method]
        drop = Drop.NONE
        if ping.lon is None or ping.lat is None:
            lon_e7, lat_e7 = int(self._cells.lon_e7[ping.cell]), int(self._cells.lat_e7[ping.cell])
            radius_m = float(self._cells.radius_m[ping.cell])
            accuracy_m = radius_m if radius_m > 0 else stated_m if stated_m > 0 else default_m
        else:
            accuracy_m = stated_m if stated_m > 0 else default_m
            lon_e7 = lat_e7 = 0
            lon, lat = ping.lon, ping.lat
            if not (-180 <= lon <= 180 and -90 <= lat <= 90):
                drop = Drop.OUT_OF_RANGE
            elif lon == 0 and lat == 0:
                drop = Drop.NULL_ISLAND
            else:
                if feed["datum"] != Datum.WGS84:
                    lon, lat = to_wgs84(float(lon), float(lat), int(feed["datum"]))
                lon_e7, lat_e7 = round(lon * DEGREE_E7), round(lat * DEGREE_E7)
        if drop == Drop.NONE and accuracy_m > feed["max_accuracy_m"]:
            drop = Drop.TOO_COARSE
        return lon_e7, lat_e7, accuracy_m, drop

    def _id_hash(self, event: Event, data: bytes, start: int, end: int) -> int:
        """Hash what makes an event the same one (T7), after tenant and feed (I1)."""
        origin = self._origin_hash[event.feed]
        if event.id is not None:
            return combine_hashes(origin, hash_text(event.id))
        payload = int(hash_bytes(np.frombuffer(data, np.uint8), start, end))
        return combine_hashes(origin, hash_text(event.user), event.at_ms, payload)


class _Sheet:
    """The rows and letters of one block while they are written."""

    def __init__(self, block: Block, now_ms: int) -> None:
        self.block = block
        self.now_ms = now_ms
        self.events = np.empty(len(block) + 16, EVENT)
        self.count = 0
        self.rare: dict[int, RareEvent] = {}
        self.dead: list[DeadLetter] = []
        self.ignored = 0

    def next_row(self) -> np.ndarray:
        """Return the next row to write, as a zero-dimensional array."""
        if self.count == len(self.events):
            self.events = np.concatenate((self.events, np.empty(len(self.events), EVENT)))
        row = self.count
        self.count += 1
        return self.events[row : row + 1].reshape(())

    def bury(self, reason: DeadReason, detail: str, record: int, item: int) -> None:
        position = int(self.block.position[record])
        self.dead.append(DeadLetter(reason, detail, position, item, self.block.partition))

    def decoded(self) -> Decoded:
        return Decoded(self.events[: self.count], self.rare, self.dead, self.now_ms, self.ignored)
