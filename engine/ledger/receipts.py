"""Whose receipts are whose: parts of messages by the gateway's own ids, and receipts that came too early (rule G3).

Functions over a cursor inside a transaction; the caller owns it. What a receipt changes of a dispatch's state goes
through the log and comes back with the engine's commit; here is only what is needed to name the dispatch, and the
states of the parts of a message that has several.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace

from engine.ledger import fallbacks
from engine.ledger.dispatch import FINAL
from engine.model import DispatchState as S
from engine.model import GatewayReceipt, Match

KEEP_UNMATCHED_MS = 72 * 3_600_000
SILENT_MS = 48 * 3_600_000
"""After so long without a receipt none comes any more (CMPP's default wait)."""
KEEP_PARTS_MS = SILENT_MS + KEEP_UNMATCHED_MS


@dataclass(frozen=True, slots=True)
class _Part:
    offer_id: bytes
    dispatch_id: str
    part: int
    parts: int


def put_parts(
    cursor: sqlite3.Cursor, gateway: str, gateway_ids: Sequence[str], key: bytes, dispatch_id: str, at_ms: int
) -> list[str]:
    """Remember by which names a gateway will report; return those of which a receipt has come already."""
    early = []
    for part, gateway_id in enumerate(gateway_ids):
        cursor.execute(
            "INSERT OR REPLACE INTO parts (gateway, gateway_id, offer_id, dispatch_id, part, parts, at_ms) "
            "VALUES (?,?,?,?,?,?,?)",
            (gateway, gateway_id, key, dispatch_id, part, len(gateway_ids), at_ms),
        )
        if cursor.execute(
            "SELECT 1 FROM unmatched WHERE gateway = ? AND gateway_id = ?", (gateway, gateway_id)
        ).fetchone():
            early.append(gateway_id)
    return early


def match(cursor: sqlite3.Cursor, receipt: GatewayReceipt, now_ms: int) -> Match | None:
    """Say what a receipt means for its dispatch; keep it where nothing of that name is known yet."""
    if not receipt.gateway_id:
        return _match_named(cursor, receipt)
    row = cursor.execute(
        "SELECT offer_id, dispatch_id, part, parts FROM parts WHERE gateway = ? AND gateway_id = ?",
        (receipt.gateway, receipt.gateway_id),
    ).fetchone()
    if row is None:
        cursor.execute(
            "INSERT OR REPLACE INTO unmatched VALUES (?,?,?,?,?,?)",
            (receipt.gateway, receipt.gateway_id, receipt.state.value, receipt.code, receipt.at_ms, now_ms),
        )
        return None
    return _judge(cursor, _Part(*row), receipt.state, receipt.code, receipt.at_ms)


def match_early(cursor: sqlite3.Cursor, gateway: str, gateway_ids: Sequence[str]) -> list[Match]:
    """Match what was kept under these names; they stay kept until `drop_early`, so that a crash loses none."""
    found = []
    for gateway_id in gateway_ids:
        part = cursor.execute(
            "SELECT offer_id, dispatch_id, part, parts FROM parts WHERE gateway = ? AND gateway_id = ?",
            (gateway, gateway_id),
        ).fetchone()
        if part is None:
            continue
        rows = cursor.execute(
            "SELECT state, code, at_ms FROM unmatched WHERE gateway = ? AND gateway_id = ? ORDER BY at_ms",
            (gateway, gateway_id),
        ).fetchall()
        for state, code, at_ms in rows:
            matched = _judge(cursor, _Part(*part), S(state), code, at_ms)
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


def await_receipt(cursor: sqlite3.Cursor, dispatch_id: str, at_ms: int) -> None:
    """Note that a dispatch must reach a final state, if need be by silence."""
    cursor.execute("INSERT OR IGNORE INTO awaited VALUES (?,?)", (at_ms + SILENT_MS, dispatch_id))


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
    return _whole(cursor, key, receipt.dispatch_id, receipt.state, receipt.code, receipt.at_ms)


def _judge(cursor: sqlite3.Cursor, part: _Part, state: S, code: str, at_ms: int) -> Match | None:
    """Say what one part's state means for the whole."""
    if part.parts == 1 or state is S.ACCEPTED:
        return _whole(cursor, part.offer_id, part.dispatch_id, state, code, at_ms)
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
    match = _whole(cursor, part.offer_id, part.dispatch_id, worst, why, when)
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


def _whole(cursor: sqlite3.Cursor, key: bytes, dispatch_id: str, state: S, code: str, at_ms: int) -> Match | None:
    user = _user_of(cursor, key)
    if user is None:
        return None
    if state is S.UNKNOWN:
        fallbacks.drop(cursor, key)
    match = whole(dispatch_id, key.hex(), user, state, code, at_ms)
    # What a second channel may still use is not given back (G5).
    return replace(match, is_definite=False) if fallbacks.is_pending(cursor, key) else match


def _user_of(cursor: sqlite3.Cursor, key: bytes) -> str | None:
    row = cursor.execute("SELECT user FROM offers WHERE offer_id = ?", (key,)).fetchone()
    return None if row is None else str(row[0])
