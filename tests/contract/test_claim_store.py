"""Several shards of a dispatcher as one claim store: asked together, each answers for itself (D7, F4, G3)."""

from __future__ import annotations

import pytest

from engine.deliver.contract import DispatchRecord
from engine.ledger.dispatch import Claim
from engine.ledger.receipts import SILENT_MS
from engine.ledger.redis.ledger import RedisLedger
from engine.ledger.redis.receipts import RedisReceipts
from engine.model import DispatchState, Offer
from engine.runtime.cluster.claims import ClaimStore
from tests.world import NOON_MS

pytestmark = pytest.mark.integration
HOUR_MS = 3_600_000


def offer(shard: int, number: int) -> Offer:
    name = f"{NOON_MS:012x}{100 * shard + number:020x}"
    return Offer(name, "a/s", f"u{shard}", "sms", "hello", "film", "marketing", NOON_MS + HOUR_MS, NOON_MS)


def dispatch_id(one: Offer) -> str:
    return f"{one.offer_id}/sms/1"


def test_claims_and_outcomes_of_several_shards_go_together_and_each_shard_answers_for_itself(redis_url):
    store = ClaimStore(RedisReceipts(redis_url, 4))
    offers = [offer(shard, number) for number in range(3) for shard in range(4)]
    engines = [RedisLedger(redis_url, shard, dispatcher=False) for shard in range(4)]
    for shard, engine in enumerate(engines):
        mine = offers[shard::4]
        engine.commit(1, NOON_MS, offers=mine)
        store.note(mine, shard)
        if shard != 2:
            ledger = RedisLedger(redis_url, shard, engine=False, assumed_consent=frozenset({"marketing.sms"}))
            store.add(shard, ledger)
    # Two of each shard at once; shard 2 is somebody else's, shard 3 was given up.
    store.give_up(3)
    claims = [(one.offer_id, dispatch_id(one)) for one in offers[:8]]
    assert store.claim(claims, NOON_MS) == [Claim.CLAIMED, Claim.CLAIMED, Claim.FENCED, Claim.FENCED] * 2
    again = [(one.offer_id, dispatch_id(one)) for one in (offers[0], offers[9], offers[8], offers[1])]
    assert store.claim(again, NOON_MS) == [Claim.ALREADY, Claim.CLAIMED, Claim.CLAIMED, Claim.ALREADY]

    claimed = [offers[k] for k in (0, 1, 4, 5, 8, 9)]
    records = [
        DispatchRecord(dispatch_id(one), one.offer_id, DispatchState.ACCEPTED, NOON_MS, None, None, "g", parts)
        for number, one in enumerate(claimed)
        for parts in [tuple(f"{number}.{part}" for part in range(1 + number % 2))]
    ]
    store.record_dispatch(records)
    assert store.receipts.parts_since("g", NOON_MS) == (1 + 2) * 3
    store.record_dispatch(records)  # what is not known to be written is written again
    for one, shard in zip(claimed, (0, 1) * 3, strict=True):
        rows = engines[shard].dispatches(one.offer_id)
        assert [row["state"] for row in rows if row["applied"]] == ["submitting", "accepted"]
    silent = store.silent(NOON_MS + SILENT_MS)
    assert sorted(name for _, name, _ in silent) == sorted(map(dispatch_id, claimed))
    store.close()
    for engine in engines:
        engine.close()
