"""The ledger of the cluster: one shard in Redis, one Lua file per atomic act (docs/contracts.md, Ledger, Claim).

A shard is a partition of the log; a batch is one call. Numbers given to requests in log order make every answer
repeatable: a lost reply is asked for again, and a replay is answered as the first time. What Redis may lose is in the
reservations log, and is put back before anything else is granted or claimed (FAULTS F8, F10).

Threads: the engine's calls and the dispatcher's have a connection each.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import structlog

from engine.ledger.dispatch import NOT_SENT
from engine.ledger.handoff import ConsentRow
from engine.ledger.history import DecisionRow
from engine.ledger.kernel import COUNTS, KEEP, WITHHELD
from engine.ledger.outcomes import DispatchRow
from engine.ledger.pool import Lease
from engine.ledger.redemptions import RedemptionRow
from engine.ledger.redis.acts import put_in_order
from engine.ledger.redis.hand_off import HandOffShard
from engine.ledger.redis.healing import HealingShard
from engine.ledger.redis.log import HISTORY, GrantRow, LoggedCommit, ReleaseRow, write_commit
from engine.ledger.redis.packing import (
    binary,
    decode,
    encode,
    judge_refused,
    pack_requests,
    pack_takes,
    read_answers,
    read_grants,
)
from engine.ledger.redis.shard import HORIZON_MS, MOST_REMEMBERED, OFFER_KEEP_MS, in_turn
from engine.ledger.redis.stock import RedisStock
from engine.model import DispatchState, Offer, Option, ReserveAnswer, ReserveRequest

log = structlog.get_logger("opportune.ledger")

FIRST, BATCH = 32, 128
"""Requests in the first call, so that Redis begins soon, and in each other: about a millisecond of Redis. Others are
answered between calls."""

_STOCK_EVERY = 1000
"""Commits after which the log says anew what a shard has given, for logs that forget."""

_OFFER_ID = re.compile("[0-9a-f]{32}")


@dataclass(slots=True)
class _Batch:
    """Requests of one call."""

    requests: Sequence[ReserveRequest]
    numbers: Sequence[int]
    name: str = ""  # of the call; "" where none follows it
    follows: str = ""  # the call before it
    keys: list[bytes] = field(default_factory=list)
    keeps: bool = False  # whether a rule has no window


class RedisLedger(HealingShard, HandOffShard):
    """One shard. Raises StoreUnavailable while Redis cannot answer, StoreFenced once another process has the shard.

    url       redis://[:password@]host:port/db, rediss:// with TLS
    engine, dispatcher  the parts this process takes over; whoever had them is fenced
    reservations  where commits are written before they count; None: a Redis that loses data cannot be rebuilt
    authority  asked for consents and pauses when the shard is rebuilt
    patience_s  how long a call waits for Redis; `is_stopped` ends the wait
    meanwhile   what else there is to do while Redis works
    """

    # --- caps -------------------------------------------------------------------------------------------------------

    @in_turn
    def reserve(self, requests: Sequence[ReserveRequest]) -> list[ReserveAnswer]:
        """Answer requests in order; what is granted counts at once, and may be handed over after the next `commit`."""
        if not requests:
            return []
        self._flush_settles()
        numbers: list[int] = []
        asked = self._asked
        for request in requests:
            numbers.append(asked)
            # What is in shadow leaves nothing, and explaining asks in shadow: only the rest has a place in the log.
            options = request.options
            asked += not (options[0].shadow and all(option.shadow for option in options))
        self._asked = asked
        self._number_marks(requests)
        local = self._judge_known(requests, numbers)
        if not local:
            return self._ask(requests, numbers)
        rest = [row for row in range(len(requests)) if row not in local]
        answers = self._ask([requests[row] for row in rest], [numbers[row] for row in rest]) if rest else []
        local.update(zip(rest, answers, strict=True))
        return [local[row] for row in range(len(requests))]

    def _judge_known(self, requests: Sequence[ReserveRequest], numbers: Sequence[int]) -> dict[int, ReserveAnswer]:
        """Refuse what a copy of the subject's grants refuses, by row; once Redis is asked of one, it is of the rest."""
        refused = self._refused
        rows = [row for row, request in enumerate(requests) if request.subject in refused] if refused else ()
        local: dict[int, ReserveAnswer] = {}
        remote: set[str] = set()
        for row in rows:
            request = requests[row]
            if request.subject not in remote:
                grants = read_grants(refused[request.subject])
                answer = judge_refused(request, numbers[row], grants, self._marks, self.shard)
                if answer is not None:
                    local[row] = answer
                    continue
                remote.add(request.subject)
        return local

    def _ask(self, requests: Sequence[ReserveRequest], numbers: Sequence[int]) -> list[ReserveAnswer]:
        """Ask Redis, batch after batch; others are packed, and read, while Redis works on one. Marks are numbered."""
        while True:
            if self._needs_heal:
                self.recover()
                self._number_marks(requests)
            batches = self._cut(requests, numbers)
            calls = (self._packed(batch) for batch in batches)
            answers = self._link.scripts("reserve", calls, partial(_read, batches))
            if b"others" in answers:
                self._await_others()
                self._number_marks(requests)
                continue
            if b"early" in answers:
                continue
            # After a rebuild all are asked again: names may have other numbers by then.
            if not any(self._is_behind(answer) for answer in answers):
                break
        told: list[ReserveAnswer] = []
        for some, grants, subjects, refused in answers:
            told += some
            self._remember(refused)
            self._made += grants
            self._subjects.update(subjects)
            if self._refused:
                for subject, _ in subjects.values():
                    self._refused.pop(subject, None)
        return told

    def _cut(self, requests: Sequence[ReserveRequest], numbers: Sequence[int]) -> list[_Batch]:
        """Cut requests into calls, each naming the one before it."""
        first_edge = FIRST if len(requests) > BATCH else BATCH
        edges = [0, *range(first_edge, len(requests), BATCH), len(requests)]
        batches = [_Batch(requests[first:last], numbers[first:last]) for first, last in pairwise(edges)]
        for batch, later in pairwise(batches):
            self._calls_made += 1
            batch.name = later.follows = f"{self._engine_epoch}:{self._calls_made}"
        return batches

    def _packed(self, batch: _Batch) -> tuple[list[bytes], Callable[[], Sequence[Any]]]:
        own, persons = f"{self._prefix}u:".encode(), self._persons.encode()
        place: dict[bytes, int] = {}
        keys: list[int] = []
        owned: list[int] = []
        for request in batch.requests:
            subject = request.subject
            mine = subject == request.user_id
            owned.append(1 if mine else 0)
            key = (own if mine else persons) + subject.encode()
            keys.append(place.setdefault(key, len(place) + 1))
        batch.keys = list(place)
        packed = pack_requests(batch.requests, batch.numbers, keys, self._marks, owned)
        batch.keeps = packed.keeps
        self._longest_ms = max(self._longest_ms, packed.longest_ms)
        fixed = (self.shard, max(self._longest_ms, HORIZON_MS), HORIZON_MS, self._sent, f"{self._prefix}v:")
        takes = pack_takes(batch.requests)
        # Persons, limits over the deployment and stock: other shards' grants count too.
        shared = packed.counts_all or takes or 0 in owned
        of_stock = (
            self._prefix,
            self._everywhere,
            takes,
            self.shards if shared else 0,
            self._kept,
            int(packed.keeps),
            batch.name,
            batch.follows,
        )
        return [self._meta, self._open, *batch.keys], lambda: (*self._claimed(), *fixed, *packed.arguments, *of_stock)

    def _remember(self, refused: dict[str, bytes]) -> None:
        """Keep the grants of subjects that were refused, so that the next refusal needs no call."""
        if len(self._refused) >= MOST_REMEMBERED:
            for old in list(self._refused)[: MOST_REMEMBERED // 2]:
                del self._refused[old]
        own = f"{self._prefix}u:"
        for key, packed in refused.items():
            self._refused[key.removeprefix(own)] = packed

    def release(self, offer_id: str) -> None:
        """Give back what an offer took (a definite failure, C2). Harmless where there is nothing to give back."""
        self._settle_soon(offer_id, "r")

    def settle(self, offer_id: str, state: DispatchState) -> None:
        """Take an outcome into account: a definite failure gives back, anything else keeps what was taken (C2)."""
        if state in NOT_SENT:
            self.release(offer_id)
        elif state == DispatchState.DELIVERED:
            self.delivered(offer_id)

    def delivered(self, offer_id: str) -> None:
        """Remember that a message arrived: a failure reported afterwards gives nothing back (G1)."""
        self._settle_soon(offer_id, "d")

    def _settle_soon(self, offer_id: str, act: str) -> None:
        if _OFFER_ID.fullmatch(offer_id) is not None:
            known = self._subjects.get(offer_id)
            key = self._subject_key(*known) if known else ""
            self._settles.append((key, bytes.fromhex(offer_id), act, self._asked))

    def _flush_settles(self) -> None:
        if not self._settles:
            return
        acts = self._settles
        flat = [value for key, offer_id, act, number in acts for value in (key, binary(offer_id), act, number)]
        answer = self._guarded(
            "settle", [self._meta], lambda: (self._prefix, self._persons, self._sent, encode(flat), self._everywhere)
        )
        self._settles = []
        for (_, offer_id, act, number), key in zip(acts, decode(answer), strict=True):
            if key:
                self._refused.pop(key.removeprefix(f"{self._prefix}u:"), None)
                if act == "r":
                    self._released.append(ReleaseRow(offer_id.hex(), key, number))
                else:
                    self._arrived.append(ReleaseRow(offer_id.hex(), key, number))

    # --- stock ------------------------------------------------------------------------------------------------------

    def lease_codes(self, pool: str, first: int, count: int, epoch: int) -> None:
        """Take codes that a record of the log gave to this shard (O3)."""
        self._supply(pool, "lease", (first, count, epoch))

    def recall_codes(self, pool: str, epoch: int) -> None:
        """Let leases up to this epoch expire: nothing of them is given any more, and claims refuse what was."""
        self._supply(pool, "recall", (epoch,))

    def spend_codes(self, pool: str, spans: Sequence[Sequence[int]]) -> None:
        """Never give these codes again."""
        self._supply(pool, "spend", [number for span in spans for number in span])

    def accept_return(self, pool: str, spans: Sequence[Sequence[int]]) -> None:
        """Drop codes that codes.db has taken back."""
        self._supply(pool, "return", [number for span in spans for number in span])

    @property
    def stock(self) -> RedisStock:
        """What this shard has to give, as it stands."""
        return RedisStock(self._read_stock)

    def leases(self) -> list[Lease]:
        """List every lease of this shard, the expired ones included."""
        return self.stock.leases()

    def codes_after(self, position: int) -> list[str]:
        """None: the log that this ledger belongs to is replicated, and loses no records that it has acknowledged."""
        return []

    def _read_stock(self) -> dict[str, Any]:
        found = self._link.command("HGETALL", f"{self._prefix}stock")
        named = ((name.decode(), value) for name, value in zip(found[::2], found[1::2], strict=True))
        return {name: decode(value) if name.startswith("k:") else int(value) for name, value in named}

    @in_turn
    def _supply(self, pool: str, what: str, numbers: Sequence[int]) -> None:
        """Apply a record about a pool; it has its place among the requests, so that a replay applies it once."""
        self._flush_settles()
        act = (pool, self._asked, what, encode(numbers))
        self._asked += 1
        self._acts.append(act)
        self._guarded("supply", [self._meta], lambda: (self._prefix, *act))

    @in_turn
    def rebuild(self, through_position: int) -> None:
        """Answer from now on as after the record at this position; what was never committed is taken back."""
        self._forget_batch()
        self.recover()
        self._take_back()
        found = self._link.command("ZREVRANGEBYSCORE", self._positions, through_position, "-inf", "LIMIT", 0, 1)
        self._asked = int(found[0].decode().partition(":")[2]) if found else 0

    # --- commit -----------------------------------------------------------------------------------------------------

    @in_turn
    def commit(
        self,
        position: int,
        now_ms: int,
        *,
        decisions: Sequence[DecisionRow] = (),
        offers: Sequence[Offer] = (),
        consents: Sequence[ConsentRow] = (),
        closed_users: Sequence[str] = (),
        closed_at: Sequence[tuple[int, int]] = (),
        pauses: Sequence[tuple[str, bool]] = (),
        dispatches: Sequence[DispatchRow] = (),
        redemptions: Sequence[RedemptionRow] = (),
    ) -> None:
        """Store everything up to and with the record at `position`: in the log first, then in one act.

        What a replay brings again changes nothing. After StoreUnavailable call it again with the same arguments.

        redemptions  are not kept here; the events topic has them
        """
        if position <= self._position:
            self._flush_settles()
            self._forget_batch()
            return
        self._flush_settles()
        if self._log is not None and self._unlogged != position:
            self._log.append(self.shard, self._log_entry(position, now_ms))
            self._unlogged = position
        acts = put_in_order(self._made, offers, consents, closed_users, closed_at, pauses, dispatches, decisions)
        packed = encode(acts)
        self._guarded(
            "commit",
            [self._meta, self._open, self._positions],
            lambda: (
                self._prefix,
                position,
                now_ms,
                self._asked,
                self._longest_ms,
                self._logged + 1,
                OFFER_KEEP_MS,
                packed,
            ),
        )
        self._position, self._now_ms = position, now_ms
        self._logged += 1
        self._kept = self._asked
        self._forget_batch()

    def _log_entry(self, position: int, now_ms: int) -> bytes:
        has_moved = self._acts or self._released or any(row.taken is not None for row in self._made)
        entry = LoggedCommit(
            self._tenant,
            self.shard,
            self._logged + 1,
            position,
            now_ms,
            self._asked,
            self._longest_ms,
            self._made,
            self._released,
            self._read_stock() if has_moved or self._logged % _STOCK_EVERY == 0 else None,
            self._arrived,
        )
        return write_commit(entry)

    @property
    def history_end(self) -> int | None:
        """The last record that was decided before this shard was made of others (`rekey`); None: that is over."""
        return self._position if self._kept >= HISTORY else None

    @in_turn
    def end_history(self) -> None:
        """Grant again from the next request on; call it before the first record behind `history_end`."""
        self.recover()
        self._kept = self._asked
        self._link.command("HSET", self._meta, "asked", self._asked)

    def position(self) -> int:
        """The last record whose effects are stored, -1 if none."""
        return self._position

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def arrays(self) -> dict[str, Any]:
        """Nothing: the state is in Redis."""
        return {}

    def objects(self) -> dict[str, Any]:
        """What a checkpoint must hold: how many requests came before it."""
        return {"asked": self._asked, "longest_ms": self._longest_ms}

    def restore(self, arrays: dict[str, Any], objects: dict[str, Any]) -> None:
        """Take over a checkpoint's `objects`: the next request has the number that it had then."""
        self._forget_batch()
        self._refused.clear()
        self._asked = objects["asked"]
        self._longest_ms = max(self._longest_ms, objects["longest_ms"])

    def close(self) -> None:
        self.close_links()


def _read(batches: Sequence[_Batch], row: int, answer: Any) -> Any:
    """Return the answers of a batch, what they grant, to whom by offer id, and the grants of subjects refused by key.

    A word of Redis stays one.
    """
    if isinstance(answer, bytes):
        return answer
    batch = batches[row]
    packed, values = answer
    out, codes, refused, sizes, lacks = decode(packed)
    known: dict[str, bytes] = {}
    at = 0
    for key, size in zip(refused, sizes, strict=True):
        known[batch.keys[key - 1].decode()] = values[at : at + size]
        at += size
    answers = read_answers(batch.requests, out, dict(zip(codes[::2], codes[1::2], strict=True)), lacks)
    made = _granted(batch, answers)
    return answers, made, {row.offer_id: (row.subject, row.user) for row in made}, known


def _granted(batch: _Batch, answers: Sequence[ReserveAnswer]) -> list[GrantRow]:
    """List what a batch's answers grant anew, for the log."""
    grants = []
    for request, one, number in zip(batch.requests, answers, batch.numbers, strict=True):
        if one.granted < 0 or one.duplicate:
            continue
        won = request.options[one.granted]
        if won.shadow:
            continue
        flags = (COUNTS if won.counts else 0) | (WITHHELD if won.withheld else 0)
        if batch.keeps and any(rule.since_ms <= 0 for rule in won.rules):
            flags |= KEEP
        grants.append(
            GrantRow(
                won.offer_id,
                request.subject,
                request.user_id,
                won.scenario,
                won.category,
                won.partner,
                won.channel,
                flags,
                request.now_ms,
                number,
                one.code,
                _taken(won),
            )
        )
    return grants


def _taken(won: Option) -> tuple[int, list[str | int | bool]] | None:
    if won.take is None or won.withheld:
        return None
    lines = [value for line in won.take.lines for value in (line.benefit, line.cost_fen, line.counts_users)]
    return won.take.day_ms, lines
