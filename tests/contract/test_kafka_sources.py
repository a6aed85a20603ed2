"""What members of a group promise, on a real Kafka: Faust batch and plain aiokafka (F1, F3, F4; RecordSource)."""

from __future__ import annotations

import asyncio
import time

import faust
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.consumer.fetcher import Fetcher
from aiokafka.partitioner import murmur2
from mode.threads import ServiceThread

from engine.errors import StoreUnavailable
from engine.model import Block, RecordKind
from engine.runtime.cluster import record_batches
from engine.runtime.cluster.faust_source import PRIVATE_NAMES, FaustSource
from engine.runtime.cluster.kafka_source import KafkaSource
from engine.runtime.source import RecordSource
from tests.kafka_topics import KafkaTopic

pytestmark = pytest.mark.integration
KINDS = ["aiokafka", "faust"]


def collect(sources: list[RecordSource], wanted: int, timeout_s: float = 30.0) -> list[list[Block]]:
    """Poll all until this many records came in all; what each gave."""
    blocks: list[list[Block]] = [[] for _ in sources]
    end_s = time.monotonic() + timeout_s
    while sum(len(block) for one in blocks for block in one) < wanted:
        assert time.monotonic() < end_s, "records are missing"
        for found, source in zip(blocks, sources, strict=True):
            found.extend(source.poll(1000))
        time.sleep(0.005)
    return blocks


def places(blocks: list[Block]) -> list[tuple[int, int]]:
    return [(block.partition, int(position)) for block in blocks for position in block.position]


@pytest.mark.parametrize("kind", KINDS)
def test_a_member_that_comes_back_goes_on_behind_what_was_committed(kafka_address, kind):
    """F1: what was not committed comes again; append times are the broker's and never fall."""
    topic = KafkaTopic(kafka_address, 2)
    for partition in range(2):
        topic.send(partition, [b"%d" % k for k in range(50)])
    source = topic.open(kind, group=f"{topic.name}-g")
    (blocks,) = collect([source], 100)
    assert sorted(places(blocks)) == [(p, k) for p in range(2) for k in range(50)]
    now_ms = time.time() * 1000
    assert all(now_ms - 60_000 < ms <= now_ms + 1000 for block in blocks for ms in block.append_ms)
    source.commit({0: 19, 1: 29})
    source.close()
    again = topic.open(kind, group=f"{topic.name}-g")
    (blocks,) = collect([again], 50)
    assert sorted(places(blocks)) == [(0, k) for k in range(20, 50)] + [(1, k) for k in range(30, 50)]
    again.close()


