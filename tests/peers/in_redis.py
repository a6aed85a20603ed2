"""The parts of a cluster that hand over, as one ledger: for tests that run over both homes of it."""

from __future__ import annotations

from typing import Any

from engine.ledger.redis.ledger import RedisLedger
from engine.ledger.redis.receipts import RedisReceipts
from engine.runtime.cluster.claims import ClaimStore


class InRedis:
    """A cluster's parts as one ledger: the engine of a shard, and a dispatcher that has it among eight."""

    SHARD = 3

    def __init__(self, url: str, now_ms: int, assumed_consent: frozenset[str] = frozenset()) -> None:
        self.engine = RedisLedger(url, self.SHARD, dispatcher=False)
        receipts = RedisReceipts(url, 8)
        receipts.await_cut_off(self.SHARD, now_ms)
        self.store = ClaimStore(receipts)
        self._shard = RedisLedger(url, self.SHARD, engine=False, assumed_consent=assumed_consent)
        self.store.add(self.SHARD, self._shard)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine if name in ("dispatches", "forget", "position", "release") else self.store, name)

    def commit(self, position: int, now_ms: int, **more: Any) -> None:
        self.store.note(more.get("offers", ()), self.SHARD)
        self.engine.commit(position, now_ms, **more)

    @property
    def assumed_consent(self) -> frozenset[str]:
        return self._shard.assumed_consent

    @assumed_consent.setter
    def assumed_consent(self, purposes: frozenset[str]) -> None:
        self._shard.assumed_consent = purposes

    def why_not_again(self, offer_id: str, channel: str) -> str | None:
        return self._shard.why_not_again(offer_id, channel)

    def close(self) -> None:
        self.store.close()
        self.engine.close()
