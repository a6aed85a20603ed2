"""What gateways bring back, made events of the log: receipts, users' messages, news about numbers (G3, A3, A4).

Whatever comes in is grouped, looked up in one go, journaled, and only then acknowledged. A receipt that nothing is
known of yet (it came before the answer to its submit) is kept in the ledger for 72 h and matched when that is recorded.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import structlog

from engine import metrics
from engine.deliver.contract import (
    Addresses,
    DispatchLedger,
    DispatchRecord,
    InboundText,
    NumberNews,
    NumberReport,
    OfferUse,
    UseKind,
)
from engine.errors import OpportuneError, StoreUnavailable
from engine.model import CONTRACT_VERSION, DispatchState, GatewayReceipt, Match
from engine.opt_out import folded, is_opt_out

log = structlog.get_logger("opportune.deliver")

AT_ONCE = 256
"""Receipts matched and journaled in one go, some milliseconds. Between two such groups the hand-off goes on (F21)."""
EVENTS_A_RECORD = 100
SILENCE_EVERY_S = 30.0
LONGEST_SAID = 64
"""Letters of a message that scenarios may compare."""


@dataclass(slots=True)
class _Group:
    receipts: Sequence[GatewayReceipt]
    done: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Returns:
    """The inbox of all gateways (contract.Inbox).

    emit   journals events and returns once they are durable
    call   runs a function of the ledger where the ledger wants to be run
    """

    def __init__(
        self,
        ledger: DispatchLedger,
        addresses: Addresses,
        emit: Callable[[Sequence[bytes]], Awaitable[Any]],
        call: Callable[..., Awaitable[Any]],
        *,
        now_ms: Callable[[], int],
        tenant: str = "default",
    ) -> None:
        self._ledger = ledger
        self._addresses = addresses
        self._emit = emit
        self._call = call
        self._now_ms = now_ms
        self._tenant = tenant
        self._waiting: deque[_Group] = deque()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_closed = False
        self._telling = asyncio.Lock()

    # --- what gateways call -----------------------------------------------------------------------------------------

    async def receipts(self, receipts: Sequence[GatewayReceipt]) -> None:
        """Match and journal; return once that is durable. Raises StoreUnavailable where it is not."""
        if self._is_closed:
            raise StoreUnavailable("shutting down")
        if not receipts:
            return
        groups = [_Group(receipts[at : at + AT_ONCE]) for at in range(0, len(receipts), AT_ONCE)]
        self._waiting += groups
        self._idle.clear()
        self._wake.set()
        for failure in await asyncio.gather(*(group.done for group in groups), return_exceptions=True):
            if failure is not None:
                raise failure

    async def inbound(self, messages: Sequence[InboundText]) -> None:
        """Journal users' messages; one from a number that is nobody's is counted and dropped.

        What is no opt-out is told a second time as a usage event, which scenarios can be triggered by.
        """
        events = []
        for message in messages:
            user = self._user_of(message.channel, message.sender)
            metrics.INBOUND.labels(message.gateway, "message" if user is not None else "stranger").inc()
            if user is None:
                continue
            identity = _identity("mo", message.gateway, message.message_id)
            fields = {"channel": message.channel, "text": message.text[:1000]}
            events.append(self._event("inbound-message", identity, user, message.at_ms, fields))
            if not is_opt_out(message.text):
                identity = _identity("said", message.gateway, message.message_id)
                events.append(self._event("usage", identity, user, message.at_ms, said(message)))
        if events:
            await self._journal(events)

    async def used(self, uses: Sequence[OfferUse]) -> None:
        """Journal clicks and redemptions of offers made here; others are counted and dropped."""
        events = []
        for use in uses:
            offer = await self._call(self._ledger.find_offer, use.offer_id)
            metrics.INBOUND.labels(use.gateway, use.kind.value if offer is not None else "stranger").inc()
            if offer is None:
                continue
            benefit = use.benefit or offer.benefit
            if use.kind is UseKind.REDEMPTION:
                fields: dict[str, Any] = {"offer_id": use.offer_id, "benefit": benefit}
                fields |= {} if use.amount_fen is None else {"amount_fen": use.amount_fen}
                fields |= {"refund": True} if use.refund else {}
                identity = _identity("redemption", use.gateway, use.message_id)
                events.append(self._event("redemption", identity, offer.user_id, use.at_ms, fields))
            if not use.refund:
                identity = _identity(use.kind.value, f"{use.gateway}/told", use.message_id)
                fields = used(use.kind, benefit, offer.scenario)
                events.append(self._event("usage", identity, offer.user_id, use.at_ms, fields))
        if events:
            await self._journal(events)

    async def numbers(self, reports: Sequence[NumberReport]) -> None:
        """Journal what an operator says of numbers: given up is user-closed, barred for debt is suppressed."""
        events = []
        for report in reports:
            user = self._user_of(report.channel, report.address)
            metrics.INBOUND.labels(report.gateway, report.news.value if user is not None else "stranger").inc()
            if user is None:
                continue
            identity = _identity("number", report.gateway, report.message_id)
            if report.news is NumberNews.CLOSED:
                events.append(self._event("user-closed", identity, user, report.at_ms, {}))
            else:
                is_barred = report.news is NumberNews.BARRED
                change = {"add_tags" if is_barred else "remove_tags": [f"suppressed.{report.channel}"]}
                events.append(self._event("profile", identity, user, report.at_ms, change))
        if events:
            await self._journal(events)

    # --- the task ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Match and journal in groups, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                groups, count = [], 0
                while self._waiting and count + len(self._waiting[0].receipts) <= AT_ONCE:
                    groups.append(self._waiting.popleft())
                    count += len(groups[-1].receipts)
                await self._take(groups)
                await asyncio.sleep(0)  # nothing above need have waited for anything
            self._idle.set()

    async def watch_silence(self) -> None:
        """End dispatches of which nothing came for 48 h, and tell what a crash left untold; until cancelled."""
        while True:
            try:
                await self.record(())
                while rows := await self._call(self._ledger.silent, self._now_ms()):
                    await self.announce([match for _, _, match in rows if match is not None])
                    await self._call(self._ledger.told_silent, [(due_ms, name) for due_ms, name, _ in rows])
            except (OpportuneError, OSError) as error:
                log.error("dispatches without receipts cannot be settled now", error=type(error).__name__)
            await asyncio.sleep(SILENCE_EVERY_S)

    async def record(self, records: Sequence[DispatchRecord]) -> None:
        """Store outcomes, and journal what receipts say that had come before the answers to their submits."""
        async with self._telling:  # two at once would each drop what the other has only listed
            late = await self._call(self._record, records)
            if late:
                await self.announce(late)
                await self._call(self._ledger.told_late)

    def _record(self, records: Sequence[DispatchRecord]) -> Sequence[Match]:
        """Do both at once: each way into the ledger's thread and back costs two wake-ups."""
        if records:
            self._ledger.record_dispatch(records)
        return self._ledger.matched_late()

    async def flushed(self) -> None:
        """Return once everything that came in so far is journaled or refused."""
        await self._idle.wait()

    def close(self) -> None:
        """Take no more receipts, for nobody will match them; gateways are asked to repeat these and what waits."""
        self._is_closed = True
        waiting, self._waiting = self._waiting, deque()
        for group in waiting:
            if not group.done.done():
                group.done.set_exception(StoreUnavailable("shutting down"))

    async def _take(self, groups: list[_Group]) -> None:
        receipts = [one for group in groups for one in group.receipts]
        failure: Exception | None = None
        try:
            matches = await self._call(self._ledger.match_receipts, receipts, self._now_ms())
            await self.announce([match for match in matches if match is not None])
        except (OpportuneError, OSError) as error:
            log.error("receipts cannot be stored; gateways are asked to repeat them", error=type(error).__name__)
            failure = StoreUnavailable("receipts cannot be stored now")
        else:
            outcomes = Counter(
                (receipt.gateway, receipt.state.value if match is not None else "unmatched")
                for receipt, match in zip(receipts, matches, strict=True)
            )
            for (gateway, outcome), count in outcomes.items():
                metrics.RECEIPTS.labels(gateway, outcome).inc(count)
        for group in groups:
            if not group.done.done():
                if failure is None:
                    group.done.set_result(None)
                else:
                    group.done.set_exception(failure)

    async def announce(self, matches: Sequence[Match]) -> None:
        """Journal what receipts say of whole dispatches; the id of the event makes a repetition count once (T7)."""
        events = [
            self._event(
                "receipt",
                f"{match.dispatch_id}:{match.state.value}",
                match.user_id,
                match.at_ms,
                {
                    "offer_id": match.offer_id,
                    "dispatch_id": match.dispatch_id,
                    "state": match.state.value,
                    "code": match.code,
                    **({} if match.is_definite else {"definite": False}),
                },
            )
            # Several parts, or a receipt that came twice, say the same of one dispatch.
            for match in {(one.dispatch_id, one.state): one for one in matches}.values()
            if match.state is not DispatchState.ACCEPTED
        ]
        if events:
            await self._journal(events)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _user_of(self, channel: str, address: str) -> str | None:
        for spelling in spellings(address):
            user = self._addresses.user_of(channel, spelling)
            if user is not None:
                return user
        return None

    def _event(self, kind: str, identity: str, user: str, at_ms: int, fields: dict[str, Any]) -> bytes:
        now_ms = self._now_ms()
        return orjson.dumps(
            {
                "v": CONTRACT_VERSION,
                "tenant": self._tenant,
                "type": kind,
                "id": identity,
                "user": user,
                # A gateway's clock may be off; what it says of the future cannot be true (T6).
                "at": min(at_ms, now_ms),
                **fields,
            }
        )

    async def _journal(self, events: list[bytes]) -> None:
        """Append many events as few records: a record costs more than the events in it."""
        records = [
            b"\n".join(events[first : first + EVENTS_A_RECORD]) for first in range(0, len(events), EVENTS_A_RECORD)
        ]
        await self._emit(records)


