"""Members of the group of dispatchers on a real Kafka (F1, F3)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial

import orjson
import pytest

from engine.errors import StoreUnavailable
from engine.model import Offer
from engine.runtime.cluster.offer_reader import OfferReader, open_consumer
from engine.settings import ClusterSettings
from tests.kafka_topics import KafkaTopic

pytestmark = pytest.mark.integration
SHARDS = 4


class Member:
    """A reader that notes what it hears."""

    def __init__(self, topic: KafkaTopic) -> None:
        self.held: set[int] = set()
        self.offers: list[str] = []
        self.fails: Exception | None = None
        cluster = ClusterSettings(kafka=topic.address, prefix=f"{topic.name}-", session_timeout_s=6)
        self.reader = OfferReader(partial(open_consumer, cluster), topic.name, self)

    def assign(self, shards: Sequence[int]) -> None:
        if self.fails is not None:
            raise self.fails
        assert not self.held & set(shards)
        self.held.update(shards)

    def revoke(self, shards: Sequence[int]) -> None:
        self.held.difference_update(shards)

    def enqueue(self, offers: Mapping[int, Sequence[Offer]]) -> None:
        assert self.held.issuperset(offers)
        self.offers += [one.offer_id for found in offers.values() for one in found]


def step_until(is_so: Callable[[], bool], *members: Member) -> None:
    end_s = time.monotonic() + 40
    while not is_so():
        assert time.monotonic() < end_s
        for member in members:
            member.reader.step()


def send(topic: KafkaTopic, begin: str) -> None:
    for shard in range(SHARDS):
        rows = [Offer(f"{begin}{shard}-{k}", "a/s", "u", "sms", "x", "b", "marketing", 2, 1) for k in range(25)]
        topic.send(shard, [orjson.dumps(asdict(row)) for row in rows])


def test_each_offer_is_read_once_while_dispatchers_come_and_go(kafka_address):
    """F3: what was handed over is committed before its shard is let go, and whoever comes goes on behind it."""
    topic = KafkaTopic(kafka_address, SHARDS)
    first = Member(topic)
    send(topic, "a")
    step_until(lambda: len(first.offers) == 100, first)
    second = Member(topic)
    step_until(lambda: len(first.held) == len(second.held) == 2, first, second)
    send(topic, "b")
    step_until(lambda: len(first.offers) + len(second.offers) == 200, first, second)
    assert len(second.offers) == 50
    first.reader.close()
    assert len(first.held) == 2, "who leaves does not give up: what it claimed still ends"
    send(topic, "c")
    step_until(lambda: len(first.offers) + len(second.offers) == 300, second)
    second.reader.close()
    assert len({*first.offers, *second.offers}) == 300
    third = Member(topic)
    third.fails = StoreUnavailable("redis does not answer")
    with pytest.raises(StoreUnavailable, match="redis does not answer"):
        step_until(lambda: bool(third.offers), third)
    third.reader.close()
    assert third.offers == []
