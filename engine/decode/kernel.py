"""The compiled scanner: walks the records of a block once and fills EVENT rows, stopping at what it is not sure of.

Events are parsed some dozens at a time and only then resolved to users and cells, so that the table lines asked for
while parsing have arrived when they are read.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from engine.datum_kernel import to_wgs84
from engine.decode.items_kernel import AFTER_ELEMENT, ELEMENT, LINE, RECORD_DONE, ends_well, next_item, set_odd
from engine.decode.object_kernel import AT, CELL, FEED, ID, LAT, LON, TENANT, TYPE, USER, read_object
from engine.decode.table_kernel import (
    add_text,
    find_text,
    has_room,
    same_bytes,
    table_at,
    table_of,
    touch_entry,
    touch_record,
)
from engine.decode.text_kernel import LEFT_BRACE
from engine.hashing_kernel import address_of, combine, hash_at, load_1
from engine.kernels import inlined_kernel, lean_kernel
from engine.model import DEFAULT_ACCURACY_M, EVENT, Datum, Drop, EventType, Method, RecordKind

CHUNK = 32
"""Events between parsing and resolving."""

DONE, ODD, NO_ROOM, NO_ROWS = range(4)
"""Why `scan` returned: block done; an item for the typed reader; users or rows must grow."""
_MORE = -1

_PING, _USAGE = int(EventType.PING), int(EventType.USAGE)
_EVENTS = int(RecordKind.EVENTS)
_CELL_METHOD = int(Method.CELL)
_WGS84 = int(Datum.WGS84)
_NULL_ISLAND, _OUT_OF_RANGE, _TOO_COARSE = int(Drop.NULL_ISLAND), int(Drop.OUT_OF_RANGE), int(Drop.TOO_COARSE)
_DEFAULT_ACCURACY_M = np.array([DEFAULT_ACCURACY_M[one] for one in Method])
_NO_HASH = np.uint64(0)
_LARGEST_EVENT = 65_536
_MAX_AHEAD_MS = 300_000
_LONGEST_USER = 128

TABLES = np.dtype(
    [
        ("feed_entries", "i8"),  # table_kernel.Table of the feed names, slot = row
        ("feed_mask", "i8"),
        ("feed_arena", "i8"),
        ("cell_entries", "i8"),  # of the cell ids, slot = row
        ("cell_mask", "i8"),
        ("cell_arena", "i8"),
        ("tenant", "i8"),  # address and length of the tenant's name
        ("tenant_length", "i8"),
        ("is_default_tenant", "i8"),
        ("default_feed", "i8"),  # row of the feed `default`, or -1
    ]
)
"""Where the tables lie that are only read: numbers instead of arrays, because each array costs a call 0.3 us."""
DECODED_FEED = np.dtype([("radius_factor", "f8"), ("max_accuracy_m", "f8"), ("origin_hash", "u8"), ("datum", "i8")])
"""What decoding asks of a feed; origin_hash is of tenant and feed name."""
CELL_PLACE = np.dtype([("lon_e7", "i4"), ("lat_e7", "i4"), ("radius_m", "f8")])
PENDING = np.dtype(
    [
        ("user_hash", "u8"),
        ("cell_hash", "u8"),
        ("user_start", "i8"),  # addresses
        ("user_end", "i8"),
        ("cell_start", "i8"),
        ("cell_end", "i8"),  # 0: no cell to look up
        ("accuracy_m", "f8"),
        ("now_before_ms", "i8"),
        ("place", "i8"),
        ("lines_only", "i8"),
    ]
)
"""What a parsed event still needs, and what the cursor was before it."""


TYPED = np.dtype([*EVENT.descr, ("user_length", "i8"), ("id_length", "i8")])
"""A row as the typed reader fills it, all but user and id_hash, with the lengths of both texts; -1 where no id."""


class Records(NamedTuple):
    """The block (model.Block): data uint8[B] followed by a byte 0; start, end, append_ms int64[N]; kind uint8[N]."""

    data: np.ndarray
    start: np.ndarray
    end: np.ndarray
    append_ms: np.ndarray
    kind: np.ndarray


class Known(NamedTuple):
    """What does not change from block to block.

    tables   TABLES[1]
    feeds    DECODED_FEED[F]
    cells    CELL_PLACE[C]
    """

    tables: np.ndarray
    feeds: np.ndarray
    cells: np.ndarray


class Scratch(NamedTuple):
    """fields: FIELDS[1]; pending: PENDING[CHUNK]; typed: TYPED[1]; text: uint8[512], user and id of the typed row."""

    fields: np.ndarray
    pending: np.ndarray
    typed: np.ndarray
    text: np.ndarray


@lean_kernel
def scan(records: Any, known: Any, users: Any, events: Any, scratch: Any, cursor: Any) -> Any:
    """Fill `events` from where `cursor` stands; return DONE, ODD, NO_ROOM or NO_ROWS with the cursor to go on from.

    events   EVENT[R], rows before cursor.rows are filled
    users    Texts; users are added in log order, so slots do not depend on how records were cut into blocks
    cursor   CURSOR[1]
    Nothing is skipped: at ODD the item is odd_start:odd_end of the data, and the cursor stands after it.
    """
    one = cursor[0]
    while True:
        if one.rows + 1 + CHUNK > len(events):
            return NO_ROWS
        if not has_room(users, 1 + CHUNK, _LONGEST_USER):
            return NO_ROOM
        if one.has_typed == 1:
            _adopt(records.data, known.feeds, users, events[one.rows], scratch)
            one.has_typed = 0
            one.rows += 1
        first = one.rows
        status = _parse_chunk(records, known, users, events, scratch, cursor)
        if not _resolve(records, known, users, events[first : one.rows], scratch.pending, cursor):
            return ODD
        if status != _MORE:
            return status


@lean_kernel
def _adopt(data: Any, feeds: Any, users: Any, event: Any, scratch: Any) -> None:
    """Make a row of what the typed reader read: intern its user, hash its identity."""
    typed = scratch.typed[0]
    event.at_ms = typed.at_ms
    event.now_ms = typed.now_ms
    event.app_hash = typed.app_hash
    event.category_hash = typed.category_hash
    event.action_hash = typed.action_hash
    event.span_start = typed.span_start
    event.span_end = typed.span_end
    event.lon_e7 = typed.lon_e7
    event.lat_e7 = typed.lat_e7
    event.accuracy_m = typed.accuracy_m
    event.cell = typed.cell
    event.record = typed.record
    event.item = typed.item
    event.feed = typed.feed
    event.method = typed.method
    event.type = typed.type
    event.drop = typed.drop
    text = address_of(scratch.text)
    user_hash = hash_at(text, typed.user_length)
    user = find_text(table_of(users), text, typed.user_length, user_hash)
    event.user = user if user >= 0 else add_text(users, text, typed.user_length, user_hash)
    origin_hash = feeds[typed.feed].origin_hash
    if typed.id_length >= 0:
        event.id_hash = combine(origin_hash, hash_at(text + typed.user_length, typed.id_length))
    else:
        start = address_of(data) + typed.span_start
        event.id_hash = _identity(origin_hash, user_hash, typed.at_ms, start, typed.span_end - typed.span_start)


@lean_kernel
def _parse_chunk(records: Any, known: Any, users: Any, events: Any, scratch: Any, cursor: Any) -> Any:
    """Parse up to CHUNK events into rows without user and cell; return _MORE, DONE or ODD."""
    base = address_of(records.data)
    starts, ends, appends, kinds = records.start, records.end, records.append_ms, records.kind
    feeds = known.feeds
    tables = known.tables[0]
    user_table = table_of(users)
    cell_table = table_at(tables.cell_entries, tables.cell_mask, tables.cell_arena)
    pendings = scratch.pending
    fields = scratch.fields[0]
    at = cursor[0]
    record = at.record
    offset = at.offset
    now_ms = at.now_ms
    row = at.rows
    first = row
    status = _MORE
    while row < first + CHUNK:
        if record == len(starts):
            status = DONE
            break
        append_ms = appends[record]
        limit = base + ends[record]
        if offset < 0:
            now_ms = max(now_ms, append_ms)
            offset = starts[record] if kinds[record] == _EVENTS else ends[record]
            at.item = 0
            at.place = LINE
            at.lines_only = 0
        start = next_item(base + offset, limit, at)
        if start == RECORD_DONE:
            record += 1
            offset = -1
            continue
        end = -1
        if start > 0 and load_1(start) == LEFT_BRACE:
            end = read_object(start, 1 if at.place == ELEMENT else 0, fields)
            if end > limit or end < 0 or end - start > _LARGEST_EVENT or not ends_well(end, limit, at.place):
                end = -1
        if end > 0:
            now_before_ms = now_ms
            if append_ms < 0:
                now_ms = max(now_ms, fields.at_ms)
            event = events[row]
            pending = pendings[row - first]
            feed = _feed_of(fields, tables)
            if (
                feed >= 0
                and _is_tenant(fields, tables)
                and (append_ms < 0 or fields.at_ms <= now_ms + _MAX_AHEAD_MS)
                and _fill(fields, feeds[feed], event, pending)
            ):
                user_hash = hash_at(fields.user_start, fields.user_end - fields.user_start)
                touch_entry(user_table, user_hash)
                if pending.cell_end > 0:
                    touch_entry(cell_table, pending.cell_hash)
                pending.user_hash = user_hash
                pending.user_start = fields.user_start
                pending.user_end = fields.user_end
                pending.now_before_ms = now_before_ms
                pending.place = at.place
                pending.lines_only = at.lines_only
                event.id_hash = _id_hash(fields, feeds[feed].origin_hash, user_hash, start, end)
                event.at_ms = fields.at_ms
                event.now_ms = now_ms
                event.feed = feed
                event.record = record
                event.item = at.item
                event.span_start = start - base
                event.span_end = end - base
                row += 1
                at.item += 1
                at.place = AFTER_ELEMENT if at.place == ELEMENT else LINE
                offset = end - base
                continue
            now_ms = now_before_ms
        offset = set_odd(base, start, limit, at)
        status = ODD
        break
    at.record = record
    at.offset = offset
    at.now_ms = now_ms
    at.rows = row
    return status


@inlined_kernel
def _feed_of(fields: Any, tables: Any) -> Any:
    if fields.seen & FEED == 0:
        return tables.default_feed
    names = table_at(tables.feed_entries, tables.feed_mask, tables.feed_arena)
    length = fields.feed_end - fields.feed_start
    return find_text(names, fields.feed_start, length, hash_at(fields.feed_start, length))


@inlined_kernel
def _is_tenant(fields: Any, tables: Any) -> Any:
    if fields.seen & TENANT == 0:
        return tables.is_default_tenant == 1
    length = fields.tenant_end - fields.tenant_start
    return length == tables.tenant_length and same_bytes(fields.tenant_start, tables.tenant, length)


@inlined_kernel
def _id_hash(fields: Any, origin_hash: Any, user_hash: Any, start: int, end: int) -> Any:
    """Hash what makes an event the same one (T7), after tenant and feed (I1)."""
    if fields.seen & ID != 0:
        return combine(origin_hash, hash_at(fields.id_start, fields.id_end - fields.id_start))
    return _identity(origin_hash, user_hash, fields.at_ms, start, end - start)


@inlined_kernel
def _identity(origin_hash: Any, user_hash: Any, at_ms: int, payload: int, length: int) -> Any:
    return combine(combine(combine(origin_hash, user_hash), np.uint64(at_ms)), hash_at(payload, length))


@inlined_kernel
def _fill(fields: Any, feed: Any, event: Any, pending: Any) -> Any:
    """Fill what depends on the type of event; False where the typed reader must say what is wrong."""
    if fields.seen & (TYPE | USER | AT) != TYPE | USER | AT:
        return False
    event.type = fields.type
    event.cell = -1
    pending.cell_end = 0
    if fields.type == _PING:
        event.app_hash = _NO_HASH
        event.category_hash = _NO_HASH
        event.action_hash = _NO_HASH
        return _fill_ping(fields, feed, event, pending)
    event.app_hash = fields.app_hash
    event.category_hash = fields.category_hash
    event.action_hash = fields.action_hash
    event.lon_e7 = 0
    event.lat_e7 = 0
    event.accuracy_m = 0.0
    event.method = 0
    event.drop = 0
    return fields.app_hash != _NO_HASH or fields.category_hash != _NO_HASH


@inlined_kernel
def _fill_ping(fields: Any, feed: Any, event: Any, pending: Any) -> Any:
    """Fill place, accuracy, method and drop of a ping (L2, L3, L6, L8); a cell's place waits for `_resolve`."""
    stated_m = fields.accuracy_m * feed.radius_factor
    seen = fields.seen & (LON | LAT)
    if seen == 0:
        length = fields.cell_end - fields.cell_start
        if fields.seen & CELL == 0 or not 1 <= length <= 255:
            return False
        pending.cell_start = fields.cell_start
        pending.cell_end = fields.cell_end
        pending.cell_hash = hash_at(fields.cell_start, length)
        pending.accuracy_m = stated_m if stated_m > 0 else _DEFAULT_ACCURACY_M[_CELL_METHOD]
        event.method = _CELL_METHOD
        event.drop = 0
        return True
    if seen != LON | LAT:
        return False
    accuracy_m = stated_m if stated_m > 0 else _DEFAULT_ACCURACY_M[fields.method]
    drop = _TOO_COARSE if accuracy_m > feed.max_accuracy_m else 0
    lon_e7 = fields.lon_e7
    lat_e7 = fields.lat_e7
    if not (-180.0 <= fields.lon <= 180.0 and -90.0 <= fields.lat <= 90.0):
        lon_e7 = 0
        lat_e7 = 0
        drop = _OUT_OF_RANGE
    elif fields.lon == 0.0 and fields.lat == 0.0:
        drop = _NULL_ISLAND
    elif feed.datum != _WGS84:
        if fields.coarse_digits == 1:
            return False
        lon, lat = to_wgs84(fields.lon, fields.lat, feed.datum)
        lon_e7 = np.int64(np.rint(lon * 1e7))
        lat_e7 = np.int64(np.rint(lat * 1e7))
    event.lon_e7 = lon_e7
    event.lat_e7 = lat_e7
    event.accuracy_m = accuracy_m
    event.method = fields.method
    event.drop = drop
    return True


