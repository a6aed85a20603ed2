"""The Faust home of the RecordSource contract: a Faust application whose consumer hands over whole batches.

Membership, assignment, rebalances and the application's life are Faust's. Its consumer makes four tasks per message;
ours overrides `_drain_messages` and takes the record map of a fetch at once. Offsets are ours. The private names used
here are listed in PRIVATE_NAMES and guarded by a contract test; the version is pinned.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import faust
import structlog
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError
from faust.transport.consumer import Consumer as BaseConsumer
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from engine.clock import monotonic_s
from engine.errors import StoreUnavailable
from engine.model import Block
from engine.runtime.cluster.bridge import Loop, Rebalances
from engine.runtime.cluster.fetch_queue import FetchQueue
from engine.runtime.cluster.kafka_source import call, probe, unreachable
from engine.runtime.cluster.record_batches import Fetched, RawConsumer
from engine.runtime.source import Assigned, ignore_assignment

log = structlog.get_logger("opportune.faust")

PRIVATE_NAMES = {
    BaseConsumer: ("_drain_messages", "_wait_next_records", "_commit", "_stopped", "seek_wait", "pause_partitions"),
    driver.Consumer: ("_new_consumer_thread", "on_partitions_revoked", "on_partitions_assigned"),
    driver.AIOKafkaConsumerThread: ("_create_worker_consumer", "_ensure_consumer", "call_thread", "getmany"),
    driver.Transport: ("Consumer",),
}


class _Thread(driver.AIOKafkaConsumerThread):  # type: ignore[misc]
    """Faust's consumer thread, with a fetch that waits as long as we say and gives bytes instead of records."""

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer.__class__ = RawConsumer
        consumer._fetch_max_wait_ms = transport.app.opportune.fetch_max_wait_ms
        return consumer


class BatchConsumer(driver.Consumer):  # type: ignore[misc]
    """Hands each partition's bytes to the source as they came."""

    def _new_consumer_thread(self) -> Any:
        return _Thread(self, loop=self.loop, beacon=self.beacon)

    async def _drain_messages(self, fetcher: Any) -> None:
        source: FaustSource = _source_of(self.app)
        try:
            while not (self._stopped.is_set() or fetcher._stopped.is_set()):
                while source.is_full and not fetcher._stopped.is_set():
                    await asyncio.sleep(0.001)
                records, active = await self._wait_next_records(1.0)
                if records is None or self.should_stop:
                    continue
                for where, found in records.items():
                    if found and (active is None or where in active):
                        source.take(where.topic, found)
                if not records:
                    await asyncio.sleep(0)
        except self.consumer_stopped_errors:
            if not self.transport.app.should_stop:
                raise
        except asyncio.CancelledError:
            if not self.transport.app.should_stop:
                raise

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        # Before Faust drops its bookkeeping: what is done can still be committed.
        await _source_of(self.app).rebalance("revoke", revoked)
        await super().on_partitions_revoked(revoked)

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        await super().on_partitions_assigned(assigned, generation_id)
        await _source_of(self.app).rebalance("assign", assigned)


class BatchTransport(driver.Transport):  # type: ignore[misc]
    Consumer = BatchConsumer


