"""The dispatcher of a cluster: offers from the topic, claims in Redis, gateways, receipts back into the events topic.

The topic wakes it; the truth is the outbox of each shard. Reading runs in a thread, handing over in the event loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial

import orjson
import structlog
from aiokafka.errors import KafkaError

from engine import metrics
from engine.clock import wall_ms
from engine.decide.local_time import calendar_window, to_local
from engine.deliver.contract import Addresses, Callback, Reply
from engine.deliver.dispatcher import Dispatcher
from engine.deliver.gateways.build import GatewayMaker, routes
from engine.deliver.gateways.sandbox import SandboxMessage
from engine.errors import StoreError, StoreUnavailable
from engine.ledger.codes import CodeStore
from engine.ledger.redis.deployment import must_serve
from engine.ledger.redis.ledger import RedisLedger
from engine.ledger.redis.receipts import RedisReceipts
from engine.model import Offer
from engine.runtime import collector
from engine.runtime.archive import ContentArchive
from engine.runtime.cluster.claims import ClaimStore
from engine.runtime.cluster.control import Contents, ControlTopic
from engine.runtime.cluster.offer_reader import OfferReader, open_consumer
from engine.runtime.cluster.outputs import Outputs
from engine.runtime.cluster.topics import ensure_topics
from engine.settings import Settings

log = structlog.get_logger("opportune.dispatch")

_REFRESH_S = 5.0


class DispatchHost:
    """Start and stop the parts; lives in one event loop.

    Raises StoreUnavailable where Kafka or Redis cannot be reached.
    """

    def __init__(self, settings: Settings, addresses: Addresses, control: Contents | None = None) -> None:
        cluster = settings.cluster
        self.settings = settings
        self.failure: str | None = None
        self.messages: deque[SandboxMessage] = deque(maxlen=1000)
        ensure_topics(cluster)
        self.outputs = Outputs(cluster)
        self.control: Contents = control or ControlTopic(cluster, ContentArchive(settings.state / "content"))
        self.policy = self.control.load_live().policy
        must_serve(cluster.redis, settings.tenant)
        self.store = ClaimStore(RedisReceipts(cluster.redis, cluster.partitions, tenant=settings.tenant))
        self.codes = CodeStore(settings.state / "codes.db")
        maker = GatewayMaker(settings, now_ms=wall_ms, messages=self.messages)
        self._calls = ThreadPoolExecutor(1, "opportune-claims")
        self.dispatcher = Dispatcher(
            self.store,
            addresses,
            maker.declared(),
            now_ms=wall_ms,
            emit=self._emit,
            tenant=settings.tenant,
            texts=lambda: (self.policy.signature, self.policy.opt_out_text),
            routes=routes(settings),
            make_missing=maker.sandbox,
            executor=self._calls,
            why_not_again=self.store.why_not_again,
            due_fallbacks=self.store.due_fallbacks,
            day=lambda: to_local(self.policy.time_zone, wall_ms()).toordinal(),
            sent_today=self._sent_today,
            reveal=self.codes.reveal,
        )
        self._stopping = threading.Event()
        self._reader: threading.Thread | None = None

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        collector.settle()
        await self.dispatcher.start()
        self._reader = threading.Thread(target=self._read, name="opportune-offers", daemon=True)
        self._reader.start()
        self._content = asyncio.create_task(self._follow_content())

    async def stop(self) -> None:
        """Claim nothing more, wait for answers within 20 s, write outcomes; what is unclaimed stays queued."""
        self._stopping.set()
        self._content.cancel()
        await self.dispatcher.stop()
        if self._reader is not None:
            await asyncio.to_thread(self._reader.join, 20.0)
        self.store.close()
        self._calls.shutdown()
        self.codes.close()
        await asyncio.to_thread(self.outputs.close)
        self.control.close()

    # --- offers in (offer_reader.Shards) --------------------------------------------------------------------------

    def _read(self) -> None:
        cluster = self.settings.cluster
        try:
            with closing(OfferReader(partial(open_consumer, cluster), cluster.topic("offers"), self)) as reader:
                while not self._stopping.is_set():
                    reader.step()
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}"
            log.error("offers are no longer read", error=self.failure, exc_info=not isinstance(error, StoreError))

    def enqueue(self, offers: Mapping[int, Sequence[Offer]]) -> None:
        for shard, found in offers.items():
            self.store.note(found, shard)
        self._loop.call_soon_threadsafe(
            self.dispatcher.enqueue, [offer for found in offers.values() for offer in found]
        )

    def assign(self, shards: Sequence[int]) -> None:
        for shard in shards:
            # Taking the shard over makes them UNKNOWN; like any other they end by a receipt or by 48 h of silence.
            self.store.receipts.await_cut_off(shard, wall_ms())
            ledger = RedisLedger(
                self.settings.cluster.redis,
                shard,
                tenant=self.settings.tenant,
                assumed_consent=self.policy.assumed_consent,
                engine=False,
                patience_s=2.0,
            )
            self.store.add(shard, ledger)
            if ledger.unsettled:
                log.warning("claims cut off by a crash are unknown", shard=shard, claims=ledger.unsettled)
            # What an earlier dispatcher left behind; the topic will not tell it again.
            self.enqueue({shard: ledger.outbox(20_000)})
        metrics.PARTITIONS.set(len(self.store.shards))

    def revoke(self, shards: Sequence[int]) -> None:
        for shard in shards:
            self.store.give_up(shard)
        metrics.PARTITIONS.set(len(self.store.shards))

    # --- content ----------------------------------------------------------------------------------------------------

    async def _follow_content(self) -> None:
        """Look for new content now and then, where it holds up neither reading nor handing over."""
        while True:
            await asyncio.sleep(_REFRESH_S)
            await asyncio.to_thread(self._refresh)

    def _refresh(self) -> None:
        """Texts and assumed consent follow the live content."""
        try:
            self.control.refresh()
            self.policy = self.control.load_live().policy
            self.store.set_assumed(self.policy.assumed_consent)
        except (StoreUnavailable, KafkaError, OSError) as error:
            log.warning("content cannot be read; the old one stays", error=f"{type(error).__name__}: {error}")

    # --- receipts out ---------------------------------------------------------------------------------------------

    async def _emit(self, payloads: Sequence[bytes]) -> None:
        # One record an event: each goes to the partition of its user.
        events = [event for payload in payloads for event in payload.split(b"\n")]
        keys: list[bytes | None] = [str(orjson.loads(event)["user"]).encode() for event in events]

        def write() -> None:
            self.outputs.send("events", events, keys=keys)
            self.outputs.flush()

        await asyncio.to_thread(write)

    async def on_callback(self, name: str, callback: Callback) -> Reply | None:
        """Hand a callback to the gateway of that name or channel; None where none of them is called back."""
        return await self.dispatcher.on_callback(name, callback)

    def _sent_today(self, gateway: str) -> int:
        since_ms, _ = calendar_window("day", self.policy.time_zone, wall_ms())
        return self.store.receipts.parts_since(gateway, since_ms)

    def why_not_ready(self) -> str:
        """Say why nothing is handed over now; '' where it is."""
        if self.failure is not None:
            return self.failure
        if self._stopping.is_set():
            return "shutting down"
        return "" if self.dispatcher.may_claim else "ledger unavailable"