@lean_kernel
def _resolve(records: Any, known: Any, users: Any, rows: Any, pending: Any, cursor: Any) -> Any:
    """Give the chunk's rows their users and cells, in order; False at an unknown cell, which becomes the odd item."""
    tables = known.tables[0]
    user_table = table_of(users)
    cell_table = table_at(tables.cell_entries, tables.cell_mask, tables.cell_arena)
    feeds, cells = known.feeds, known.cells
    for k in range(len(rows)):
        one = pending[k]
        touch_record(user_table, one.user_hash)
        if one.cell_end > 0:
            touch_record(cell_table, one.cell_hash)
    for k in range(len(rows)):
        one = pending[k]
        event = rows[k]
        if one.cell_end > 0:
            cell = find_text(cell_table, one.cell_start, one.cell_end - one.cell_start, one.cell_hash)
            if cell < 0:
                _return_to(event, one, len(rows) - k, cursor[0])
                return False
            place = cells[cell]
            accuracy_m = place.radius_m if place.radius_m > 0 else one.accuracy_m
            event.cell = cell
            event.lon_e7 = place.lon_e7
            event.lat_e7 = place.lat_e7
            event.accuracy_m = accuracy_m
            if accuracy_m > feeds[event.feed].max_accuracy_m:
                event.drop = _TOO_COARSE
        user = find_text(user_table, one.user_start, one.user_end - one.user_start, one.user_hash)
        if user < 0:
            user = add_text(users, one.user_start, one.user_end - one.user_start, one.user_hash)
        event.user = user
    return True


@lean_kernel
def _return_to(event: Any, one: Any, undone: int, at: Any) -> None:
    """Take back `undone` parsed events, of which the first is `event`, and stand after it with it as the odd item."""
    at.rows -= undone
    at.record = event.record
    at.offset = event.span_end
    at.item = event.item + 1
    at.place = AFTER_ELEMENT if one.place == ELEMENT else LINE
    at.lines_only = one.lines_only
    at.now_ms = one.now_before_ms
    at.odd_start = event.span_start
    at.odd_end = event.span_end
