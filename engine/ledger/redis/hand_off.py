"""The dispatcher's side of a shard, and what people read of it: claims, outcomes, decisions, upkeep.

Everything here goes over the second connection, so that a claim never waits for the engine's batch.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import orjson

from engine.errors import StoreUnavailable
from engine.ledger.dispatch import Claim
from engine.ledger.kernel import KEEP
from engine.ledger.outcomes import DispatchRow
from engine.ledger.redis.acts import dispatch_act
from engine.ledger.redis.link import RedisLink
from engine.ledger.redis.packing import GRANT_BYTES, decode, encode
from engine.ledger.redis.shard import OFFER_KEEP_MS, RedisShard
from engine.model import Offer

Call = tuple[Sequence[bytes], Callable[[], Sequence[bytes | str | int]]]


class HandOffShard(RedisShard):
    """Claims and outcomes of one shard (docs/contracts.md, Claim, Dispatch states)."""

    @property
    def would_wait(self) -> bool:
        """A claim always waits for the network."""
        return True

    def outbox(self, limit: int) -> list[Offer]:
        """List offers committed and not claimed, oldest trigger first."""
        answer = self._claims.script("outbox", [self._meta], lambda: (0, 0, 0, self._prefix, limit, OFFER_KEEP_MS))
        return [Offer(**orjson.loads(body)) for body in decode(answer)]

    def claim(self, claims: Sequence[tuple[str, str]], now_ms: int, *, epoch: int | None = None) -> list[str]:
        """Claim pairs of offer id and dispatch id at wall time `now_ms`, in one act; one answer for each.

        Where the store cannot answer, all are `unavailable`, and nothing may be sent.
        """
        return claim_all(self._claims, [(self, claims)], now_ms, epoch=epoch)[0]

    def record_dispatch(self, records: Sequence[DispatchRow]) -> list[bool]:
        """Store what became of dispatches, in one act; says for each whether its state changed (G1)."""
        return record_all(self._claims, [(self, records)])[0]

    def why_not_again(self, offer_id: str, channel: str) -> str | None:
        """Say why a dispatch that was provably not accepted must not be submitted once more; None: it may (D7)."""
        try:
            answer = self._claims.script(
                "again",
                [self._meta],
                lambda: (
                    self.epoch,
                    0,
                    self._claims.run_id,
                    self._prefix,
                    self._pauses,
                    encode(sorted(self.assumed_consent)),
                    offer_id,
                    channel,
                ),
            )
        except StoreUnavailable:
            return Claim.UNAVAILABLE.value
        return answer.decode() or None

    def due_fallbacks(self, now_ms: int, limit: int = 500) -> list[Offer]:
        """List offers whose second channel is due (G5), as second attempts to claim."""
        answer = decode(self._claims.script("fallbacks", [self._meta], lambda: (self._prefix, now_ms, limit)))
        offers = [Offer(**orjson.loads(body)) for body in answer[::2]]
        pairs = zip(offers, answer[1::2], strict=True)
        return [replace(offer, channel=channel, attempt=2) for offer, channel in pairs]

    # Receipts are matched over all shards: engine/ledger/redis/receipts.py.

    def evidence(self, user: str) -> list[dict[str, Any]]:
        """List what a user said of consent in messages, oldest first (A3): purpose, granted, at_ms, source, text."""
        names = ("purpose", "granted", "at_ms", "source", "text")
        rows = [decode(row) for row in self._claims.command("LRANGE", f"{self._prefix}e:{user}", 0, -1)]
        return [{**dict(zip(names, row, strict=True)), "granted": row[1] == 1} for row in rows]

    def dispatches(self, offer_id: str) -> list[dict[str, Any]]:
        """List the states an offer's dispatches went through, in order."""
        offer = self._offer(offer_id)
        names = ("dispatch_id", "state", "at_ms", "epoch", "applied", "gateway_id", "code")
        rows = offer[9] if offer else []
        return [
            {"seq": seq, **dict(zip(names, row[:7], strict=True)), "applied": int(row[4])}
            for seq, row in enumerate(rows)
        ]

    def _offer(self, offer_id: str) -> list[Any] | None:
        packed = self._claims.command("GET", f"{self._prefix}f:{offer_id}")
        return decode(packed) if packed else None

    # --- reading ----------------------------------------------------------------------------------------------------

    def decisions(self, *, user: str, from_ms: int, until_ms: int, limit: int = 100) -> list[bytes]:
        """List bodies of a user's decisions whose trigger lies in [from_ms, until_ms), newest first."""
        found = self._claims.command("HGETALL", f"{self._prefix}x:{user}")
        bodies = dict(zip(found[::2], found[1::2], strict=True))
        chosen = [key for key in bodies if from_ms <= int(key[:12], 16) < until_ms]
        return [bodies[key] for key in sorted(chosen, reverse=True)[:limit]]

    def paused(self) -> set[str]:
        """The scenarios that are paused; "*" stands for all."""
        keys = (f"{self._prefix}p", self._pauses)
        return {name.decode() for key in keys for name in self._claims.command("HKEYS", key)}

    def counts(self) -> dict[str, int]:
        """How many of each are stored, for summaries and tests; reads everything."""
        command = self._claims.command
        offers = [decode(command("GET", key)) for key in self._keys("f:")]
        consents = (name for key in self._keys("c:") for name in command("HKEYS", key))
        values = [command("GET", key) for key in self._keys("u:")]
        return {
            "offers": sum(bool(offer[0]) for offer in offers),
            "outbox": command("ZCARD", f"{self._prefix}outbox"),
            "dispatches": sum(len(offer[9]) for offer in offers),
            "consents": sum(not name.startswith(b"#") for name in consents),
            "pauses": command("HLEN", f"{self._prefix}p"),
            "reservations": sum(len(value) // GRANT_BYTES for value in values if value),
            "decisions": sum(command("HLEN", key) for key in self._keys("x:")),
        }

    # --- upkeep -----------------------------------------------------------------------------------------------------

    def expire(self, before_ms: int, reservations_before_ms: int) -> None:
        """Delete decisions, offers and dispatches from before `before_ms`, and old grants; keys also age by themselves.

        Grants that a rule without a window looks at stay.
        """
        first = max(before_ms, 0).to_bytes(6, "big").hex()
        for key in self._keys("f:"):
            if key.decode().rpartition("f:")[2] < first:
                self._claims.command("DEL", key)
        self._claims.command("ZREMRANGEBYLEX", f"{self._prefix}outbox", "-", f"({first}")
        for key in self._keys("x:"):
            old = [name for name in self._claims.command("HKEYS", key) if name.decode() < first]
            if old:
                self._claims.command("HDEL", key, *old)
        for key in self._keys("u:"):
            self._claims.script("trim", [key], lambda: (reservations_before_ms, KEEP))

    def forget(self, user: str) -> None:
        """Leave no trace of a user or subject (I2)."""
        self._refused.pop(user, None)
        for kind in ("u:", "c:", "e:", "x:"):
            self._claims.command("DEL", f"{self._prefix}{kind}{user}")
        self._claims.command("DEL", f"{self._persons}{user}", f"{self._everywhere}z:{user}")
        for key in self._keys("t:"):
            took = decode(self._claims.command("GET", key) or encode([None]))
            if took[0] == user:
                # What was given stays counted; to whom is forgotten.
                self._claims.command("SET", key, encode(["", *took[1:]]), "KEEPTTL")
        for key in self._keys("f:"):
            offer = decode(self._claims.command("GET", key) or encode([None, None] + [None] * 7 + [[]]))
            if user in offer[:2]:
                offer_id = key.decode().rpartition("f:")[2]
                self._claims.command("DEL", key)
                self._claims.command("ZREM", f"{self._prefix}outbox", offer_id)
                self._claims.command("HDEL", f"{self._prefix}s", offer_id)
                self._claims.command("HDEL", f"{self._prefix}b", offer_id)
                self._claims.command("ZREM", f"{self._prefix}bz", offer_id)
                for dispatch_id in {one[0] for one in offer[9]}:
                    self._claims.command("DEL", f"{{{self._tenant}}}w:{dispatch_id}")
                    self._claims.command("ZREM", f"{{{self._tenant}}}a", dispatch_id)

    # --- what goes over a connection that several shards share --------------------------------------------------------

    def _claim_call(self, link: RedisLink, claims: Sequence[tuple[str, str]], now_ms: int, epoch: int | None) -> Call:
        token = secrets.token_hex(8)
        flat = [text for pair in claims for text in pair]
        return [self._meta], lambda: (
            self.epoch if epoch is None else epoch,
            0,
            link.run_id,
            self._prefix,
            now_ms,
            OFFER_KEEP_MS,
            token,
            self._pauses,
            encode(sorted(self.assumed_consent)),
            encode(flat),
        )

    def _record_call(self, link: RedisLink, records: Sequence[DispatchRow]) -> Call:
        rows = [dispatch_act(record)[1:] for record in records]
        return [self._meta], lambda: (0, 0, link.run_id, self._prefix, OFFER_KEEP_MS, encode(rows))


def claim_all(
    link: RedisLink,
    claims: Sequence[tuple[HandOffShard, Sequence[tuple[str, str]]]],
    now_ms: int,
    *,
    epoch: int | None = None,
) -> list[list[str]]:
    """Claim offers of several shards of a tenant, an act each, all on their way at once; one answer for each."""
    calls = [shard._claim_call(link, mine, now_ms, epoch) for shard, mine in claims]
    try:
        return [[Claim(one) for one in decode(answer)] for answer in link.scripts("claim", calls)]
    except StoreUnavailable:
        return [[Claim.UNAVAILABLE] * len(mine) for _, mine in claims]


def record_all(link: RedisLink, records: Sequence[tuple[HandOffShard, Sequence[DispatchRow]]]) -> list[list[bool]]:
    """Store outcomes of several shards, an act each, all on their way at once; may be repeated (G1).

    Raises StoreUnavailable where one of them is being rebuilt; the others' may be stored then.
    """
    answers = link.scripts("outcome", [shard._record_call(link, mine) for shard, mine in records])
    for (shard, _), answer in zip(records, answers, strict=True):
        if answer == b"behind":
            raise StoreUnavailable(f"shard {shard.shard} is being rebuilt")
    return [[one == 1 for one in decode(answer)] for answer in answers]
