"""What became of dispatches: states written as the table allows (rule G1), by answers to submits and by receipts.

Functions over a cursor inside a transaction; the caller owns it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Protocol

from engine.ledger import fallbacks, receipts
from engine.ledger.dispatch import may_follow
from engine.ledger.groups import KEY, field, fields, key_of, leave_outbox, pack, read, write
from engine.model import DispatchState as S


class DispatchRow(Protocol):
    """What became of one dispatch."""

    @property
    def dispatch_id(self) -> str: ...
    @property
    def offer_id(self) -> str: ...
    @property
    def state(self) -> S: ...
    @property
    def at_ms(self) -> int: ...
    @property
    def gateway_id(self) -> str | None: ...
    @property
    def code(self) -> str | None: ...
    @property
    def gateway(self) -> str: ...
    @property
    def gateway_ids(self) -> Sequence[str]: ...


AT_ONCE = 256
"""Reports written by one transaction, some milliseconds: between two of them claims have their turn (F21)."""

Said = tuple[str, S, int]
"""A dispatch id, a state it was said to reach, and whether that changed anything."""

_CLAIMED = frozenset({S.SUBMITTING, S.UNKNOWN, S.ACCEPTED})
"""What a claim leads to: the offer has left the outbox."""


def put_outcomes(cursor: sqlite3.Cursor, records: Sequence[DispatchRow], epoch: int) -> list[bool]:
    """Write what became of dispatches, in their order; say of each whether that changed its state."""
    return _put(cursor, records, epoch, only_known=False)


def put_reports(cursor: sqlite3.Cursor, records: Sequence[DispatchRow], epoch: int) -> list[bool]:
    """Write what receipts said of dispatches that are known here; a forgotten user leaves no trace."""
    return _put(cursor, records, epoch, only_known=True)


def said_of(cursor: sqlite3.Cursor, keys: Iterable[bytes]) -> dict[bytes, list[Said]]:
    """Return every state that the dispatches of these offers were said to reach, in order.

    Sequence numbers have no holes, so that their count is the next one.
    """
    found: dict[bytes, list[Said]] = {key: [] for key in keys}
    asked = list(found)
    rows = read(
        cursor,
        "SELECT json_group_array(json_array(place, dispatch_id, state, applied)) FROM ("
        f"SELECT asked.key AS place, d.* FROM json_each(?2) AS asked JOIN dispatches AS d ON d.offer_id = {KEY} "
        "ORDER BY asked.key, d.seq)",
        pack(asked),
        f"[{','.join('0' * len(asked))}]",
    )
    for place, dispatch_id, state, applied in rows:
        found[asked[place]].append((dispatch_id, S(state), applied))
    return found


def _put(cursor: sqlite3.Cursor, records: Sequence[DispatchRow], epoch: int, *, only_known: bool) -> list[bool]:
    keys = [key_of(record.offer_id) for record in records]
    said = said_of(cursor, (key for key in keys if key is not None))
    changed = []
    written_keys: list[bytes] = []
    written: list[tuple[object, ...]] = []
    ended: list[tuple[bytes, str]] = []
    dropped: list[bytes] = []
    awaited: list[tuple[int, str]] = []
    seconds = fallbacks.Notes()
    for record, key in zip(records, keys, strict=True):
        if key is None:
            changed.append(False)
            continue
        known, state = said[key], S(record.state)
        before = next(
            (reached for name, reached, applied in reversed(known) if applied and name == record.dispatch_id), None
        )
        # What came too late once is not written a second time: a replay may bring it again.
        was_late = any(
            name == record.dispatch_id and reached is state and not applied for name, reached, applied in known
        )
        if before is state or was_late or (only_known and before is None):
            changed.append(False)
            continue
        applied = may_follow(before, state)
        changed.append(applied)
        written_keys.append(key)
        written.append(
            (record.dispatch_id, len(known), state.value, record.at_ms, applied, record.gateway_id, record.code)
        )
        known.append((record.dispatch_id, state, applied))
        if not applied:
            continue
        reports = bool(record.gateway_ids)
        seconds.note(key, record.dispatch_id, state, record.at_ms, record.code or "", reports)
        if state is S.UNKNOWN or (state is S.ACCEPTED and reports):
            awaited.append((record.at_ms, record.dispatch_id))
        if before in _CLAIMED:
            ended.append((key, record.dispatch_id))
        else:
            dropped.append(key)
    if written:
        write(
            cursor,
            f"INSERT INTO dispatches SELECT {KEY}, {fields(4)}, ?3, {field(4)}, {field(5)}, {field(6)} "
            "FROM json_each(?2) AS asked",
            written_keys,
            written,
            epoch,
        )
    if ended:
        write(
            cursor,
            f"DELETE FROM submitting WHERE offer_id IN (SELECT {KEY} FROM json_each(?2) AS asked) "
            "AND dispatch_id IN (SELECT value FROM json_each(?2))",
            [key for key, _ in ended],
            [dispatch_id for _, dispatch_id in ended],
        )
    leave_outbox(cursor, dropped)
    seconds.write(cursor)
    receipts.await_receipts(cursor, awaited)
    return changed
