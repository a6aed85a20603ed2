"""Whose receipts are whose: parts of messages by the gateway's own ids, and receipts that came too early (rule G3).

Functions over a cursor inside a transaction; the caller owns it. What a receipt changes of a dispatch's state goes
through the log and comes back with the engine's commit; here is only what is needed to name the dispatch, and the
states of the parts of a message that has several.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import orjson

from engine.ledger import fallbacks
from engine.ledger.dispatch import FINAL
from engine.ledger.groups import KEY, field, fields, read, write
from engine.model import DispatchState as S
from engine.model import GatewayReceipt, Match

KEEP_UNMATCHED_MS = 72 * 3_600_000
SILENT_MS = 48 * 3_600_000
"""After so long without a receipt none comes any more (CMPP's default wait)."""
KEEP_PARTS_MS = SILENT_MS + KEEP_UNMATCHED_MS


class Sent(Protocol):
    """A dispatch that a gateway has, and the gateway's names for its parts."""

    @property
    def dispatch_id(self) -> str: ...
    @property
    def offer_id(self) -> str: ...
    @property
    def at_ms(self) -> int: ...
    @property
    def gateway(self) -> str: ...
    @property
    def gateway_ids(self) -> Sequence[str]: ...


@dataclass(frozen=True, slots=True)
class _Part:
    offer_id: bytes
    dispatch_id: str
    part: int
    parts: int
    user: str | None  # None: the offer is forgotten


Name = tuple[str, str]
"""A gateway and its name for a part."""
_NAME = fields(2, "asked.value")


def put_parts(cursor: sqlite3.Cursor, records: Sequence[Sent]) -> list[Name]:
    """Remember by which names gateways will report; return those of which a receipt has come already."""
    keys, rows = [], []
    for one in records:
        for part, gateway_id in enumerate(one.gateway_ids):
            keys.append(bytes.fromhex(one.offer_id))
            rows.append((one.gateway, gateway_id, one.dispatch_id, part, len(one.gateway_ids), one.at_ms))
    if not rows:
        return []
    write(
        cursor,
        "INSERT OR REPLACE INTO parts (gateway, gateway_id, offer_id, dispatch_id, part, parts, at_ms) "
        f"SELECT {fields(2)}, {KEY}, {field(2)}, {field(3)}, {field(4)}, {field(5)} FROM json_each(?2) AS asked",
        keys,
        rows,
    )
    if cursor.execute("SELECT 1 FROM unmatched LIMIT 1").fetchone() is None:
        return []
    early = read(
        cursor,
        f"SELECT json_group_array(json_array({_NAME})) FROM json_each(?1) AS asked "
        f"WHERE EXISTS (SELECT 1 FROM unmatched AS u WHERE (u.gateway, u.gateway_id) = ({_NAME}))",
        orjson.dumps([row[:2] for row in rows]).decode(),
    )
    return [(gateway, gateway_id) for gateway, gateway_id in early]


def match(cursor: sqlite3.Cursor, receipts: Sequence[GatewayReceipt], now_ms: int) -> list[Match | None]:
    """Say what receipts mean for their dispatches; keep those where nothing of that name is known yet."""
    parts = _parts(cursor, [(one.gateway, one.gateway_id) for one in receipts])
    fallbacks_left = fallbacks.any_pending(cursor)
    found: list[Match | None] = []
    unknown: list[tuple[object, ...]] = []
    for receipt, part in zip(receipts, parts, strict=True):
        if not receipt.gateway_id:
            found.append(_match_named(cursor, receipt))
        elif part is not None:
            found.append(_judge(cursor, part, receipt.state, receipt.code, receipt.at_ms, fallbacks_left))
        else:
            found.append(None)
            unknown.append(
                (receipt.gateway, receipt.gateway_id, receipt.state.value, receipt.code, receipt.at_ms, now_ms)
            )
    if unknown:
        cursor.execute(
            f"INSERT OR REPLACE INTO unmatched SELECT {fields(6)} FROM json_each(?)",
            (orjson.dumps(unknown).decode(),),
        )
    return found


def _parts(cursor: sqlite3.Cursor, names: Sequence[Name]) -> list[_Part | None]:
    rows = read(
        cursor,
        "SELECT json_group_array(json_array(hex(p.offer_id), p.dispatch_id, p.part, p.parts, o.user)) "
        "FROM (SELECT key, value FROM json_each(?1)) AS asked "
        f"LEFT JOIN parts AS p ON (p.gateway, p.gateway_id) = ({_NAME}) "
        "LEFT JOIN offers AS o ON o.offer_id = p.offer_id",
        orjson.dumps(names).decode(),
    )
    return [_Part(bytes.fromhex(key), name, *rest) if name is not None else None for key, name, *rest in rows]


def match_early(cursor: sqlite3.Cursor, gateway: str, gateway_ids: Sequence[str]) -> list[Match]:
    """Match what was kept under these names; they stay kept until `drop_early`, so that a crash loses none."""
    found = []
    for gateway_id in gateway_ids:
        (part,) = _parts(cursor, [(gateway, gateway_id)])
        if part is None:
            continue
        rows = cursor.execute(
            "SELECT state, code, at_ms FROM unmatched WHERE gateway = ? AND gateway_id = ? ORDER BY at_ms",
            (gateway, gateway_id),
        ).fetchall()
        for state, code, at_ms in rows:
            matched = _judge(cursor, part, S(state), code, at_ms)
            if matched is not None:
                found.append(matched)
    return found


def early_names(cursor: sqlite3.Cursor) -> list[tuple[str, str]]:
    """List kept receipts whose part is known by now: what a crash left between recording and telling."""
    return [
        (gateway, gateway_id)
        for gateway, gateway_id in cursor.execute(
            "SELECT DISTINCT gateway, gateway_id FROM unmatched JOIN parts USING (gateway, gateway_id)"
        )
    ]


def drop_early(cursor: sqlite3.Cursor, names: Sequence[tuple[str, str]]) -> None:
    cursor.executemany("DELETE FROM unmatched WHERE gateway = ? AND gateway_id = ?", names)


def await_receipts(cursor: sqlite3.Cursor, dispatches: Sequence[tuple[int, str]]) -> None:
    """Note of pairs of instant and dispatch id that they must reach a final state, if need be by silence."""
    if dispatches:
        cursor.execute(
            f"INSERT OR IGNORE INTO awaited SELECT {field(0)} + ?, {field(1)} FROM json_each(?)",
            (SILENT_MS, orjson.dumps(dispatches).decode()),
        )


def silent(cursor: sqlite3.Cursor, now_ms: int, limit: int) -> list[tuple[int, str, Match | None]]:
    """List what was waited for long enough: (due, dispatch id, EXPIRED, or None where it came to an end by itself)."""
    rows = cursor.execute(
        "SELECT due_ms, dispatch_id FROM awaited WHERE due_ms <= ? ORDER BY due_ms LIMIT ?", (now_ms, limit)
    ).fetchall()
    found: list[tuple[int, str, Match | None]] = []
    for due_ms, dispatch_id in rows:
        key = bytes.fromhex(dispatch_id.partition("/")[0])
        state, user = state_of(cursor, key, dispatch_id), _user_of(cursor, key)
        expired = None
        if state is not None and state not in FINAL and user is not None:
            expired = Match(dispatch_id, key.hex(), user, S.EXPIRED, due_ms, "no_receipt", is_definite=False)
        found.append((due_ms, dispatch_id, expired))
    return found


def drop_awaited(cursor: sqlite3.Cursor, rows: Sequence[tuple[int, str]]) -> None:
    cursor.executemany("DELETE FROM awaited WHERE due_ms = ? AND dispatch_id = ?", rows)


def expire(cursor: sqlite3.Cursor, now_ms: int) -> None:
    """Forget early receipts after 72 h, and parts of which no receipt can come any more."""
    cursor.execute("DELETE FROM unmatched WHERE kept_ms < ?", (now_ms - KEEP_UNMATCHED_MS,))
    # Numbers rise with time: the first one to keep is found by halving, without a second index.
    low, high = cursor.execute("SELECT coalesce(min(number), 0), coalesce(max(number), 0) + 1 FROM parts").fetchone()
    while low < high:
        middle = (low + high) // 2
        row = cursor.execute("SELECT number, at_ms FROM parts WHERE number >= ? LIMIT 1", (middle,)).fetchone()
        if row is not None and row[1] < now_ms - KEEP_PARTS_MS:
            low = row[0] + 1
        else:
            high = middle
    gone = cursor.execute("SELECT DISTINCT dispatch_id FROM parts WHERE number < ? AND parts > 1", (low,)).fetchall()
    cursor.executemany("DELETE FROM part_states WHERE dispatch_id = ?", gone)
    cursor.execute("DELETE FROM parts WHERE number < ?", (low,))


def forget(cursor: sqlite3.Cursor, keys: Sequence[bytes]) -> None:
    """Leave no trace of these offers."""
    for key in keys:
        like = f"{key.hex()}/%"
        cursor.execute("DELETE FROM parts WHERE offer_id = ?", (key,))
        cursor.execute("DELETE FROM part_states WHERE dispatch_id LIKE ?", (like,))
        cursor.execute("DELETE FROM awaited WHERE dispatch_id LIKE ?", (like,))
        fallbacks.drop(cursor, key)


def state_of(cursor: sqlite3.Cursor, key: bytes, dispatch_id: str) -> S | None:
    """Return the state a dispatch has reached, None where there is no such dispatch."""
    row = cursor.execute(
        "SELECT state FROM dispatches WHERE offer_id = ? AND dispatch_id = ? AND applied = 1 ORDER BY seq DESC LIMIT 1",
        (key, dispatch_id),
    ).fetchone()
    return None if row is None else S(row[0])


# --- inside ---------------------------------------------------------------------------------------------------------


def _match_named(cursor: sqlite3.Cursor, receipt: GatewayReceipt) -> Match | None:
    try:
        key = bytes.fromhex(receipt.dispatch_id.partition("/")[0])
    except ValueError:
        return None
    if state_of(cursor, key, receipt.dispatch_id) is None:
        return None
    part = _Part(key, receipt.dispatch_id, 0, 1, _user_of(cursor, key))
    return _judge(cursor, part, receipt.state, receipt.code, receipt.at_ms)


def _judge(
    cursor: sqlite3.Cursor, part: _Part, state: S, code: str, at_ms: int, fallbacks_left: bool = True
) -> Match | None:
    """Say what one part's state means for the whole.

    fallbacks_left  False where no offer at all has a second channel to go to, which saves asking
    """
    if part.parts == 1 or state is S.ACCEPTED:
        return _whole(cursor, part, state, code, at_ms, fallbacks_left)
    # The first final state of a part stays; the same receipt again is judged by what stands there.
    cursor.execute(
        "INSERT OR IGNORE INTO part_states VALUES (?,?,?,?,?)", (part.dispatch_id, part.part, state.value, code, at_ms)
    )
    known = cursor.execute(
        "SELECT state, code, at_ms FROM part_states WHERE dispatch_id = ? ORDER BY at_ms", (part.dispatch_id,)
    ).fetchall()
    judged = judge_parts([(S(one), why, when) for one, why, when in known], part.parts)
    if judged is None:
        return None
    worst, why, when, is_partial = judged
    match = _whole(cursor, part, worst, why, when, fallbacks_left)
    if match is not None and is_partial:
        fallbacks.drop(cursor, part.offer_id)
        return replace(match, is_definite=False)
    return match


def judge_parts(known: Sequence[tuple[S, str, int]], parts: int) -> tuple[S, str, int, bool] | None:
    """Say what the states of parts mean for the whole: delivered are all or it is not, failed is one that failed.

    known  state, code and instant of the parts that are known, oldest first
    Return state, code, instant and whether others arrived; None while parts are missing.
    """
    failed = [one for one in known if one[0] != S.DELIVERED]
    if len(known) < parts:
        return None
    if not failed:
        return (*known[-1], False)
    return (*failed[0], len(failed) < len(known))


def whole(
    dispatch_id: str, offer_id: str, user: str, state: S, code: str, at_ms: int, *, is_partial: bool = False
) -> Match:
    """Make the match of a whole dispatch; it gives back what the offer took only where nothing can have arrived."""
    # REJECTED is an answer to a submit; after that it is a failure. UNKNOWN means that the gateway gave up: no proof.
    told = {S.REJECTED: S.FAILED, S.UNKNOWN: S.FAILED}.get(state, state)
    is_definite = state is not S.UNKNOWN and not is_partial and not fallbacks.is_second(dispatch_id)
    return Match(dispatch_id, offer_id, user, told, at_ms, code[:64], is_definite=is_definite)


def _whole(cursor: sqlite3.Cursor, part: _Part, state: S, code: str, at_ms: int, fallbacks_left: bool) -> Match | None:
    key, dispatch_id = part.offer_id, part.dispatch_id
    if part.user is None:
        return None
    if state is S.UNKNOWN:
        fallbacks.drop(cursor, key)
    match = whole(dispatch_id, key.hex(), part.user, state, code, at_ms)
    # What a second channel may still use is not given back (G5).
    is_pending = fallbacks_left and fallbacks.is_pending(cursor, key)
    return replace(match, is_definite=False) if is_pending else match


def _user_of(cursor: sqlite3.Cursor, key: bytes) -> str | None:
    row = cursor.execute("SELECT user FROM offers WHERE offer_id = ?", (key,)).fetchone()
    return None if row is None else str(row[0])
