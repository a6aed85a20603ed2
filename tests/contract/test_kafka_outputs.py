"""What is written to a real Kafka: nothing is lost that nobody is told of (F1, F2)."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest

from engine.errors import StoreUnavailable
from engine.ledger.redis.log import GrantRow, LoggedCommit, write_commit
from engine.runtime.cluster import outputs as outputs_module
from engine.runtime.cluster.outputs import Outputs, read_records
from engine.runtime.cluster.topics import ensure_topics
from engine.runtime.cluster.worker import MOST_EVENTS
from engine.settings import ClusterSettings

pytestmark = pytest.mark.integration
LARGE = b"x" * (2 << 20)
T0 = 1_767_323_045_000


@pytest.fixture(scope="module")
def cluster(kafka_address) -> ClusterSettings:
    cluster = ClusterSettings(kafka=kafka_address, prefix=f"out-{uuid4().hex[:8]}-", partitions=2)
    ensure_topics(cluster)
    return cluster


def written(cluster: ClusterSettings, role: str, partition: int) -> list[bytes]:
    records = asyncio.run(read_records(cluster.kafka, cluster.topic(role), partition))
    return [record.value for record in records]


@pytest.mark.parametrize("size", [2 << 20, 9 << 20], ids=["for the topic", "for any topic"])
def test_a_record_that_is_too_large_is_named_and_what_is_around_it_keeps_its_order(cluster, size):
    outputs = Outputs(cluster)
    values = [b"%d" % number for number in range(50)]

    def send(*rows: bytes) -> None:
        outputs.send("offers", rows, partition=1)
        outputs.flush()

    named = r"a record is larger than topic out-\w+-offers takes \(max.message.bytes\)"
    with pytest.raises(StoreUnavailable, match=named):
        send(*values[:20], b"x" * size, *values[20:])
    send(*values)
    assert written(cluster, "offers", 1)[-50:] == values
    outputs.close()


def test_the_log_takes_a_commit_of_the_largest_block_in_which_every_event_got_a_code(cluster):
    """F7: a worker that could not write it would fail on that block at every start."""
    name = "n" * 128
    rows = [
        GrantRow(f"{number:032x}", name, name, name, name, name, "sms", 3, T0, number, name)
        for number in range(MOST_EVENTS)
    ]
    entry = write_commit(LoggedCommit("default", 1, 1, MOST_EVENTS, T0, MOST_EVENTS, 0, rows, []))
    outputs = Outputs(cluster)
    outputs.append(1, entry)
    outputs.append(1, b"after")
    assert [*outputs.read(1, 0)] == [entry, b"after"]
    outputs.close()


def test_once_a_record_of_a_worker_is_lost_nothing_after_it_may_be_saved(cluster):
    """F1: whoever hears of it first may be somebody who goes on without, and the checkpoint must not."""
    outputs = Outputs(cluster, is_replayed=True)

    def lease_codes() -> None:
        while True:
            outputs.append_control(0, b"a lease of codes, which can wait")

    outputs.send("offers", [LARGE], partition=0)
    with pytest.raises(StoreUnavailable, match="larger"):
        lease_codes()
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="larger"):
            outputs.flush()
    with pytest.raises(StoreUnavailable, match="larger"):
        outputs.send("offers", [b"x"], partition=0)


@pytest.mark.parametrize("waits", [False, True], ids=["few are on their way", "many are"])
def test_a_lost_record_is_told_to_whoever_sent_it_though_another_thread_heard_of_it_first(cluster, monkeypatch, waits):
    """Both may have lost it; who sends afterwards has not."""
    outputs = Outputs(cluster)
    if waits:
        monkeypatch.setattr(outputs_module, "MOST_UNACKNOWLEDGED", 0)
        outputs.send("offers", [b"small"], partition=0)
    outputs.send("offers", [LARGE], partition=0)
    monkeypatch.undo()

    def other() -> None:
        outputs.send("offers", [b"small"], partition=0)
        with pytest.raises(StoreUnavailable, match="larger"):
            outputs.flush()
        outputs.send("offers", [b"small"], partition=0)
        outputs.flush()

    with ThreadPoolExecutor(1) as threads:
        threads.submit(other).result(30)
    with pytest.raises(StoreUnavailable, match="larger"):
        outputs.flush()
    outputs.send("offers", [b"small"], partition=0)
    outputs.close()


def test_who_sends_more_than_may_be_unacknowledged_waits_and_loses_nothing(cluster, monkeypatch):
    monkeypatch.setattr(outputs_module, "MOST_UNACKNOWLEDGED", 50)
    outputs = Outputs(cluster)
    values = [b"%d" % number for number in range(1000)]
    for first in range(0, 1000, 100):
        outputs.send("decisions", values[first : first + 100], partition=0)
        assert len(outputs._later._kafka) <= 150
    outputs.close()
    assert written(cluster, "decisions", 0) == values
