"""Everything of the embedded deployment in one process: engine, HTTP API, dispatcher, gateways."""

from __future__ import annotations

import asyncio
import difflib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, TypeVar

import structlog

from engine.clock import monotonic_s, wall_ms
from engine.console.access import check_binding
from engine.console.api import Api
from engine.console.audience import AudienceCount
from engine.console.claims import Claims
from engine.console.contract import Component, FenceOccupancy
from engine.console.idempotency import Answers
from engine.console.intake import Refused
from engine.console.server import HttpServer
from engine.decide.local_time import calendar_window, to_local
from engine.definitions import Content
from engine.deliver.contract import Addresses, Callback, Gateway, Reply
from engine.deliver.dispatcher import Dispatcher
from engine.deliver.gateways.build import GatewayMaker, routes
from engine.deliver.gateways.sandbox import SandboxMessage
from engine.effects import Effects
from engine.errors import ContentError, StoreUnavailable, UnknownScenario
from engine.ledger.links import Link
from engine.model import Offer, RecordKind
from engine.runtime.id_key import load_id_key
from engine.runtime.service import Service
from engine.settings import Settings

log = structlog.get_logger("opportune.host")

T = TypeVar("T")
DRAIN_S = 8.0
"""How long a stop waits for what was taken to be processed; the rest is in the journal."""
STOP_S = 20.0
"""How long a stop may take in all, but for the checkpoint: FAULTS F24 allows 25."""
CLOCK_BEHIND_S = 5.0
"""Corrections smaller than this are everyday work of NTP."""


