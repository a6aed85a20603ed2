"""Whose receipts are whose, in Redis, over all shards of a tenant (rule G3; docs/contracts.md, Dispatch states).

A gateway reports to whichever dispatcher it is connected to, of whatever shard the message was. So the names of parts,
receipts that came too early and what is waited for belong to the tenant; the states of dispatches stay with the shard.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import orjson

from engine.ledger import receipts as rules
from engine.ledger.dispatch import FINAL
from engine.ledger.outcomes import DispatchRow
from engine.ledger.redis.link import RedisLink
from engine.ledger.redis.packing import decode, encode
from engine.model import DispatchState as S
from engine.model import GatewayReceipt, Match, Offer

QUARTER_MS = 900_000
_DAY_QUARTERS = 100


class _Part(NamedTuple):
    shard: int
    offer_id: str
    dispatch_id: str
    part: int
    parts: int


class _Known(NamedTuple):
    """What receipts need of an offer, as lua/shared.lua has it."""

    shard: int
    user: str
    body: str
    dispatches: list[Any]


class RedisReceipts:
    """One tenant's receipts. Raises StoreUnavailable while Redis cannot answer.

    partitions  how many shards there are
    link        its connection, for whatever else concerns the tenant
    """

    def __init__(self, url: str, partitions: int, *, tenant: str = "default", patience_s: float = 2.0) -> None:
        self.link = RedisLink(url, patience_s=patience_s, home=f"{{{tenant}}}")
        self._partitions = partitions
        self._tenant = tenant
        self._early_key = f"{{{tenant}}}l".encode()
        self._awaited = f"{{{tenant}}}a".encode()
        self._telling: Sequence[bytes] = ()
        self._may_be_early = True  # another dispatcher may have ended before it told

    def close(self) -> None:
        self.link.close()

    # --- offers -----------------------------------------------------------------------------------------------------

    def find_offer(self, offer_id: str) -> Offer | None:
        """Return an offer that is still known, of whatever shard."""
        offer = self._find([offer_id]).get(offer_id)
        return Offer(**orjson.loads(offer.body)) if offer else None

    def _find(self, offer_ids: Iterable[str]) -> dict[str, _Known]:
        """Read offers by id, as lua/shared.lua has them; those of users who were forgotten are left out."""
        names = list(dict.fromkeys(offer_ids))
        return self._read([(shard, name) for name in names for shard in range(self._partitions)])

    def _read(self, places: Sequence[tuple[int, str]]) -> dict[str, _Known]:
        found: dict[str, _Known] = {}
        for first in range(0, len(places), 4_000):
            chunk = places[first : first + 4_000]
            values = self.link.command("MGET", *(self._offer_key(shard, name) for shard, name in chunk))
            for (shard, name), value in zip(chunk, values, strict=True):
                offer = decode(value) if value else None
                if offer and offer[0]:
                    found[name] = _Known(shard, offer[0], offer[8], offer[9])
        return found

    def _offer_key(self, shard: int, offer_id: str) -> bytes:
        return f"{{{self._tenant}}}{shard}:f:{offer_id}".encode()

    # --- going out --------------------------------------------------------------------------------------------------

    def put_parts(self, records: Sequence[DispatchRow], shard_of: Mapping[str, int]) -> None:
        """Remember by which names gateways will report, and what to wait for, before the outcomes are written."""
        rows: list[tuple[str, str, str, str]] = []
        counts: Counter[tuple[str, int]] = Counter()
        for one in records:
            for number, name in enumerate(one.gateway_ids):
                part = _Part(shard_of[one.offer_id], one.offer_id, one.dispatch_id, number, len(one.gateway_ids))
                keys = self._part_key(one.gateway, name), self._unmatched_key(one.gateway, name)
                rows.append((*keys, _packed(part), f"{one.gateway}\0{name}"))
            counts[one.gateway, one.at_ms // QUARTER_MS] += len(one.gateway_ids)
        for (gateway, quarter), count in counts.items():
            if count:
                self._count_parts(gateway, quarter, count)
        self.await_receipts(
            (one.dispatch_id, one.at_ms)
            for one in records
            if one.state is S.UNKNOWN or (one.state is S.ACCEPTED and one.gateway_ids)
        )
        if rows:
            early = self.link.script("parts", [self._early_key], lambda: (rules.KEEP_PARTS_MS, encode(rows)))
            self._may_be_early = self._may_be_early or early > 0

    def await_receipts(self, dispatches: Iterable[tuple[str, int]]) -> None:
        """Note that dispatches, each with its instant, must reach a final state, if need be by silence."""
        due = [part for name, at_ms in dispatches for part in (at_ms + rules.SILENT_MS, name)]
        if due:
            self.link.command("ZADD", self._awaited, "NX", *due)

    def await_cut_off(self, shard: int, now_ms: int) -> None:
        """Note what a crash cut off between claim and answer; call it before the shard is taken over."""
        cut_off = self.link.command("HVALS", f"{{{self._tenant}}}{shard}:s")
        self.await_receipts((dispatch_id.decode(), now_ms) for dispatch_id in cut_off)

    def _count_parts(self, gateway: str, quarter: int, count: int) -> None:
        key = f"{{{self._tenant}}}k:{gateway}"
        self.link.command("HINCRBY", key, quarter, count)
        for field in self.link.command("HKEYS", key) if quarter % 16 == 0 else ():
            if int(field) < quarter - _DAY_QUARTERS:
                self.link.command("HDEL", key, field)

    def parts_since(self, gateway: str, since_ms: int) -> int:
        """Count parts that a gateway that reports was given since an instant, to the quarter of an hour."""
        found = self.link.command("HGETALL", f"{{{self._tenant}}}k:{gateway}")
        counts = zip(found[::2], found[1::2], strict=True)
        return sum(int(count) for quarter, count in counts if int(quarter) >= since_ms // QUARTER_MS)

    # --- coming back ------------------------------------------------------------------------------------------------

    def match(self, receipts: Sequence[GatewayReceipt]) -> list[Match | None]:
        """Find whose receipts these are; what is nobody's yet is kept for 72 h. One answer for each."""
        by_name = [one for one in receipts if one.gateway_id]
        parts = dict(zip(map(id, by_name), self._parts_of(by_name), strict=True))
        known = [part for part in parts.values() if part is not None]
        offers = self._read([(part.shard, part.offer_id) for part in known])
        named = [one.dispatch_id.partition("/")[0] for one in receipts if not one.gateway_id]
        offers |= self._find(named) if named else {}
        answers: list[Match | None] = []
        for one in receipts:
            if not one.gateway_id:
                answers.append(self._named(one, offers.get(one.dispatch_id.partition("/")[0])))
                continue
            part = parts[id(one)]
            offer = offers.get(part.offer_id) if part is not None else None
            is_known = part is not None and offer is not None
            answers.append(self._judge(part, offer, one.state, one.code, one.at_ms) if is_known else None)  # type: ignore[arg-type]
        return answers

    def _parts_of(self, receipts: Sequence[GatewayReceipt]) -> list[_Part | None]:
        rows = [
            (
                self._part_key(one.gateway, one.gateway_id),
                self._unmatched_key(one.gateway, one.gateway_id),
                one.state.value,
                _packed((one.code, one.at_ms)),
            )
            for one in receipts
        ]
        if not rows:
            return []
        found = self.link.script("receipts", [], lambda: (rules.KEEP_UNMATCHED_MS, encode(rows)))
        return [_Part(*orjson.loads(part)) if part else None for part in found]

    def _named(self, receipt: GatewayReceipt, offer: _Known | None) -> Match | None:
        if offer is None or _state_of(offer, receipt.dispatch_id) is None:
            return None
        offer_id = receipt.dispatch_id.partition("/")[0]
        return self._whole(offer, receipt.dispatch_id, offer_id, receipt.state, receipt.code, receipt.at_ms)

    def _judge(self, part: _Part, offer: _Known, state: S, code: str, at_ms: int) -> Match | None:
        if part.parts == 1 or state is S.ACCEPTED:
            return self._whole(offer, part.dispatch_id, part.offer_id, state, code, at_ms)
        key = f"{{{self._tenant}}}w:{part.dispatch_id}"
        # The first final state of a part stays; the same receipt again is judged by what stands there.
        self.link.command("HSETNX", key, part.part, _packed((state.value, code, at_ms)))
        self.link.command("PEXPIRE", key, rules.KEEP_PARTS_MS)
        found = sorted((orjson.loads(row) for row in self.link.command("HVALS", key)), key=lambda row: int(row[2]))
        judged = rules.judge_parts([(S(row[0]), row[1], row[2]) for row in found], part.parts)
        if judged is None:
            return None
        return self._whole(offer, part.dispatch_id, part.offer_id, *judged)

    def _whole(
        self, offer: _Known, dispatch_id: str, offer_id: str, state: S, code: str, at_ms: int, is_partial: bool = False
    ) -> Match:
        """Make the match; what a second channel may still use is not given back, and what may have arrived ends it."""
        shard = f"{{{self._tenant}}}{offer.shard}:"
        if state is S.UNKNOWN or is_partial:
            self.link.command("HDEL", f"{shard}b", offer_id)
            self.link.command("ZREM", f"{shard}bz", offer_id)
        match = rules.whole(dispatch_id, offer_id, offer.user, state, code, at_ms, is_partial=is_partial)
        if match.state is S.FAILED and match.is_definite and self.link.command("HEXISTS", f"{shard}b", offer_id):
            return replace(match, is_definite=False)
        return match

    def late(self) -> list[Match]:
        """List what receipts that had come before the answer to their submit say, until `told_late`."""
        matches: list[Match] = []
        self._telling = self.link.command("SMEMBERS", self._early_key) if self._may_be_early else []
        for packed in self._telling:
            gateway, _, name = packed.decode().partition("\0")
            part = self.link.command("GET", self._part_key(gateway, name))
            if not part:
                continue
            known = _Part(*orjson.loads(part))
            offer = self._read([(known.shard, known.offer_id)]).get(known.offer_id)
            found = self.link.command("HGETALL", self._unmatched_key(gateway, name))
            kept = [(S(state.decode()), *orjson.loads(row)) for state, row in zip(found[::2], found[1::2], strict=True)]
            for state, code, at_ms in sorted(kept, key=lambda row: int(row[2])) if offer is not None else ():
                assert offer is not None
                match = self._judge(known, offer, state, code, at_ms)
                if match is not None:
                    matches.append(match)
        self._may_be_early = bool(self._telling)
        return matches

    def told_late(self) -> None:
        """Note that what `late` listed is in the log."""
        for packed in self._telling:
            gateway, _, name = packed.decode().partition("\0")
            self.link.command("DEL", self._unmatched_key(gateway, name))
            self.link.command("SREM", self._early_key, packed)
        self._telling = []  # others may have come meanwhile; the next `late` looks

    def silent(self, now_ms: int, limit: int) -> list[tuple[int, str, Match | None]]:
        """List what was waited for long enough: (due, dispatch id, EXPIRED, or None where it ended by itself)."""
        rows = self.link.command("ZRANGEBYSCORE", self._awaited, 0, now_ms, "WITHSCORES", "LIMIT", 0, limit)
        due = [(int(float(score)), name.decode()) for name, score in zip(rows[::2], rows[1::2], strict=True)]
        offers = self._find(name.partition("/")[0] for _, name in due) if due else {}
        found: list[tuple[int, str, Match | None]] = []
        for due_ms, name in due:
            offer_id = name.partition("/")[0]
            offer = offers.get(offer_id)
            state = _state_of(offer, name) if offer is not None else None
            expired = None
            if offer is not None and state is not None and state not in FINAL:
                expired = Match(name, offer_id, offer.user, S.EXPIRED, due_ms, "no_receipt", is_definite=False)
            found.append((due_ms, name, expired))
        return found

    def told_silent(self, rows: Sequence[tuple[int, str]]) -> None:
        """Note that what `silent` listed is in the log."""
        if rows:
            self.link.command("ZREM", self._awaited, *(name for _, name in rows))

    # --- inside -----------------------------------------------------------------------------------------------------

    def _part_key(self, gateway: str, gateway_id: str) -> str:
        return f"{{{self._tenant}}}g:{gateway}\0{gateway_id}"

    def _unmatched_key(self, gateway: str, gateway_id: str) -> str:
        return f"{{{self._tenant}}}q:{gateway}\0{gateway_id}"


def _packed(row: tuple[Any, ...]) -> str:
    """Write a row as text: Redis' MessagePack knows no bytes."""
    return orjson.dumps(list(row)).decode()


def _state_of(offer: _Known, dispatch_id: str) -> S | None:
    """The newest state that a dispatch has reached; None where there is no such dispatch."""
    states = [S(one[1]) for one in offer.dispatches if one[0] == dispatch_id and one[4]]
    return states[-1] if states else None