class FaustSource:
    """Read a topic by a Faust application, in a loop and thread of its own; arguments as in KafkaSource."""

    def __init__(
        self,
        address: str,
        topic: str,
        group: str,
        *,
        fetch_max_wait_ms: int = 50,
        session_timeout_ms: int = 10_000,
        wait_ms: int = 0,
    ) -> None:
        self.on_assign: Assigned = ignore_assignment
        self.on_revoke: Assigned = ignore_assignment
        self.committed: dict[int, int] = {}
        self.refused_commits = 0
        self.fetch_max_wait_ms = fetch_max_wait_ms
        self._topic = topic
        self._wait_s = wait_ms / 1000
        self._mine: set[int] = set()
        self._is_closed = False
        self._queue = FetchQueue()
        self._rebalances = Rebalances(self._queue.wake)
        self._loop = Loop("opportune-faust")
        try:
            # Faust's own answer to an unreachable broker is to try for ever; ask first.
            self._loop.run(probe(address))
        except (KafkaError, OSError) as error:
            self._loop.stop()
            raise unreachable(address, error) from None
        # Joining a group waits for its other members, who may be waiting for this thread.
        self._started = self._loop.begin(self._start(address, group, session_timeout_ms / 1000))

    async def _start(self, address: str, group: str, session_timeout_s: float) -> None:
        for name in ("faust", "mode", "aiokafka"):
            logging.getLogger(name).setLevel(logging.ERROR)
        app = faust.App(
            group,
            broker=[f"kafka://{one}" for one in address.split(",")],
            store="memory://",
            web_enabled=False,
            topic_disable_leader=True,
            topic_allow_declare=False,
            broker_session_timeout=session_timeout_s,
            broker_heartbeat_interval=max(0.3, session_timeout_s / 4),
            broker_max_poll_interval=600.0,
            broker_rebalance_timeout=30.0,
            broker_commit_interval=3600.0,
            broker_max_poll_records=20_000,
            broker_request_timeout=max(40.0, session_timeout_s),
            consumer_auto_offset_reset="earliest",
            consumer_max_fetch_size=4 << 20,
            stream_wait_empty=False,
            loop=asyncio.get_running_loop(),
        )
        app.opportune = self  # type: ignore[attr-defined]
        app.transport = BatchTransport([_url(one) for one in address.split(",")], app, loop=app.loop)

        @app.agent(app.topic(self._topic, value_type=bytes, value_serializer="raw"))  # type: ignore[misc]
        async def never(stream: Any) -> None:
            """Make Faust subscribe; its messages go to the batch consumer."""
            async for _ in stream:
                raise AssertionError("a message took Faust's own way")

        self._app = app
        await app.start()

    # --- in Faust's loop ------------------------------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        return self._queue.is_full

    def take(self, topic: str, found: list[Fetched]) -> None:
        if topic == self._topic:
            for fetched in found:
                self._queue.put(fetched)

    async def rebalance(self, what: str, partitions: set[TP]) -> None:
        await self._rebalances.announce(what, [one.partition for one in partitions if one.topic == self._topic])

    @property
    def _consumer(self) -> Any:
        return self._app.consumer

    # --- in the engine's thread -----------------------------------------------------------------------------------

    def poll(self, max_events: int) -> list[Block]:
        give_up_s = monotonic_s() + self._wait_s
        if self._started.done() and (error := self._started.exception()) is not None:
            raise StoreUnavailable(f"the faust application does not start ({type(error).__name__})") from error
        while True:
            self._rebalances.handle(self._assigned, self._revoked)
            blocks = self._queue.take(max_events, self._fetch_again)
            left_s = give_up_s - monotonic_s()
            if blocks or left_s <= 0:
                return blocks
            self._queue.wait(left_s)

    def _fetch_again(self, partition: int, offset: int) -> None:
        self._loop.run(self._consumer.seek_wait({TP(self._topic, partition): offset}))

    def seek(self, partition: int, position: int) -> None:
        if partition not in self._mine:
            raise ValueError(f"partition {partition} is not assigned")
        self._queue.begin(partition, position + 1)
        self._fetch_again(partition, position + 1)

    def commit(self, positions: Mapping[int, int]) -> None:
        """Commit what is ours; what is not, or no longer, is refused and counted (F4)."""
        mine = {partition: position for partition, position in positions.items() if partition in self._mine}
        self.refused_commits += len(positions) - len(mine)
        offsets = {TP(self._topic, partition): position + 1 for partition, position in mine.items()}
        if not offsets:
            return
        try:
            did = self._loop.run(self._consumer._commit(offsets))
        except (CommitFailedError, IllegalStateError):
            did = False
        except KafkaError as error:
            raise StoreUnavailable(f"kafka took no commit ({type(error).__name__})") from None
        if did:
            self.committed.update(mine)
        else:
            self.refused_commits += len(mine)

    def pause(self, partitions: Sequence[int]) -> None:
        mine = [partition for partition in partitions if partition in self._mine]
        self._queue.pause(mine)
        self._loop.run(call(self._consumer.pause_partitions, {TP(self._topic, one) for one in mine}))

    def resume(self, partitions: Sequence[int]) -> None:
        mine = [partition for partition in partitions if partition in self._queue.paused]
        self._loop.run(call(self._consumer.resume_partitions, {TP(self._topic, one) for one in mine}))
        for partition in mine:
            self._queue.paused.discard(partition)
            self.seek(partition, self._queue.next[partition] - 1)

    def lag(self) -> dict[int, int]:
        """How many records of each partition are not handed over yet, as far as fetches have told.

        Below 0 the topic is shorter than what was read of it.
        """
        found = {}
        for partition, following in self._queue.next.items():
            with contextlib.suppress(Exception):
                end = self._consumer.highwater(TP(self._topic, partition))
                if end is not None:
                    found[partition] = end - following
        return found

    @property
    def misplaced(self) -> dict[int, int]:
        """How many records of each partition belong into another, by their key."""
        return self._queue.misplaced

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._rebalances.close()
        self._mine.clear()
        app = getattr(self, "_app", None)
        if app is not None:
            with contextlib.suppress(Exception):
                self._loop.run(app.stop(), 20.0)
        self._loop.stop()

    def _assigned(self, partitions: Sequence[int]) -> None:
        offsets = self._loop.run(self._positions(partitions))
        for partition in partitions:
            self._mine.add(partition)
            self.seek(partition, offsets[partition] - 1)
        self.on_assign(partitions)

    async def _positions(self, partitions: Sequence[int]) -> dict[int, int]:
        """Where reading begins: behind what was committed, else at the beginning."""
        consumer = self._consumer
        thread = consumer._thread
        found = {}
        for partition in partitions:
            where = TP(self._topic, partition)
            offset = await thread.call_thread(thread._ensure_consumer().committed, where)
            if offset is None:
                offset = (await consumer.earliest_offsets(where))[where]
            found[partition] = int(offset)
        self._queue.partitions = len(thread._ensure_consumer().partitions_for_topic(self._topic) or ())
        return found

    def _revoked(self, partitions: Sequence[int]) -> None:
        try:
            self.on_revoke(partitions)
        finally:
            self._mine.difference_update(partitions)
            self._queue.drop(partitions)


def _source_of(app: Any) -> FaustSource:
    source: FaustSource = app.opportune
    return source


def _url(address: str) -> Any:
    from yarl import URL

    return URL(f"kafka://{address}")
