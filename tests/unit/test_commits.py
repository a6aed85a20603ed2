"""Commits that nobody waits for: one in flight, awaited where a partition is let go (RecordSource; F1, F4, F5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future

import orjson
import pytest
from aiokafka.errors import CommitFailedError, KafkaConnectionError

from engine.errors import StoreUnavailable
from engine.model import Block
from engine.runtime.cluster.commits import Commits
from engine.runtime.cluster.offer_reader import COMMIT_S, OfferReader
from engine.runtime.fake_source import FakeRecord, FakeSource


class Broker:
    """Takes commits, and answers them when told."""

    def __init__(self) -> None:
        self.asked: list[dict[int, int]] = []
        self.answers: list[Future[bool]] = []
        self.now_s = 0.0
        self.commits = Commits(self._take, monotonic_s=lambda: self.now_s)

    def _take(self, positions: Mapping[int, int]) -> Future[bool]:
        self.asked.append(dict(positions))
        self.answers.append(Future())
        return self.answers[-1]


def test_one_commit_is_in_flight_and_the_newest_of_each_partition_goes_next():
    broker = Broker()
    for position in range(5):
        broker.commits.want({0: position, 1: 10 * position})
    assert broker.asked == [{0: 0, 1: 0}]
    broker.answers[0].set_result(True)
    broker.commits.go_on()
    assert broker.asked == [{0: 0, 1: 0}, {0: 4, 1: 40}]
    assert broker.commits.done == {0: 0, 1: 0}, "not before the broker said so"
    broker.answers[1].set_result(True)
    broker.commits.go_on()
    assert (broker.commits.done, len(broker.asked)) == ({0: 4, 1: 40}, 2)


def test_what_is_refused_is_counted_and_what_could_not_be_taken_goes_again():
    """F4, F5: a group that went on without us; a broker that is away for a moment."""
    broker = Broker()
    broker.commits.want({0: 1})
    broker.answers[0].set_exception(CommitFailedError())
    broker.commits.want({0: 2, 1: 3})
    assert broker.commits.refused == 1
    broker.answers[1].set_exception(KafkaConnectionError())
    broker.commits.want({1: 4})
    assert len(broker.asked) == 2, "not at once"
    broker.now_s = 1.0
    broker.commits.go_on()
    assert broker.asked[2] == {0: 2, 1: 4}
    broker.answers[2].set_exception(KafkaConnectionError())
    with pytest.raises(StoreUnavailable, match="kafka took no commit"):
        broker.commits.settle()
    broker.commits.drop([0])
    broker.now_s = 2.0
    broker.commits.go_on()
    assert broker.asked[3] == {1: 4}
    with pytest.raises(StoreUnavailable, match="in time"):
        broker.commits.settle(0.0)


class Told:
    """What a dispatcher hears of its reader."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, list[int]]] = []
        self.offers: list[int] = []

    def assign(self, shards: Sequence[int]) -> None:
        self.heard.append(("assign", list(shards)))

    def revoke(self, shards: Sequence[int]) -> None:
        self.heard.append(("revoke", list(shards)))

    def enqueue(self, block: Block) -> None:
        spans = zip(block.start.tolist(), block.end.tolist(), strict=True)
        self.offers += [orjson.loads(block.data[start:end]) for start, end in spans]


def reading(partitions: int, records: int) -> tuple[FakeSource, Told, OfferReader, list[float]]:
    rows = {p: [FakeRecord(b"%d" % (100 * p + k), k) for k in range(records)] for p in range(partitions)}
    source, told, now_s = FakeSource(rows), Told(), [1.0]
    source.holds_commits = True
    return source, told, OfferReader(source, told, monotonic_s=lambda: now_s[0]), now_s


def test_offers_are_read_on_while_a_commit_is_not_answered_and_nothing_is_committed_before_it_was_handed_over():
    source, told, reader, now_s = reading(1, 40)
    for step in range(1, 5):
        reader.step(10)
        now_s[0] += COMMIT_S
        assert told.offers == list(range(10 * step))
        assert source.committed == {}
    source.answer_commits()
    assert source.committed == {0: 39}
    source.crash()
    source.append(0, FakeRecord(b"40", 40))
    reader.step(10)
    assert told.offers[40:] == [40], "what was committed does not come again"


def test_a_shard_is_let_go_and_the_reader_closed_only_once_its_commit_was_answered():
    """F3, F24: what was handed over since the last commit is committed too."""
    source, told, reader, _ = reading(2, 5)
    reader.step()
    source.append(0, FakeRecord(b"5", 5))
    reader.step()
    assert (source.committed, len(told.offers)) == ({}, 11)
    source.rebalance([1])
    reader.step()
    assert source.committed == {0: 5, 1: 4}
    assert told.heard == [("assign", [0, 1]), ("revoke", [0])]
    source.append(1, FakeRecord(b"105", 5))
    reader.step()
    reader.close()
    assert source.committed == {0: 5, 1: 5}


def test_a_reader_that_is_killed_hears_again_what_was_not_committed():
    """F1: an offer told twice is claimed once."""
    source, told, reader, _ = reading(1, 3)
    reader.step()
    source.crash()
    reader.step()
    assert told.offers == [0, 1, 2, 0, 1, 2]
