"""The dispatcher's reader of the offers topic: what it hands over, commits and lets go, and in which order (F1-F5)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import orjson
import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from structlog.testing import capture_logs

from engine.errors import StoreUnavailable
from engine.model import Offer
from engine.runtime.cluster.offer_reader import COMMIT_S, OfferReader, open_consumer
from engine.settings import ClusterSettings

TOPIC = "offers"


def offer(name: str) -> Offer:
    return Offer(name, "rain", "u1", "sms", "hello", "coupon", "marketing", 2_000, 1_000)


class Record:
    def __init__(self, shard: int, offset: int, value: bytes | None, error: KafkaError | None = None) -> None:
        self.partition, self.offset = (lambda: shard), (lambda: offset)
        self.value, self.error = (lambda: value), (lambda: error)


class Group:
    """A broker and its group as librdkafka shows them: callbacks come from within `poll` and `consume`."""

    def __init__(self, shards: int) -> None:
        self.records: dict[int, list[bytes | None]] = {shard: [] for shard in range(shards)}
        self.next: dict[int, int] = {}
        self.committed: dict[int, int] = {}
        self.asked: list[tuple[dict[int, int], bool]] = []
        self.events: list[Callable[[], object]] = []
        self.errors: list[KafkaError] = []
        self.takes_commits = True
        self.holds_answers = False
        self.is_closed = False

    def open(self, on_commit: Callable[[Any, Any], None]) -> Group:
        self.on_commit = on_commit
        return self

    def subscribe(self, topics: list[str], *, on_assign: Any, on_revoke: Any, on_lost: Any) -> None:
        assert topics == [TOPIC]
        self.on_assign, self.on_revoke, self.on_lost = on_assign, on_revoke, on_lost
        self.give(sorted(self.records))

    def places(self, shards: Sequence[int]) -> list[TopicPartition]:
        return [TopicPartition(TOPIC, shard) for shard in shards]

    def give(self, shards: Sequence[int]) -> None:
        def assign() -> None:
            self.on_assign(self, self.places(shards))
            self.next = {shard: self.committed.get(shard, 0) for shard in shards}

        self.events.append(assign)

    def take_away(self, *, lost: bool = False) -> None:
        def revoke() -> None:
            (self.on_lost if lost else self.on_revoke)(self, self.places(sorted(self.next)))
            self.next = {}

        self.events.append(revoke)

    def send(self, shard: int, *offers: Offer) -> None:
        self.records[shard] += [orjson.dumps(asdict(one)) for one in offers]

    def poll(self, _timeout_s: float) -> Record | None:
        return next(iter(self.consume(1, 0)), None)

    def consume(self, most: int, _timeout_s: float) -> list[Record]:
        found: list[Record] = []
        while self.events:
            self.events.pop(0)()
        while self.errors and len(found) < most:
            found.append(Record(0, -1, None, self.errors.pop(0)))
        for shard, at in self.next.items():
            rows = self.records[shard][at : at + most - len(found)]
            found += [Record(shard, at + k, value) for k, value in enumerate(rows)]
            self.next[shard] += len(rows)
        return found

    def commit(self, *, offsets: list[TopicPartition], asynchronous: bool) -> None:
        self.asked.append(({one.partition: one.offset for one in offsets}, asynchronous))
        if self.holds_answers and asynchronous:
            return
        error = None if self.takes_commits else KafkaError(KafkaError.NOT_COORDINATOR)
        if error is None:
            self.committed |= self.asked[-1][0]
        elif not asynchronous:
            raise KafkaException(error)
        self.events.append(lambda: self.on_commit(error, offsets))

    def close(self) -> None:
        self.on_revoke(self, self.places(sorted(self.next)))
        self.is_closed = True


class Told:
    """What a dispatcher hears of its reader, and what was committed by then."""

    def __init__(self, group: Group) -> None:
        self.heard: list[tuple[str, list[int], dict[int, int]]] = []
        self.offers: list[tuple[int, str]] = []
        self._group = group

    def assign(self, shards: Sequence[int]) -> None:
        assert not self._group.next, "before anything of them is handed over"
        self.heard.append(("assign", list(shards), dict(self._group.committed)))

    def revoke(self, shards: Sequence[int]) -> None:
        self.heard.append(("revoke", list(shards), dict(self._group.committed)))

    def enqueue(self, offers: Mapping[int, Sequence[Offer]]) -> None:
        self.offers += [(shard, one.offer_id) for shard, found in offers.items() for one in found]


class Reading:
    """A reader of a group with offers `sS-K` in each shard."""

    def __init__(self, shards: int, offers: int) -> None:
        self.group, self.now_s = Group(shards), 1.0
        for shard in range(shards):
            self.group.send(shard, *(offer(f"s{shard}-{k}") for k in range(offers)))
        self.told = Told(self.group)
        self.reader = OfferReader(self.group.open, TOPIC, self.told, monotonic_s=lambda: self.now_s)

    def step(self) -> None:
        self.reader.step()
        self.now_s += COMMIT_S


def test_offers_are_handed_over_by_shard_and_committed_behind_themselves_now_and_then():
    one = Reading(2, 3)
    one.reader.step()
    assert one.told.heard == [("assign", [0, 1], {})]
    assert one.told.offers == [(shard, f"s{shard}-{k}") for shard in range(2) for k in range(3)]
    assert one.group.asked == [({0: 3, 1: 3}, True)], "without waiting for the answer"
    one.group.send(0, offer("more"))
    one.reader.step()
    assert one.told.offers[-1] == (0, "more")
    assert len(one.group.asked) == 1, "not for every step"
    one.now_s += COMMIT_S
    one.reader.step()
    assert one.group.asked[1:] == [({0: 4}, True)]


def test_what_was_handed_over_is_committed_before_a_shard_is_let_go_but_not_after_it_was_lost():
    """F3, F4: shards first end claiming; whoever has lost them commits nothing in another's place."""
    one = Reading(2, 2)
    one.step()
    for lost in (False, True):
        one.now_s -= COMMIT_S  # none is due by time
        one.group.send(0, offer("late"))
        one.reader.step()
        one.group.take_away(lost=lost)
        one.group.give([0, 1])
        one.step()
    assert [(what, before) for what, _, before in one.told.heard] == [
        ("assign", {}),
        ("revoke", {0: 2, 1: 2}),
        ("assign", {0: 3, 1: 2}),
        ("revoke", {0: 3, 1: 2}),
        ("assign", {0: 3, 1: 2}),
    ]
    assert [waits for _, waits in one.group.asked[:2]] == [True, False]
    assert one.told.offers[4:] == [(0, "late"), (0, "late"), (0, "late")], "what was not committed comes again (F1)"