def said(message: InboundText) -> dict[str, Any]:
    """Tell a user's message as a usage event; its text without regard to width and case, for keywords."""
    props = {"channel": message.channel, "to": message.to, "text": folded(message.text)[:LONGEST_SAID]}
    return {"category": "inbound", "action": "message", "props": props}


def used(kind: UseKind, benefit: str, scenario: str | None = None) -> dict[str, Any]:
    """Tell a click or a redemption as a usage event."""
    props = {"benefit": benefit} | ({} if scenario is None else {"scenario": scenario})
    return {"category": "offer", "action": "redeem" if kind is UseKind.REDEMPTION else "click", "props": props}


def spellings(address: str) -> list[str]:
    """Return the ways an address book may spell a number that an operator names with or without 86."""
    digits = address.removeprefix("+").removeprefix("00")
    if not digits.isdigit():
        return [address]
    local = digits.removeprefix("86") if len(digits) > 11 else digits
    return list(dict.fromkeys([address, local, f"86{local}", f"+86{local}"]))


def _identity(what: str, gateway: str, message_id: str) -> str:
    """Name an event so that the same message again is the same event; at most 256 characters."""
    if len(message_id) > 100:
        message_id = hashlib.blake2b(message_id.encode(), digest_size=16).hexdigest()
    return f"{what}/{gateway}/{message_id}"
