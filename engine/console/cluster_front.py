"""`opportune serve --cluster`: the HTTP API in front of Kafka. Events go to the partitions of their users.

Nothing is decided here, and any number of fronts may run. What only a worker knows - occupancy, explanations,
audiences - is refused with a hint.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn, TypeVar

import structlog

from engine.clock import wall_ms
from engine.console.access import check_binding
from engine.console.api import Api
from engine.console.contract import Component, FenceOccupancy
from engine.console.intake import Refused
from engine.console.server import HttpServer
from engine.deliver.contract import Callback, Reply
from engine.errors import StoreUnavailable
from engine.ledger.redis.deployment import Deployment
from engine.model import RecordKind
from engine.runtime.cluster import control
from engine.runtime.cluster.outputs import Outputs
from engine.runtime.cluster.routing import by_partition
from engine.runtime.cluster.topics import ensure_topics
from engine.settings import Settings

log = structlog.get_logger("opportune.front")

T = TypeVar("T")
_PROBE_S = 2.0


class ClusterFront:
    """Start and stop; lives in one event loop.

    Raises StoreUnavailable where Kafka or Redis cannot be reached at the start, saying what to do.
    """

    def __init__(self, settings: Settings, *, now_ms: Callable[[], int] = wall_ms) -> None:
        check_binding(settings.host, settings.api_key, settings.api_keys)
        self.settings = settings
        ensure_topics(settings.cluster)
        self.deployment = Deployment(settings.cluster.redis, settings.tenant)
        self.outputs = Outputs(settings.cluster)
        # One thread: records of one user keep the order in which they came.
        self._calls = ThreadPoolExecutor(1, "opportune-front")
        self._waiting_bytes = 0
        self._is_stopping = False
        self._faults = {"kafka": "", "redis": ""}
        self.api = Api(
            self,
            api_key=settings.api_key,
            api_keys=settings.api_keys,
            queue_bytes=settings.queue_bytes,
            now_ms=now_ms,
        )
        self.server = HttpServer(self.api, settings.host, settings.port)
        self._probes: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        return self.server.port

    async def start(self) -> None:
        await self.server.start()
        self._probes = asyncio.create_task(self._probe())
        log.info("ready", host=self.settings.host, port=self.port)

    async def stop(self) -> None:
        """Refuse new events, finish what was taken."""
        self._is_stopping = True
        await self.server.stop()
        if self._probes is not None:
            self._probes.cancel()
        await self._in_thread(self.outputs.close)
        self._calls.shutdown()
        self.deployment.close()

    async def _probe(self) -> None:
        """Ask Redis now and then, so that /readyz says what is down before a pause finds out."""
        while True:
            try:
                await self._in_thread(self.deployment.ping)
                self._faults["redis"] = ""
            except StoreUnavailable as error:
                self._faults["redis"] = str(error)
            await asyncio.sleep(_PROBE_S)

    # --- what the API asks (engine.console.contract.Engine) -----------------------------------------------------------

    @property
    def backlog_bytes(self) -> int:
        return self._waiting_bytes

    @property
    def is_accepting(self) -> bool:
        return not self._is_stopping

    async def append(self, payloads: Sequence[bytes], kind: RecordKind = RecordKind.EVENTS) -> Sequence[int]:
        """Return once all replicas in sync have the events. Positions are by partition: none is told."""
        size = sum(map(len, payloads))
        self._waiting_bytes += size
        try:
            await self._in_thread(self._produce, payloads)
            self._faults["kafka"] = ""
        except StoreUnavailable as error:
            self._faults["kafka"] = str(error)
            raise
        finally:
            self._waiting_bytes -= size
        return [-1] * len(payloads)

    def append_at_once(self, payloads: Sequence[bytes]) -> Sequence[int] | None:
        return None

    def _produce(self, payloads: Sequence[bytes]) -> None:
        for partition, key, record in by_partition(payloads, self.settings.cluster.partitions):
            self.outputs.send("events", [record], partition=partition, keys=[key])
        self.outputs.flush()

    async def processed(self, position: int) -> None:
        _refuse("events are processed by the workers; the topics `decisions` and `offers` tell what became of them")

    def occupancy(self) -> Sequence[FenceOccupancy]:
        _refuse("occupancy is known to the workers, partition by partition; read it from their /metrics")

    def ready(self) -> dict[str, Component]:
        return {name: Component(not fault, fault, critical=name == "kafka") for name, fault in self._faults.items()}

    async def explain(self, user: str, at_ms: int | None, scenario: str | None) -> dict[str, Any]:
        _refuse("a front holds no state; what was decided about a user is in the topic `decisions`")

    async def audience(self, scenario: str | None, expression: str | None) -> dict[str, Any]:
        _refuse("profiles are with the workers; count the audience with an embedded service or a backtest")

    async def explain_decision(self, decision_id: str) -> dict[str, Any]:
        _refuse("a front holds no state; the decision is in the topic `decisions` under this id")

    async def pause(self, scenario: str, paused: bool, by: str) -> None:
        cluster = self.settings.cluster
        await self._in_thread(control.tell_pause, cluster, self.deployment, self.outputs, scenario, paused, by)

    async def gateway_callback(self, name: str, callback: Callback) -> Reply | None:
        _refuse(f"gateways report to the dispatcher; send the callbacks of {name} to `opportune dispatch`")

    def sandbox_messages(self, limit: int) -> Sequence[dict[str, Any]]:
        _refuse("messages are handed over by `opportune dispatch`")

    async def _in_thread(self, work: Callable[..., T], *asked: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._calls, work, *asked)


def _refuse(what: str) -> NoReturn:
    raise Refused(501, "not_in_a_cluster", what)