def test_what_was_fetched_of_a_shard_that_goes_meanwhile_is_neither_handed_over_nor_committed():
    """F3: a revocation may come between the first record of a step and the others."""
    one = Reading(1, 2)
    poll = one.group.poll

    def polling(timeout_s: float) -> Record | None:
        found = poll(timeout_s)
        one.group.take_away()
        return found

    one.group.poll = polling  # type: ignore[method-assign]
    one.step()
    assert (one.told.offers, one.group.asked) == ([], [])


@pytest.mark.parametrize("value", [b"no json", b"[1]", b'{"offer_id":"x"}', b'{"strange":1}', None])
def test_a_record_that_is_no_offer_is_told_and_passed_over(value):
    one = Reading(1, 1)
    one.group.records[0].append(value)
    one.group.send(0, offer("next"))
    with capture_logs() as logs:
        one.step()
    assert one.told.offers == [(0, "s0-0"), (0, "next")]
    assert one.group.committed == {0: 3}
    assert [(row["log_level"], row["shard"], row["offset"]) for row in logs] == [("error", 0, 1)]


def test_a_commit_that_fails_goes_again_with_the_newest_and_not_for_a_shard_that_is_gone():
    """F5: a coordinator that is away for a moment."""
    one = Reading(2, 1)
    one.group.takes_commits = False
    one.step()
    one.step()
    assert [asked for asked, _ in one.group.asked] == [{0: 1, 1: 1}, {0: 1, 1: 1}]
    one.group.takes_commits = True
    one.group.send(0, offer("more"))
    one.step()
    assert one.group.committed == {0: 2, 1: 1}
    one.group.takes_commits = False
    one.group.send(1, offer("more"))
    one.step()
    one.group.take_away(lost=True)
    one.step()
    one.step()
    assert one.group.committed == {0: 2, 1: 1}
    assert len(one.group.asked) == 4


def test_a_reader_that_ends_commits_what_it_handed_over_and_leaves_without_giving_its_shards_up():
    """F24: claims that are on their way still end."""
    one = Reading(1, 1)
    one.step()
    one.now_s -= COMMIT_S
    one.group.send(0, offer("last"))
    one.reader.step()
    one.reader.close()
    assert one.group.asked[-1] == ({0: 2}, False)
    assert (one.group.committed, one.group.is_closed) == ({0: 2}, True)
    assert [what for what, _, _ in one.told.heard] == ["assign"]


def test_an_error_that_passes_is_waited_for_and_one_that_does_not_ends_the_reader():
    one = Reading(1, 1)
    one.group.errors = [KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)]
    with capture_logs() as logs:
        one.step()
    assert (one.told.offers, [row["error"] for row in logs]) == ([(0, "s0-0")], ["UNKNOWN_TOPIC_OR_PART"])
    one.group.errors = [KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)]
    with pytest.raises(StoreUnavailable, match="TOPIC_AUTHORIZATION_FAILED"):
        one.step()


def test_settings_that_cannot_work_are_told():
    with pytest.raises(StoreUnavailable, match=r"offers cannot be read .*session.timeout.ms"):
        open_consumer(ClusterSettings(session_timeout_s=10_000_000), print)
