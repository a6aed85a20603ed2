"""The shards of a dispatcher as one claim store (engine.deliver.contract.DispatchLedger)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from engine.deliver.contract import DispatchRecord
from engine.errors import StoreUnavailable
from engine.ledger.dispatch import Claim
from engine.ledger.redis.hand_off import claim_all, record_all
from engine.ledger.redis.ledger import RedisLedger
from engine.ledger.redis.receipts import RedisReceipts
from engine.model import GatewayReceipt, Match, Offer

_MOST_KNOWN = 1_000_000


class ClaimStore:
    """Sends every act to the shard of its offer; an offer of a shard that is not ours is never claimed."""

    would_wait = True

    def __init__(self, receipts: RedisReceipts) -> None:
        self.receipts = receipts
        self._shards: dict[int, RedisLedger] = {}
        self._given_up: dict[int, RedisLedger] = {}
        self._shard_of: dict[str, int] = {}

    def add(self, shard: int, ledger: RedisLedger) -> None:
        self._shards[shard] = ledger

    def give_up(self, shard: int) -> None:
        """Claim nothing of a shard any more; outcomes of what was claimed are still written."""
        ledger = self._shards.pop(shard, None)
        if ledger is not None:
            self._given_up[shard] = ledger

    def note(self, offers: Iterable[Offer], shard: int) -> None:
        """Remember whose offers these are."""
        for offer in offers:
            self._shard_of[offer.offer_id] = shard
        if len(self._shard_of) > _MOST_KNOWN:
            for old in list(self._shard_of)[: _MOST_KNOWN // 2]:
                del self._shard_of[old]

    def set_assumed(self, purposes: frozenset[str]) -> None:
        for ledger in list(self._shards.values()):
            ledger.assumed_consent = purposes

    def outbox(self, limit: int) -> Sequence[Offer]:
        found: list[Offer] = []
        for shard, ledger in list(self._shards.items()):
            offers = ledger.outbox(limit)
            self.note(offers, shard)
            found += offers
        return sorted(found, key=lambda offer: offer.offer_id)[:limit]

    def claim(self, claims: Sequence[tuple[str, str]], now_ms: int) -> Sequence[str]:
        answers: dict[str, str] = {}
        held: list[tuple[RedisLedger, list[tuple[str, str]]]] = []
        for shard, mine in self._by_shard(claims).items():
            ledger = self._shards.get(shard)
            if ledger is None:
                answers |= {dispatch_id: Claim.FENCED for _, dispatch_id in mine}
            else:
                held.append((ledger, mine))
        for (ledger, mine), told in zip(held, claim_all(self.receipts.link, held, now_ms), strict=True):
            if Claim.FENCED in told or Claim.UNAVAILABLE in told:
                told = self._claim_anew(ledger, mine, told, now_ms)
            answers.update(zip((dispatch_id for _, dispatch_id in mine), told, strict=True))
        return [answers[dispatch_id] for _, dispatch_id in claims]

    def _claim_anew(
        self, ledger: RedisLedger, claims: Sequence[tuple[str, str]], told: list[str], now_ms: int
    ) -> list[str]:
        """A rebuilt shard does not know its dispatcher: present yourself once, then ask again."""
        if Claim.UNAVAILABLE in told:
            return told
        ledger.take_claims()
        return ledger.claim(claims, now_ms)

    def record_dispatch(self, records: Sequence[DispatchRecord]) -> object:
        groups: dict[int, list[DispatchRecord]] = {}
        self.receipts.put_parts(records, self._shard_of)
        for record in records:
            groups.setdefault(self._shard_of[record.offer_id], []).append(record)
        ledgers = ((self._shards.get(shard) or self._given_up[shard], group) for shard, group in groups.items())
        return record_all(self.receipts.link, list(ledgers))

    def why_not_again(self, offer: Offer) -> str | None:
        ledger = self._shards.get(self._shard_of.get(offer.offer_id, -1))
        return Claim.FENCED.value if ledger is None else ledger.why_not_again(offer.offer_id, offer.channel)

    def due_fallbacks(self, now_ms: int) -> Sequence[Offer]:
        """List offers of every shard whose second channel is due (G5)."""
        found: list[Offer] = []
        for shard, ledger in list(self._shards.items()):
            offers = ledger.due_fallbacks(now_ms)
            self.note(offers, shard)
            found += offers
        return found

    # Receipts belong to the tenant: a gateway reports to whichever dispatcher it is connected to.

    def match_receipts(self, receipts: Sequence[GatewayReceipt], now_ms: int) -> Sequence[Match | None]:
        return self.receipts.match(receipts)

    def find_offer(self, offer_id: str) -> Offer | None:
        return self.receipts.find_offer(offer_id)

    def matched_late(self) -> Sequence[Match]:
        return self.receipts.late()

    def told_late(self) -> None:
        self.receipts.told_late()

    def silent(self, now_ms: int, limit: int = 500) -> Sequence[tuple[int, str, Match | None]]:
        return self.receipts.silent(now_ms, limit)

    def told_silent(self, rows: Sequence[tuple[int, str]]) -> None:
        self.receipts.told_silent(rows)

    def close(self) -> None:
        self.receipts.close()
        for ledger in (*self._shards.values(), *self._given_up.values()):
            ledger.close()

    @property
    def shards(self) -> Mapping[int, RedisLedger]:
        return self._shards

    def _by_shard(self, claims: Sequence[tuple[str, str]]) -> dict[int, list[tuple[str, str]]]:
        groups: dict[int, list[tuple[str, str]]] = {}
        for offer_id, dispatch_id in claims:
            shard = self._shard_of.get(offer_id)
            if shard is None:
                raise StoreUnavailable(f"offer {offer_id} belongs to no shard of this dispatcher")
            groups.setdefault(shard, []).append((offer_id, dispatch_id))
        return groups