class Host:
    """Start and stop the parts in an order that loses nothing; answer what the API asks.

    gateways    one per channel; None: as the settings say, the sandbox elsewhere
    on_message  told each sandbox message; on_batch each batch's effects, in the engine thread
    """

    def __init__(
        self,
        settings: Settings,
        addresses: Addresses,
        *,
        clock: str = "log",
        gateways: Sequence[Gateway] | None = None,
        on_batch: Callable[[Effects], None] | None = None,
        on_message: Callable[[SandboxMessage], None] | None = None,
    ) -> None:
        check_binding(settings.host, settings.api_key, settings.api_keys)
        self.settings = settings
        self._audience = AudienceCount()
        self._answers = Answers(settings.state / "answers.db", wall_ms)
        self._addresses = addresses
        self._messages: deque[SandboxMessage] = deque(maxlen=1000)
        self._is_stopping = False
        api = Api(
            self,
            api_key=settings.api_key,
            api_keys=settings.api_keys,
            queue_bytes=settings.queue_bytes,
            now_ms=wall_ms,
            claims=lambda: self.links,
            answers=self._answers,
        )
        self.server = HttpServer(api, settings.host, settings.port, at_once=api.at_once.answer)
        self.service = Service(settings, clock=clock, on_batch=on_batch)
        now_ms = wall_ms if clock == "log" else self._log_now_ms
        maker = GatewayMaker(settings, now_ms=now_ms, messages=self._messages, on_message=on_message)
        self._claims = ThreadPoolExecutor(1, "opportune-claims")
        self.dispatcher = Dispatcher(
            self.service.ledger,
            addresses,
            maker.declared() if gateways is None else gateways,
            now_ms=now_ms,
            emit=self.service.append,
            tenant=settings.tenant,
            texts=self._texts,
            routes=routes(settings),
            make_missing=maker.sandbox,
            executor=self._claims,
            why_not_again=self._why_not_again,
            day=self._day,
            sent_today=self._sent_today,
            due_fallbacks=self.service.ledger.due_fallbacks,
            reveal=self.service.codes.reveal,
        )
        self.links = Claims(self, load_id_key(settings.state / "offer-id.key"), now_ms)

    @property
    def port(self) -> int:
        return self.server.port

    async def start(self) -> None:
        """Return once events are taken and offers handed over."""
        loop = asyncio.get_running_loop()

        def on_offers(offers: list[Offer]) -> None:
            loop.call_soon_threadsafe(self.dispatcher.enqueue, offers)

        for scenario in self.service.ledger.paused():
            self.dispatcher.pause(scenario, True)
        await self.dispatcher.start()
        self.service.start(on_offers)
        await self.links.tell_forgotten()
        await self.server.start()
        log.info("ready", host=self.settings.host, port=self.port)

    async def stop(self) -> None:
        """Refuse new events, finish the old ones, hand over what can be within 20 s, write a checkpoint.

        The server answers all the while: readiness is 503 from the first moment, and callbacks find somebody as long as
        answers are waited for.
        """
        begin_s = monotonic_s()
        self._is_stopping = True
        try:
            async with asyncio.timeout(DRAIN_S):
                await self.service.drained()
        except (TimeoutError, StoreUnavailable):
            log.error("not everything taken could be processed; the next start does it", failure=self.service.failure)
        await self.dispatcher.stop(max(1.0, STOP_S - (monotonic_s() - begin_s)))
        await self.server.stop()
        await asyncio.to_thread(self.service.stop)
        self._claims.shutdown()
        self._answers.close()

    # --- what the API asks (engine.console.contract.Engine) -----------------------------------------------------------

    @property
    def backlog_bytes(self) -> int:
        return self.service.backlog_bytes

    @property
    def is_accepting(self) -> bool:
        return not self._is_stopping

    async def append(self, payloads: Sequence[bytes], kind: RecordKind = RecordKind.EVENTS) -> Sequence[int]:
        return await self.service.append(payloads, kind)

    def append_at_once(self, payloads: Sequence[bytes]) -> Sequence[int] | None:
        return self.service.append_at_once(payloads)

    async def processed(self, position: int) -> None:
        await self.service.processed(position)

    def occupancy(self) -> Sequence[FenceOccupancy]:
        counts = self.service.occupancy_counts()
        fences = self.service.pipeline.content.fences
        crowded = self.service.crowded
        return [
            FenceOccupancy(fence.id, fence.name, fence.kind, counts.get(fence.id, 0), fence.id in crowded)
            for fence in fences
        ]

    def ready(self) -> dict[str, Component]:
        """Say of each part whether it works."""
        journal, engine = self.service.journal.failure, self.service.failure
        behind_s = self.service.clock_behind_s
        return {
            "accepting": Component(not self._is_stopping, "shutting down" if self._is_stopping else ""),
            "journal": Component(journal is None, journal or ""),
            "engine": Component(engine is None, engine or ""),
            "checkpoints": Component(not (why := self.service.checkpoint_failure), why or "", critical=False),
            "clock": Component(
                behind_s < CLOCK_BEHIND_S,
                f"{behind_s:.0f} s behind the log, whose time stands still till then: events count as late"
                if behind_s >= CLOCK_BEHIND_S
                else "",
                critical=False,
            ),
            "content": Component(True, self.service.pipeline.content.version),
            "hand-off": Component(self.dispatcher.may_claim, "" if self.dispatcher.may_claim else "ledger unavailable"),
            **{
                f"gateway {name}": Component(not why, why, critical=False)
                for name, why in self.dispatcher.held_back().items()
            },
        }

    async def explain(self, user: str, at_ms: int | None, scenario: str | None) -> dict[str, Any]:
        try:
            return await asyncio.to_thread(self.service.explainer.user, user, at_ms, scenario)
        except UnknownScenario as error:
            raise Refused(404, "unknown_scenario", str(error)) from None

    async def explain_decision(self, decision_id: str) -> dict[str, Any]:
        return await asyncio.to_thread(self.service.explainer.decision, decision_id)

    async def audience(self, scenario: str | None, expression: str | None) -> dict[str, Any]:
        try:
            return await asyncio.to_thread(
                self._audience.count, self.service.pipeline, scenario=scenario, expression=expression
            )
        except UnknownScenario as error:
            raise Refused(404, "unknown_scenario", str(error)) from None
        except ContentError as error:
            raise Refused(400, "bad_expression", str(error)) from None

    async def pause(self, scenario: str, paused: bool, by: str) -> None:
        """Stop claims here at once, then in the claim store; on resuming the other way round (D8).

        Raises Refused (404) for an id that is neither live content nor paused: a typo must not look like a brake.
        """
        known = {one.id for one in self.service.pipeline.content.scenarios} | set(self.service.ledger.paused())
        if scenario != "*" and scenario not in known:
            near = difflib.get_close_matches(scenario, sorted(known), 1)
            hint = f"did you mean {near[0]!r}?" if near else '"*" means all of them'
            raise Refused(404, "unknown_scenario", f"no scenario has the id {scenario!r}; {hint}")
        if paused:
            self.dispatcher.pause(scenario, True)
        await self.service.pause(scenario, paused, by)
        if not paused:
            self.dispatcher.pause(scenario, False)

    async def gateway_callback(self, name: str, callback: Callback) -> Reply | None:
        return await self.dispatcher.on_callback(name, callback)

    # --- what claim links ask (engine.console.claims.ClaimEngine) -----------------------------------------------------

    @property
    def content(self) -> Content:
        return self.service.pipeline.content

    @property
    def tenant(self) -> str:
        return self.settings.tenant

    async def link(self, offer_id: str) -> Link:
        return await self._in_ledger(self.service.ledger.link, offer_id)

    async def redeem_link(
        self, offer_id: str, at_ms: int, caller: str, body: str, amount_fen: int | None
    ) -> tuple[Link, bool]:
        return await self._in_ledger(self.service.ledger.redeem_link, offer_id, at_ms, caller, body, amount_fen)

    async def link_told(self, offer_id: str) -> None:
        await self._in_ledger(self.service.ledger.link_told, offer_id)

    async def untold_links(self) -> list[Link]:
        return await self._in_ledger(self.service.ledger.untold_links)

    def reveal(self, ref: str) -> str | None:
        return self.service.codes.reveal(ref)

    async def _in_ledger(self, work: Callable[..., T], *asked: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._claims, work, *asked)

    def sandbox_messages(self, limit: int) -> Sequence[dict[str, Any]]:
        return [asdict(message) for message in list(self._messages)[-limit:][::-1]]

    def _texts(self) -> tuple[str, str]:
        """Signature and opt-out text of the live content: an edit reaches the next message."""
        policy = self.service.pipeline.content.policy
        return policy.signature, policy.opt_out_text

    def _day(self) -> int:
        return to_local(self.service.pipeline.content.policy.time_zone, wall_ms()).toordinal()

    def _sent_today(self, gateway: str) -> int:
        since_ms, _ = calendar_window("day", self.service.pipeline.content.policy.time_zone, wall_ms())
        return self.service.ledger.parts_since(gateway, since_ms)

    def _why_not_again(self, offer: Offer) -> str | None:
        return self.service.ledger.why_not_again(offer.offer_id, offer.channel)

    def _log_now_ms(self) -> int:
        return self.service.pipeline.now_ms
