"""Commits that nobody waits for: one in flight, awaited where a partition is let go (RecordSource; F1, F4, F5)."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future

import pytest
from aiokafka.errors import CommitFailedError, KafkaConnectionError

from engine.errors import StoreUnavailable
from engine.runtime.cluster.commits import Commits


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