def test_a_member_leaves_nothing_in_the_folder_it_was_started_in(kafka_address, tmp_path, monkeypatch):
    """Faust makes folders for tables there; the image's user may not, and there are no tables."""
    monkeypatch.chdir(tmp_path)
    topic = KafkaTopic(kafka_address, 1)
    topic.send(0, [b"x"])
    source = topic.open("faust")
    collect([source], 1)
    source.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_lost_or_doubled_when_a_second_member_joins_and_leaves(kafka_address, kind):
    """F3, DESIGN: what is done is committed from the handler of the revocation, before bookkeeping is dropped."""
    topic = KafkaTopic(kafka_address, 4)
    members: list[RecordSource] = []
    done: list[dict[int, int]] = [{}, {}]

    def open_member(number: int) -> RecordSource:
        source = topic.open(kind, group=f"{topic.name}-g", session_timeout_ms=6000)

        def revoked(partitions: list[int]) -> None:
            source.commit({p: done[number].pop(p) for p in partitions if p in done[number]})

        source.on_revoke = revoked
        members.append(source)
        return source

    seen: list[tuple[int, int]] = []

    def work(wanted: int) -> None:
        end_s = time.monotonic() + 40
        while len(seen) < wanted:
            assert time.monotonic() < end_s, f"{len(seen)} of {wanted}"
            for number, member in enumerate(members):
                for block in member.poll(100):
                    seen.extend(places([block]))
                    done[number][block.partition] = int(block.position[-1])
            time.sleep(0.002)

    open_member(0)
    for partition in range(4):
        topic.send(partition, [b"x"] * 30)
    work(120)
    open_member(1)
    end_s = time.monotonic() + 30
    while not members[1]._mine:  # type: ignore[attr-defined]
        assert time.monotonic() < end_s, "the second member got nothing"
        work(120)
        for member in members:
            assert member.poll(100) == []
    for partition in range(4):
        topic.send(partition, [b"y"] * 30)
    work(240)
    assert len({p for p, _ in seen}) == 4
    members[1].commit(done[1])
    members.pop().close()
    for partition in range(4):
        topic.send(partition, [b"z"] * 30)
    work(360)
    assert sorted(seen) == [(p, k) for p in range(4) for k in range(90)]
    members[0].close()


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_records_survive_and_what_is_not_assigned_is_not_committed(kafka_address, kind):
    topic = KafkaTopic(kafka_address, 1)
    topic.send(0, [b"e"])
    topic.send(0, [b""], RecordKind.TICK)
    topic.send(0, [b"c"], RecordKind.CONTROL)
    source = topic.open(kind)
    (blocks,) = collect([source], 3)
    kinds = [kind for block in blocks for kind in block.kind.tolist()]
    assert kinds == [RecordKind.EVENTS, RecordKind.TICK, RecordKind.CONTROL]
    source.commit({7: 3})
    assert (source.committed, source.refused_commits) == ({}, 1)  # type: ignore[attr-defined]
    source.close()


@pytest.mark.parametrize("home", [KafkaSource, FaustSource])
def test_a_kafka_that_nobody_runs_is_named_with_what_to_do(home):
    with pytest.raises(StoreUnavailable, match=r"kafka at 127\.0\.0\.1:1 cannot be reached .*OPPORTUNE_CLUSTER__KAFKA"):
        home("127.0.0.1:1", "t", "g")


def test_the_private_names_of_faust_are_there():
    """DESIGN: pinned, and guarded; a release that renames one is seen here."""
    assert faust.__version__.startswith("0.15.")
    for owner, names in PRIVATE_NAMES.items():
        for name in names:
            assert hasattr(owner, name) or name in getattr(owner, "__annotations__", {}) or name == "_stopped", name
    assert "_close_thread_loop_on_stop" in ServiceThread.__init__.__code__.co_names


def test_the_private_names_of_aiokafka_are_there():
    """Decision 10: the fetcher's own code runs over our two classes; it must still name them."""
    for owner, names in record_batches.PRIVATE_NAMES.items():
        for name in names:
            assert hasattr(owner, name), name
    assert {"MemoryRecords", "PartitionRecords", "FetchResult"} <= set(Fetcher._proc_fetch_request.__code__.co_names)


@pytest.mark.parametrize("compression", [None, "gzip", "snappy", "lz4", "zstd"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_producers_compress_is_read_and_records_on_the_wrong_partition_are_counted(
    kafka_address, kind, compression
):
    """DESIGN: librdkafka's own partitioner is not murmur2; its users' state would lie in two partitions."""
    topic = KafkaTopic(kafka_address, 2)
    values = [b'{"user":"u%d"}' % number for number in range(300)]

    async def send() -> None:
        producer = AIOKafkaProducer(bootstrap_servers=kafka_address, linger_ms=5, compression_type=compression)
        await producer.start()
        sent = [await producer.send(topic.name, value, key=value, partition=0) for value in values]
        await asyncio.gather(*sent)
        await producer.stop()

    asyncio.run(send())
    source = topic.open(kind)
    (blocks,) = collect([source], len(values))
    assert [bytes(one.data[s:e]) for one in blocks for s, e in zip(one.start, one.end, strict=True)] == values
    elsewhere = sum((murmur2(value) & 0x7FFFFFFF) % 2 != 0 for value in values)
    assert source.misplaced == {0: elsewhere}  # type: ignore[attr-defined]
    source.close()
