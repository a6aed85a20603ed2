"""Write down what became of dispatches: a receipt event for a definite failure first, then the ledger's record.

In this order a crash between the two leaves a claim SUBMITTING (hence UNKNOWN, never resent) whose count the receipt
gives back all the same. Outcomes that come together are written together. While writing fails, nothing new is
claimed: a send whose outcome cannot be recorded is not worth starting.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import structlog

from engine import metrics
from engine.deliver.contract import DispatchRecord
from engine.errors import OpportuneError
from engine.model import CONTRACT_VERSION, DispatchState

log = structlog.get_logger("opportune.deliver")

RELEASING = frozenset({DispatchState.REJECTED, DispatchState.FAILED, DispatchState.EXPIRED})
"""Definite failures: the offer did not go out, so its count and code go back (C2)."""


@dataclass(frozen=True, slots=True)
class Settled:
    user_id: str
    gateway: str
    record: DispatchRecord
    gives_back: bool = True  # what the offer took, where this is a definite failure


class Settler:
    """Collect outcomes and write them in groups.

    emit    journals receipt events and returns once they are durable
    record  stores outcomes in the ledger, and journals what receipts say that had come before them
    """

    RETRY_S = 0.2
    AT_ONCE = 256  # of what has gathered while nothing could be written; between two groups the hand-off goes on
    GATHER_S = 0.02  # outcomes are no part of the hand-off: together they take one transaction from the claims

    def __init__(
        self,
        emit: Callable[[Sequence[bytes]], Awaitable[Any]],
        record: Callable[[Sequence[DispatchRecord]], Awaitable[None]],
        tenant: str,
    ) -> None:
        self._emit = emit
        self._record = record
        self._tenant = tenant
        self._waiting: list[Settled] = []
        self._wake = asyncio.Event()
        self._written = asyncio.Event()
        self._written.set()
        self.is_healthy = True

    def settle(self, settled: Settled) -> None:
        self._waiting.append(settled)
        self._written.clear()
        self._wake.set()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(self.GATHER_S)
            self._wake.clear()
            while self._waiting:
                group, self._waiting = self._waiting[: self.AT_ONCE], self._waiting[self.AT_ONCE :]
                if not await self._write(group):
                    self._waiting = group + self._waiting
                    await asyncio.sleep(self.RETRY_S)
                await asyncio.sleep(0)
            self._written.set()

    async def flushed(self) -> None:
        """Return once everything settled so far is written."""
        await self._written.wait()

    async def _write(self, group: list[Settled]) -> bool:
        try:
            receipts = [self._receipt(one) for one in group if one.record.state in RELEASING]
            if receipts:
                await self._emit(receipts)
            await self._record([one.record for one in group])
        except (OpportuneError, OSError) as error:
            if self.is_healthy:
                log.error("dispatch outcomes cannot be written; nothing new is sent", error=type(error).__name__)
            self.is_healthy = False
            return False
        if not self.is_healthy:
            log.info("dispatch outcomes are written again")
        self.is_healthy = True
        for (gateway, state), count in Counter((one.gateway, one.record.state.value) for one in group).items():
            metrics.DISPATCHES.labels(gateway, state).inc(count)
        return True

    def _receipt(self, one: Settled) -> bytes:
        """The event by which the engine learns of a definite failure; its id makes a repetition count once (T7)."""
        record = one.record
        return orjson.dumps(
            {
                "v": CONTRACT_VERSION,
                "tenant": self._tenant,
                "type": "receipt",
                "id": f"{record.dispatch_id}:{record.state.value}",
                "user": one.user_id,
                "at": record.at_ms,
                "offer_id": record.offer_id,
                "dispatch_id": record.dispatch_id,
                "state": record.state.value,
                "code": record.code or "",
                **({} if one.gives_back else {"definite": False}),
            }
        )
