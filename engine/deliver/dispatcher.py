"""Hand committed offers to gateways, each at most once (rules D6-D8, G2, G4).

The ledger's outbox is the truth; the queues here are a cache of it. `enqueue` takes what a batch has just committed,
`start` takes what was left behind by the last process. Only a claimed offer is submitted.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

import structlog

from engine import metrics
from engine.clock import monotonic_s
from engine.deliver.breaker import Breaker
from engine.deliver.contract import (
    Addresses,
    Callback,
    CallsBack,
    ClaimAnswer,
    DispatchLedger,
    DispatchRecord,
    Gateway,
    Reply,
)
from engine.deliver.lane import gives_back
from engine.deliver.lanes import Lanes
from engine.deliver.making import dispatch_id
from engine.deliver.returns import Returns
from engine.deliver.routing import Route
from engine.deliver.settler import Settled, Settler
from engine.errors import StoreError
from engine.model import DispatchState, Offer

log = structlog.get_logger("opportune.deliver")

ALL = "*"
REFILL_S = 1.0
MOST_QUEUED = 20_000
"""Offers kept in memory; more stay in the outbox and are fetched when there is room."""


class Dispatcher:
    """Everything between a committed offer and its gateway. Lives in one event loop.

    now_ms    wall clock for deadlines; under `--clock events` the log's now
    emit      journals receipt events, returns once durable
    executor  where the ledger's calls run when they might wait; None: in the loop itself
    reveal    looks up the code that `pool#number` stands for, between claim and submit
    why_not_again  asked before a submit is repeated: a reason not to (consent gone, ...), or None
    due_fallbacks  lists offers whose second channel is due at an instant (G5); None: there is no second channel
    day       counts local days, for daily quotas; `sent_today` says what a gateway was given on that day before
    texts     the signature and the opt-out text of an SMS as they are now
    routes    which offers each gateway takes, by its name; one that is not named takes all of its channel
    make_missing  makes the gateway of a channel that none serves, or None: its offers end as `no_gateway`
    """

    def __init__(
        self,
        ledger: DispatchLedger,
        addresses: Addresses,
        gateways: Sequence[Gateway],
        *,
        now_ms: Callable[[], int],
        emit: Callable[[Sequence[bytes]], Awaitable[Any]],
        tenant: str = "default",
        day: Callable[[], int] = lambda: 0,
        sent_today: Callable[[str], int] = lambda gateway: 0,
        texts: Callable[[], tuple[str, str]] = lambda: ("", ""),
        routes: Mapping[str, Route] | None = None,
        make_missing: Callable[[str], Gateway | None] = lambda channel: None,
        executor: Executor | None = None,
        why_not_again: Callable[[Offer], str | None] | None = None,
        due_fallbacks: Callable[[int], Sequence[Offer]] | None = None,
        reveal: Callable[[str], str | None] = lambda ref: None,
        monotonic_s: Callable[[], float] = monotonic_s,
        submit_timeout_s: float = 10.0,
        most_tries: int = 5,
        store_pause_s: float = 0.2,
    ) -> None:
        self.addresses = addresses
        self.reveal = reveal
        self.now_ms = now_ms
        self.monotonic_s = monotonic_s
        self.texts = texts
        self.day = day
        self._sent_today = sent_today
        self.submit_timeout_s = submit_timeout_s
        self.most_tries = most_tries
        self.store_pause_s = store_pause_s
        self.is_stopping = False
        self._ledger = ledger
        self._executor = executor
        self._why_not_again = why_not_again
        self._due_fallbacks = due_fallbacks
        self.returns = Returns(ledger, addresses, emit, self._call, now_ms=now_ms, tenant=tenant)
        self._settler = Settler(emit, self.returns.record, tenant)
        self._lanes = Lanes(self, gateways, routes or {}, make_missing)
        self._paused: set[str] = set()
        self._parked: dict[str, Offer] = {}
        self._known: set[str] = set()
        self._is_behind = False
        self._tasks: list[asyncio.Task[None]] = []

    # --- life -------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin handing over, first what the outbox still holds."""
        self._tasks = [
            asyncio.create_task(work)
            for work in (self._settler.run(), self.returns.run(), self.returns.watch_silence(), self._refill())
        ]
        await self._lanes.open()
        self._is_behind = True
        await self._fetch()

    async def stop(self, timeout_s: float = 20.0) -> None:
        """Claim nothing more, wait for answers, write outcomes; what is unclaimed stays in the outbox."""
        self.is_stopping = True
        await self._lanes.finish(timeout_s)
        try:
            async with asyncio.timeout(5.0):
                await self._settler.flushed()
                await self.returns.flushed()
        except TimeoutError:
            log.error("some dispatch outcomes could not be written; their claims will read as unknown")
        self.returns.close()
        await self._lanes.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def idle(self) -> None:
        """Return once nothing waits and every outcome is written (parked offers do not count)."""
        while not all(lane.is_idle for lane in self._lanes):
            await asyncio.sleep(0.005)
        await self._settler.flushed()

    # --- what comes in ----------------------------------------------------------------------------------------------

    def enqueue(self, offers: Iterable[Offer]) -> None:
        """Take offers that have just been committed to the outbox. Call it in the dispatcher's loop."""
        for offer in offers:
            if offer.offer_id in self._known:
                continue
            if len(self._known) >= MOST_QUEUED:
                self._is_behind = True
                return
            self._known.add(offer.offer_id)
            self._queue(offer)

    def pause(self, scenario: str, paused: bool) -> None:
        """Stop or resume one scenario, or all with "*". From now on nothing of it is claimed here (D8)."""
        if paused:
            self._paused.add(scenario)
        else:
            self._paused.discard(scenario)
            self._unpark()

    def reroute(self, routes: Mapping[str, Route]) -> None:
        """Let gateways take other offers than before, by their names; what is claimed stays where it is."""
        self._lanes.reroute(routes)

    # --- what lanes ask ---------------------------------------------------------------------------------------------

    @property
    def may_claim(self) -> bool:
        return self._settler.is_healthy

    async def on_callback(self, name: str, callback: Callback) -> Reply | None:
        """Hand a callback to the gateway of this name, or the first of this channel that is called back; None: no such.

        Raises CallbackRefused, StoreUnavailable.
        """
        for gateway in self._lanes.named_or_of(name):
            if isinstance(gateway, CallsBack):
                return await gateway.on_callback(callback)
        return None

    def held_back(self) -> dict[str, str]:
        """Say of each gateway why nothing goes to it now; empty where it does."""
        return self._lanes.held_back()

    def reset_breakers(self) -> None:
        """Let every gateway be tried at once: somebody mended it."""
        for lane in self._lanes:
            lane.breaker = Breaker()
            lane.wake()

    def park_if_paused(self, offer: Offer) -> bool:
        if not self._is_paused(offer):
            return False
        self._parked[offer.offer_id] = offer
        return True

    async def claim(self, offers: Sequence[Offer]) -> Sequence[str]:
        """Ask the claim store; a store that cannot answer is UNAVAILABLE, so nothing is sent (C4)."""
        claims = [(offer.offer_id, dispatch_id(offer)) for offer in offers]
        try:
            answers: Sequence[str] = await self._call(self._ledger.claim, claims, self.now_ms())
        except (StoreError, OSError) as error:
            log.error("claim store cannot answer; nothing is sent", error=type(error).__name__)
            answers = [ClaimAnswer.UNAVAILABLE] * len(offers)
        for answer, count in Counter(answers).items():
            metrics.CLAIMS.labels(str(answer)).inc(count)
        return answers

    def not_claimed(self, offer: Offer, answer: str) -> None:
        """Act on a claim that was refused."""
        past = self.now_ms() >= offer.deadline_ms
        if answer == ClaimAnswer.PAUSED and not past:
            self._parked[offer.offer_id] = offer
        elif answer in (ClaimAnswer.EXPIRED, ClaimAnswer.PAUSED):
            self._drop(offer, DispatchState.EXPIRED, "deadline")
        elif answer == ClaimAnswer.NO_CONSENT:
            self._drop(offer, DispatchState.FAILED, "no_consent")
        elif answer == ClaimAnswer.CODE_EXPIRED:
            self._drop(offer, DispatchState.FAILED, "code_expired")
        else:
            # Somebody else has it, or it is not ours any more: nothing to write, nothing to send. Should what it
            # belongs to be ours again by now, nobody tells of it once more: look.
            self._known.discard(offer.offer_id)
            self._is_behind |= answer == ClaimAnswer.FENCED
            if answer != ClaimAnswer.ALREADY:
                log.warning("offer not claimed", offer_id=offer.offer_id, answer=str(answer))

    async def sent_today(self, gateway: str) -> int:
        """Count what a gateway was given on this day before the start."""
        used: int = await self._call(self._sent_today, gateway)
        return used

    def why_not_again(self, offer: Offer) -> str | None:
        if self._is_paused(offer):
            return "paused"
        return self._why_not_again(offer) if self._why_not_again is not None else None

    def why_not_now(self, offer: Offer) -> str | None:
        """Say what is against a claimed offer of which no byte has left yet: its deadline, or what the claim checks."""
        return "deadline" if self.now_ms() >= offer.deadline_ms else self.why_not_again(offer)

    def drop_address(self, offer: Offer) -> None:
        """Forget an address that leads nowhere any more, so that nothing is sent to it again."""
        try:
            self.addresses.drop(offer.user_id, offer.channel)
        except Exception as error:
            log.error("an address that is gone could not be dropped", error=type(error).__name__)

    def settle(self, settled: Settled) -> None:
        self._known.discard(settled.record.offer_id)
        self._settler.settle(settled)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _queue(self, offer: Offer) -> None:
        lane = self._lanes.lane_for(offer)
        lane.queue.push(offer)
        lane.wake()

    def _is_paused(self, offer: Offer) -> bool:
        return bool(self._paused) and (ALL in self._paused or offer.scenario in self._paused)

    def _unpark(self) -> None:
        """Queue again what may go, and what is past its deadline, so that it ends."""
        now_ms = self.now_ms()
        for offer in list(self._parked.values()):
            if now_ms >= offer.deadline_ms:
                del self._parked[offer.offer_id]
                self._drop(offer, DispatchState.EXPIRED, "deadline")
            elif not self._is_paused(offer):
                del self._parked[offer.offer_id]
                self._queue(offer)

    def _drop(self, offer: Offer, state: DispatchState, code: str) -> None:
        record = DispatchRecord(dispatch_id(offer), offer.offer_id, state, self.now_ms(), None, code)
        self.settle(Settled(offer.user_id, "none", record, gives_back(offer, code)))

    async def _fetch(self) -> None:
        """Read from the outbox what memory may lack: there was no room for it, or it was not ours for a moment."""
        if not self._is_behind or len(self._known) > MOST_QUEUED // 2 or self.is_stopping:
            return
        try:
            offers = await self._call(self._ledger.outbox, MOST_QUEUED)
        except (StoreError, OSError) as error:
            log.error("outbox cannot be read", error=type(error).__name__)
            return
        self._is_behind = False
        self.enqueue(offers)

    async def _fall_back(self) -> None:
        """Queue offers whose second channel is due (G5)."""
        if self._due_fallbacks is None or self.is_stopping:
            return
        try:
            self.enqueue(await self._call(self._due_fallbacks, self.now_ms()))
        except (StoreError, OSError) as error:
            log.error("offers for a second channel cannot be read", error=type(error).__name__)

    async def _refill(self) -> None:
        while True:
            await asyncio.sleep(REFILL_S)
            self._unpark()
            for lane in self._lanes:
                await lane.drop_expired()
            self._lanes.move_on()
            await self._fall_back()
            await self._fetch()

    async def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        # A claim is a tenth of a millisecond; the way into a thread and back costs ten times that under load, for
        # each statement gives the interpreter away and waits to get it back.
        if self._executor is None or not self._ledger.would_wait:
            return function(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)
