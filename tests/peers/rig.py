"""A dispatcher over a real ledger; the engine is played by hand: receipts that are journaled move dispatches."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson

from engine.clock import wall_ms
from engine.deliver.contract import Gateway
from engine.deliver.dispatcher import Dispatcher
from engine.ledger.dispatch import FINAL
from engine.ledger.embedded import EmbeddedLedger
from engine.model import DispatchState, Offer
from engine.runtime.outcome import ReportedState
from tests.peers.invariants import TALLY

TEXT = "您好，附近的影院今晚有您的专属观影优惠"


ASSUMED = frozenset({"marketing.sms", "marketing.app"})


class Book:
    """Addresses by rule: user u7 has number 13800000007."""

    def lookup(self, user_id: str, channel: str) -> str | None:
        return f"138{int(user_id[1:]):08d}"

    def user_of(self, channel: str, address: str) -> str | None:
        return f"u{int(address[3:])}" if address.startswith("138") and len(address) == 11 else None


class Rig:
    """Offers in, states and events out."""

    def __init__(
        self, folder: Path, gateways: Sequence[Gateway], *, book: Any = None, ledger: Any = None, **settings: Any
    ) -> None:
        self.ledger = ledger or EmbeddedLedger(folder / "ledger.db", assumed_consent=ASSUMED)
        self.events: list[dict[str, Any]] = []
        self._gateways = gateways
        self.position = self.ledger.position() + 1
        self.offers: dict[str, Offer] = {}
        self.dispatcher = Dispatcher(
            self.ledger,
            book or Book(),
            gateways,
            now_ms=wall_ms,
            emit=self._emit,
            texts=lambda: ("联通权益", "拒收请回复R"),
            due_fallbacks=self.ledger.due_fallbacks,
            why_not_again=lambda offer: self.ledger.why_not_again(offer.offer_id, offer.channel),
            **settings,
        )

    async def _emit(self, payloads: Sequence[bytes]) -> None:
        events = [orjson.loads(line) for payload in payloads for line in payload.split(b"\n")]
        self.events += events
        rows = [
            ReportedState(one["dispatch_id"], one["offer_id"], DispatchState(one["state"]), one["at"], one["code"])
            for one in events
            if one["type"] == "receipt"
        ]
        self.position += 1
        self.ledger.commit(self.position, wall_ms(), dispatches=rows)

    def offer(self, numbers: Sequence[int], *, text: str = TEXT, deadline_s: float = 120.0, **more: Any) -> list[Offer]:
        """Commit one offer for each user of these numbers and queue it."""
        made = self.commit(numbers, text=text, deadline_s=deadline_s, **more)
        self.dispatcher.enqueue(made)
        return made

    def commit(
        self, numbers: Sequence[int], *, text: str = TEXT, deadline_s: float = 120.0, **more: Any
    ) -> list[Offer]:
        """Commit one offer for each user of these numbers; they wait in the outbox."""
        now_ms = wall_ms()
        made = [
            Offer(
                offer_id=f"{now_ms:012x}{number:020x}",
                scenario=f"national/s{number % 3}",
                user_id=f"u{number}",
                channel=more.get("channel", "sms"),
                text=text,
                benefit="movie",
                offer_class="marketing",
                deadline_ms=int(now_ms + deadline_s * 1000),
                created_ms=now_ms,
                fallback_channel=more.get("fallback_channel"),
                fallback_after_ms=more.get("fallback_after_ms", 0),
                province=more.get("province"),
                benefit_class=more.get("benefit_class", ""),
            )
            for number in numbers
        ]
        self.position += 1
        self.ledger.commit(self.position, now_ms, offers=made)
        self.offers.update((one.offer_id, one) for one in made)
        return made

    def state_of(self, offer: Offer) -> DispatchState | None:
        applied = [row for row in self.ledger.dispatches(offer.offer_id) if row["applied"]]
        return DispatchState(applied[-1]["state"]) if applied else None

    def states(self) -> Counter[DispatchState | None]:
        return Counter(self.state_of(offer) for offer in self.offers.values())

    async def until(self, condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
        """Wait for something; says how things stand where it does not come."""
        try:
            async with asyncio.timeout(timeout_s):
                while not condition():
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"it did not come: {self.states()}, {self.dispatcher.held_back()}") from None

    async def all_in(self, *states: DispatchState, timeout_s: float = 30.0) -> None:
        await self.until(lambda: sum(self.states()[one] for one in states) == len(self.offers), timeout_s)

    async def close(self, timeout_s: float = 5.0) -> None:
        await self.dispatcher.stop(timeout_s)
        self._check_final_states()
        self.ledger.close()

    def _check_final_states(self) -> None:
        """See that no offer is lost: each waits in the outbox or ends, by 48 h of silence if by nothing else (G1)."""
        later_ms = wall_ms() + 49 * 3_600_000
        while rows := self.ledger.silent(later_ms):
            expired = [
                ReportedState(one.dispatch_id, one.offer_id, one.state, one.at_ms, one.code)
                for _, _, one in rows
                if one is not None
            ]
            self.position += 1
            self.ledger.commit(self.position, wall_ms(), dispatches=expired)
            self.ledger.told_silent([(due_ms, name) for due_ms, name, _ in rows])
        waiting = {one.offer_id for one in self.ledger.outbox(1 << 30)}
        reports = {one.channel for one in self._gateways if one.capabilities.receipts}
        for offer in self.offers.values():
            TALLY.offers += 1
            state = self.state_of(offer)
            is_ended = state in FINAL or (state is DispatchState.ACCEPTED and offer.channel not in reports)
            assert is_ended or offer.offer_id in waiting, f"{offer.offer_id} is lost in state {state}"
