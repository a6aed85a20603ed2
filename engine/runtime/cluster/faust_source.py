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
import uvloop
from faust.transport.consumer import Consumer as BaseConsumer
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from engine.errors import StoreUnavailable
from engine.runtime.cluster.group_source import GroupSource
from engine.runtime.cluster.record_batches import Fetched, RawConsumer

PRIVATE_NAMES = {
    BaseConsumer: ("_drain_messages", "_wait_next_records", "_commit", "_stopped", "seek_wait", "pause_partitions"),
    driver.Consumer: ("_new_consumer_thread", "on_partitions_revoked", "on_partitions_assigned"),
    driver.AIOKafkaConsumerThread: ("_create_worker_consumer", "_ensure_consumer", "call_thread", "getmany"),
    driver.Transport: ("Consumer",),
    faust.App: ("_create_directories",),
}


class _Thread(driver.AIOKafkaConsumerThread):  # type: ignore[misc]
    """Faust's consumer thread, with a fetch that waits as long as we say and gives bytes instead of records."""

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer.__class__ = RawConsumer
        consumer._fetch_max_wait_ms = transport.app.opportune.fetch_max_wait_ms
        consumer.gather_ms = transport.app.opportune.gather_ms
        return consumer


class BatchConsumer(driver.Consumer):  # type: ignore[misc]
    """Hands each partition's bytes to the source as they came."""

    def _new_consumer_thread(self) -> Any:
        thread = _Thread(self, loop=self.loop, thread_loop=uvloop.new_event_loop(), beacon=self.beacon)
        thread._close_thread_loop_on_stop = True
        return thread

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


class _App(faust.App):  # type: ignore[misc]
    """Keeps nothing on disk, so it makes no folders in whatever folder it was started in."""

    def _create_directories(self) -> None:
        return None


class FaustSource(GroupSource):
    """Read a topic by a Faust application."""

    thread_name = "opportune-faust"

    async def _start(self, address: str, group: str, session_timeout_ms: int) -> None:
        session_timeout_s = session_timeout_ms / 1000
        for name in ("faust", "mode", "aiokafka"):
            logging.getLogger(name).setLevel(logging.ERROR)
        app = _App(
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

    # --- what GroupSource asks ------------------------------------------------------------------------------------

    async def _leave(self) -> None:
        app = getattr(self, "_app", None)
        if app is not None:
            with contextlib.suppress(Exception):
                await app.stop()

    def _must_live(self) -> None:
        if self._started.done() and (error := self._started.exception()) is not None:
            raise StoreUnavailable(f"the faust application does not start ({type(error).__name__})") from error

    async def _go_to(self, partition: int, offset: int) -> None:
        await self._consumer.seek_wait({TP(self._topic, partition): offset})

    async def _commit(self, offsets: Mapping[int, int]) -> bool:
        return bool(await self._consumer._commit({TP(self._topic, one): offset for one, offset in offsets.items()}))

    async def _set_paused(self, partitions: Sequence[int], paused: bool) -> None:
        change = self._consumer.pause_partitions if paused else self._consumer.resume_partitions
        change({TP(self._topic, one) for one in partitions})

    async def _next_committed(self, partition: int) -> int:
        consumer, where = self._consumer, TP(self._topic, partition)
        thread = consumer._thread
        offset = await thread.call_thread(thread._ensure_consumer().committed, where)
        if offset is None:
            offset = (await consumer.earliest_offsets(where))[where]
        return int(offset)

    async def _count_partitions(self) -> int:
        return len(self._consumer._thread._ensure_consumer().partitions_for_topic(self._topic) or ())

    def _highwater(self, partition: int) -> int | None:
        with contextlib.suppress(Exception):
            end: int | None = self._consumer.highwater(TP(self._topic, partition))
            return end
        return None


def _source_of(app: Any) -> FaustSource:
    source: FaustSource = app.opportune
    return source


def _url(address: str) -> Any:
    from yarl import URL

    return URL(f"kafka://{address}")
