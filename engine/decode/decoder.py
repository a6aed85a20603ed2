"""Bytes to rows: every well-formed event of a block as one row of EVENT, every other as a dead letter.

The compiled scanner fills the rows; what it does not recognise for certain it hands, event by event and in order, to
the typed reader, which also says what is wrong with what cannot be read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import msgspec
import numpy as np

from engine.datum_kernel import to_wgs84
from engine.decode.envelopes import Ignored
from engine.decode.events import EVENT_TYPES, Event, Ping, RareEvent, UsageEvent, UsageFacts, UsageNames
from engine.decode.items_kernel import CURSOR
from engine.decode.kernel import (
    CELL_PLACE,
    CHUNK,
    DECODED_FEED,
    DONE,
    NO_ROOM,
    NO_ROWS,
    PENDING,
    TABLES,
    TYPED,
    Known,
    Records,
    Scratch,
    scan,
)
from engine.decode.object_kernel import FIELDS
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

_PLACES = {name: place for place, name in enumerate(CURSOR.names or ())}
_RECORD, _OFFSET, _ITEM, _HAS_TYPED = (_PLACES[name] for name in ("record", "offset", "item", "has_typed"))
_NOW, _ROWS, _ODD_START, _ODD_END = (_PLACES[name] for name in ("now_ms", "rows", "odd_start", "odd_end"))

_USUAL_EVENT = 100
"""Bytes of a short event: rows for a block are made for as many; where there are more, they grow."""

_USAGE_NAMES = msgspec.json.Decoder(UsageNames)
_USAGE_FACTS = msgspec.json.Decoder(UsageFacts)
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
        self._tenant_bytes = np.array(list(tenant.encode()), np.uint8)
        self._feed_names = _numbered(feeds.names)
        self._reader = reader
        self._origin_hash = [combine_hashes(hash_text(tenant), hash_text(name)) for name in feeds.names]
        self._scratch = Scratch(
            np.zeros(1, FIELDS), np.zeros(CHUNK, PENDING), np.zeros(1, TYPED), np.zeros(512, np.uint8)
        )
        self._text = self._scratch.text.data
        self._cursor = np.zeros(1, CURSOR)
        # The same memory as plain numbers, which Python reads and writes much faster than fields of a record.
        self._at = self._cursor.view(np.int64)
        self.set_cells(cells)
        self._typed = TypedReader(feeds, tenant, self._cell_row)

    def set_cells(self, cells: CellTable) -> None:
        """Take another cell table from the next block on."""
        self._cells = cells
        self._cell_ids = _numbered(cells.ids)
        places = np.zeros(len(cells.ids), CELL_PLACE)
        for name in CELL_PLACE.names or ():
            places[name] = getattr(cells, name)
        self._known = Known(self._tables(), self._decoded_feeds(), places)

    def _tables(self) -> np.ndarray:
        tables = np.zeros(1, TABLES)
        for name, table in (("feed", self._feed_names), ("cell", self._cell_ids)):
            tables[f"{name}_entries"] = table.texts.entries.ctypes.data
            tables[f"{name}_mask"] = len(table.texts.entries) - 1
            tables[f"{name}_arena"] = table.texts.arena.ctypes.data
        tables["tenant"] = self._tenant_bytes.ctypes.data
        tables["tenant_length"] = len(self._tenant_bytes)
        tables["is_default_tenant"] = bytes(self._tenant_bytes) == b"default"
        tables["default_feed"] = self._feeds.row.get("default", -1)
        return tables

    def _decoded_feeds(self) -> np.ndarray:
        feeds = np.zeros(len(self._feeds.names), DECODED_FEED)
        for name in ("radius_factor", "max_accuracy_m", "datum"):
            feeds[name] = self._feeds.array[name]
        feeds["origin_hash"] = self._origin_hash
        return feeds

    def decode(self, block: Block, now_ms: int) -> Decoded:
        """Decode every record of `block`; `now_ms` is the log's now before it (T2)."""
        sheet = _Sheet(block, now_ms)
        if self._reader == "scanner":
            self._scan(sheet)
        else:
            self._read_all(sheet)
        return Decoded(sheet.events[: sheet.count], sheet.rare, sheet.dead, sheet.now_ms, sheet.ignored)

    def _scan(self, sheet: _Sheet) -> None:
        block = sheet.block
        # A `bytes` object ends in a byte 0 beyond its length, on which the kernel relies.
        data = block.data if type(block.data) is bytes else bytes(block.data)
        records = Records(
            np.frombuffer(data or b"\0", np.uint8),
            _plain(block.start, np.int64),
            _plain(block.end, np.int64),
            _plain(block.append_ms, np.int64),
            _plain(block.kind, np.uint8),
        )
        at = self._at
        at[:] = 0
        at[_OFFSET] = -1
        at[_NOW] = sheet.now_ms
        while True:
            status = scan(records, self._known, self.users.texts, sheet.events, self._scratch, self._cursor)
            sheet.count = int(at[_ROWS])
            sheet.now_ms = int(at[_NOW])
            if status == DONE:
                return
            if status == NO_ROOM:
                self.users.make_room(1 + CHUNK)
            elif status == NO_ROWS:
                sheet.grow()
            else:
                self._read_odd(sheet)

    def _read_odd(self, sheet: _Sheet) -> None:
        """Have the typed reader read the item at which the scanner stopped."""
        at = self._at
        record, item, start, end = int(at[_RECORD]), int(at[_ITEM]) - 1, int(at[_ODD_START]), int(at[_ODD_END])
        if self._read_item(sheet, record, item, start, end) > end:
            at[_OFFSET] = sheet.block.end[record]
        at[_NOW] = sheet.now_ms

    def _read_all(self, sheet: _Sheet) -> None:
        block = sheet.block
        for record in range(len(block)):
            sheet.now_ms = max(sheet.now_ms, int(block.append_ms[record]))
            if block.kind[record] != RecordKind.EVENTS:
                continue
            start, end = int(block.start[record]), int(block.end[record])
            value = bytes(block.data[start:end])
            for item, (from_, to) in enumerate(split(value)):
                if self._read_item(sheet, record, item, start + from_, start + to) > start + to:
                    break

    def read(self, data: bytes | memoryview, event: np.void) -> Event:
        """Return the whole event behind a row, with its props and text; `data` is what its span lies in."""
        read = self._typed.read(bytes(data[int(event["span_start"]) : int(event["span_end"])]))
        assert not isinstance(read, Ignored)
        return read

    def read_names(self, data: bytes | memoryview, event: np.void) -> UsageNames | Event:
        """Return what names a usage event, at a tenth of the cost of `read`, which it falls back to for envelopes."""
        try:
            return _USAGE_NAMES.decode(data[int(event["span_start"]) : int(event["span_end"])])
        except msgspec.DecodeError:
            return self.read(data, event)

    def read_usage(self, data: bytes | memoryview, event: np.void) -> UsageFacts | Event:
        """Return names and properties of a usage event, at a fifth of the cost of `read`, which it falls back to."""
        try:
            return _USAGE_FACTS.decode(data[int(event["span_start"]) : int(event["span_end"])])
        except msgspec.DecodeError:
            return self.read(data, event)

    def _cell_row(self, cell: str) -> int:
        return self._cell_ids.slot_of(cell, intern=False)

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
        """Make a row of a typed event: at once, or by the scanner when it goes on."""
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
        before = (event.at_ms, sheet.now_ms)
        hashes = (app, category, action)
        place = (start, end, lon_e7, lat_e7, accuracy_m)
        after = (cell, record, item, event.feed, method, EVENT_TYPES[type(event)], drop)
        if self._reader == "scanner":
            user = event.user.encode()
            identity = b"" if event.id is None else event.id.encode()
            self._text[: len(user) + len(identity)] = user + identity
            lengths = (len(user), -1 if event.id is None else len(identity))
            self._scratch.typed[0] = (*before, 0, *hashes, *place, 0, *after, *lengths)
            self._at[_HAS_TYPED] = 1
        else:
            id_hash = self._id_hash(event, sheet.block.data, start, end)
            sheet.next_row()[...] = (*before, id_hash, *hashes, *place, self.users.slot_of(event.user), *after)

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
        self.events = np.empty(max(len(block), len(block.data) // _USUAL_EVENT) + 2 * CHUNK, EVENT)
        self.count = 0
        self.rare: dict[int, RareEvent] = {}
        self.dead: list[DeadLetter] = []
        self.ignored = 0

    def next_row(self) -> np.ndarray:
        """Return the next row to write, as an array of one."""
        if self.count == len(self.events):
            self.grow()
        self.count += 1
        return self.events[self.count - 1 : self.count]

    def grow(self) -> None:
        self.events = np.concatenate((self.events, np.empty(len(self.events), EVENT)))

    def bury(self, reason: DeadReason, detail: str, record: int, item: int) -> None:
        position = int(self.block.position[record])
        self.dead.append(DeadLetter(reason, detail, position, item, self.block.partition))


def _numbered(texts: tuple[str, ...]) -> TextTable:
    """Intern texts so that the slot of each is its place."""
    table = TextTable(max(16, len(texts)))
    for row, text in enumerate(texts):
        if table.slot_of(text) != row:
            raise ValueError(f"{text!r} appears twice")
    return table


def _plain(array: np.ndarray, dtype: type[np.generic]) -> np.ndarray:
    """The kernel is compiled for contiguous writable arrays; anything else would compile it again."""
    if array.dtype == dtype and array.flags.c_contiguous and array.flags.writeable:
        return array
    return np.array(array, dtype)
