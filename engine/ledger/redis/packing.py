"""How requests travel to Redis and back: flat arrays of MessagePack, which both ends read in compiled code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from engine.ledger.kernel import ALL, CATEGORY, CHANNEL, COUNTS, DEPLOYMENT, PARTNER, SCENARIO, WITHHELD
from engine.model import CODES, STOCK_LIMITS, Option, Reason, ReserveAnswer, ReserveRequest, Short, Take

encode: Callable[[Any], bytes] = msgspec.msgpack.Encoder().encode
decode: Callable[[bytes], Any] = msgspec.msgpack.Decoder().decode

GRANT_BYTES = 46
GRANTED_FIRST = ReserveAnswer(0)
_REFUSED = {-3: Reason.DUPLICATE.value, -4: Reason.STOCK.value, -5: Reason.BUDGET.value}


def binary(value: bytes) -> msgspec.Raw:
    """Write 16 bytes as the old string type: Redis' MessagePack does not know the binary one."""
    assert len(value) == 16
    return msgspec.Raw(b"\xb0" + value)


Numbers = Mapping[tuple[str, str, str, str], tuple[int, int, int, int]]
"""(scenario, category, partner, channel) -> their numbers."""


class Grant(NamedTuple):
    """One record of a subject's string (lua/shared.lua)."""

    offer_id: bytes
    at_ms: int
    number: int
    shard: int
    released: int
    scenario: int
    category: int
    partner: int
    channel: int
    flags: int


def read_grants(packed: bytes) -> list[Grant]:
    """Read a subject's string."""
    grants = []
    for at in range(0, len(packed), GRANT_BYTES):
        one = packed[at : at + GRANT_BYTES]
        grants.append(
            Grant(
                one[:16],
                int.from_bytes(one[16:22], "little"),
                int.from_bytes(one[22:28], "little"),
                int.from_bytes(one[28:30], "little"),
                int.from_bytes(one[30:36], "little"),
                int.from_bytes(one[36:40], "little"),
                int.from_bytes(one[40:42], "little"),
                int.from_bytes(one[42:44], "little"),
                one[44],
                one[45],
            )
        )
    return grants


def pack_takes(requests: Sequence[ReserveRequest]) -> bytes:
    """Write what options would take of stock, each kind once; empty where none does."""
    options = [option for request in requests for option in request.options]
    if all(option.take is None for option in options):
        return b""
    rows: dict[Take, int] = {}
    of = [0 if option.take is None else rows.setdefault(option.take, len(rows) + 1) for option in options]
    takes = [
        (take.pool or False, take.day_ms, [(*msgspec.structs.astuple(line), line.counts_users) for line in take.lines])
        for take in rows
    ]
    return encode((of, takes))


class Packed(NamedTuple):
    """Requests as reserve.lua reads them: columns, as one comprehension a column is fastest."""

    arguments: tuple[bytes, ...]
    longest_ms: int  # the longest window that a rule asks about
    keeps: bool  # whether a rule has no window
    counts_all: bool  # whether a rule counts what every shard gave


def pack_requests(
    requests: Sequence[ReserveRequest],
    numbers: Sequence[int],
    keys: Sequence[int],
    marks: Numbers,
    owned: Sequence[int],
) -> Packed:
    """Write requests in columns.

    numbers  of each request; keys  the place of its subject among the keys, from 1
    owned    1 where only this shard ever writes the subject
    """
    options = [option for request in requests for option in request.options]
    rules = [rule for option in options for rule in option.rules]
    named = [(option.scenario, option.category, option.partner, option.channel) for option in options]
    rows = {mark: 4 * row + 1 for row, mark in enumerate(dict.fromkeys(named))}
    now_ms = [request.now_ms for request in requests]
    since_ms = [rule.since_ms for rule in rules]
    windows = np.array(since_ms, np.int64)
    bounded = windows[windows > 0]
    columns = encode(
        (
            keys,
            now_ms,
            numbers,
            owned,
            [len(request.options) for request in requests],
            [rows[mark] for mark in named],
            [len(option.rules) for option in options],
            [option.code or False for option in options],
            since_ms,
            [rule.most for rule in rules],
            [number for mark in rows for number in marks[mark]],
            [request.subject for request in requests],
        )
    )
    scopes = bytes([rule.scope for rule in rules])
    arguments = (
        columns,
        bytes.fromhex("".join([option.offer_id for option in options])),
        bytes([option.counts for option in options]),
        bytes([option.withheld for option in options]),
        bytes([option.shadow for option in options]),
        scopes,
        bytes([rule.uncounted_too for rule in rules]),
    )
    longest_ms = max(now_ms) - int(bounded.min()) if len(bounded) else 0
    return Packed(arguments, max(longest_ms, 0), len(bounded) < len(windows), DEPLOYMENT in scopes)


def read_answers(
    requests: Sequence[ReserveRequest], out: Sequence[int], codes: Mapping[int, str], lacks: Sequence[int] = ()
) -> list[ReserveAnswer]:
    """Turn reserve.lua's numbers into answers; `lacks` is what it says of stock."""
    answers: list[ReserveAnswer] = []
    lacking = {lacks[k]: lacks[k + 1 : k + 4] for k in range(0, len(lacks), 4)}
    at = 0
    for row, request in enumerate(requests):
        granted, is_duplicate = out[at], out[at + 1]
        at += 2
        options = request.options
        if granted == 0 and not is_duplicate and options[0].code is None and row not in codes:
            answers.append(GRANTED_FIRST)
            continue
        tried = granted if granted >= 0 else len(options)
        refusals = tuple([_REFUSED.get(out[at + k]) or options[k].rules[out[at + k]].reason for k in range(tried)])
        shorts: tuple[tuple[int, Short], ...] = ()
        if lacking:
            shorts = tuple((k, _short(options[k], *lacking[at + k])) for k in range(tried) if at + k in lacking)
        at += tried
        code = codes.get(row)
        if code is None and granted >= 0 and not is_duplicate:
            code = options[granted].code
        answers.append(ReserveAnswer(granted, refusals, is_duplicate == 1, code, shorts))
    return answers


def _short(option: Option, line: int, limit: int, used: int) -> Short:
    take = option.take
    assert take is not None
    if not line:
        return Short(take.pool or "", CODES, used, used, 1)
    one, name = take.lines[line - 1], STOCK_LIMITS[limit - 1]
    return Short(one.benefit, name, getattr(one, name), used, one.cost_fen if name.startswith("budget") else 1)


def judge_refused(
    request: ReserveRequest, number: int, grants: Sequence[Grant], marks: Numbers, shard: int
) -> ReserveAnswer | None:
    """Answer a request from a copy of its subject's grants, if it is refused; None: Redis must be asked.

    The same rules as reserve.lua, for subjects that only this shard writes and that hold no grant of their own future.
    """
    ids = {grant.offer_id for grant in grants}
    reasons: list[str] = []
    for option in request.options:
        if option.take is not None or bytes.fromhex(option.offer_id) in ids:
            return None
        reason = _refusal(option, number, grants, marks, shard)
        if reason is None:
            return None
        reasons.append(reason)
    return ReserveAnswer(-1, tuple(reasons))


def _refusal(option: Option, number: int, grants: Sequence[Grant], marks: Numbers, shard: int) -> str | None:
    """Return the reason of the first rule that refuses; None where none does, or where a rule asks about everybody."""
    mark = marks.get((option.scenario, option.category, option.partner, option.channel))
    if mark is None:
        return None
    scenario, category, partner, channel = mark
    for rule in option.rules:
        if rule.scope == DEPLOYMENT:
            return None
        found = 0
        for grant in grants:
            if grant.at_ms <= rule.since_ms or grant.shard != shard or grant.number >= number:
                continue
            if grant.released and grant.released <= number + 1:
                continue
            if not rule.uncounted_too and (
                not grant.flags & COUNTS or (grant.flags & WITHHELD and not option.withheld)
            ):
                continue
            if (
                rule.scope == ALL
                or (rule.scope == CHANNEL and grant.channel == channel)
                or (rule.scope == SCENARIO and grant.scenario == scenario)
                or (rule.scope == CATEGORY and grant.category == category)
                or (rule.scope == PARTNER and grant.partner == partner)
            ):
                found += 1
        if found >= rule.most:
            return rule.reason
    return None
