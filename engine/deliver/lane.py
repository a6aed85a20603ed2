"""One gateway's lane: its queue, window, rate and breaker, so that a sick gateway slows nobody else (rules G2, G4, D7).

An offer leaves the queue only when it may go at once; only then is it claimed, only after the claim is its address
looked up. What is not claimed stays in the ledger's outbox and survives a crash.
"""

from __future__ import annotations

import asyncio
import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from engine import metrics
from engine.deliver.breaker import Breaker, Bucket, Quota
from engine.deliver.contract import ClaimAnswer, Dispatch, DispatchRecord, Gateway
from engine.deliver.fair_queue import FairQueue
from engine.deliver.settler import Settled
from engine.errors import GatewayGone, GatewayPermanent, GatewayRetryable, GatewayThrottled, GatewayUnknown
from engine.model import CODE_MARK, DispatchState, Offer

if TYPE_CHECKING:
    from engine.deliver.dispatcher import Dispatcher

log = structlog.get_logger("opportune.deliver")

CLAIMS_AT_ONCE = 128
RETRY_BASE_S = 0.5
RETRY_LONGEST_S = 60.0
THROTTLED_S = 0.25
LONG_WAIT_S = 1.0
ENDED = frozenset({"deadline", "no_consent", "user_closed"})
"""Codes of failures after which no other channel may speak (G5, A3)."""
NOT_READY_S = 0.1


@dataclass(order=True, slots=True)
class _Retry:
    due_s: float
    number: int
    offer: Offer
    dispatch: Dispatch
    parts: int
    tries: int


class Lane:
    def __init__(self, owner: Dispatcher, gateway: Gateway) -> None:
        self._owner = owner
        self.gateway = gateway
        self.queue = FairQueue()
        self.in_flight = 0
        self.breaker = Breaker()
        self._bucket = Bucket(gateway.capabilities.messages_per_s)
        self.quota = Quota(gateway.capabilities.daily_quota)
        self._retries: list[_Retry] = []
        self._numbers = 0
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._in_flight_metric = metrics.GATEWAY_IN_FLIGHT.labels(gateway.name)
        self._queue_metric = metrics.GATEWAY_QUEUE.labels(gateway.name)
        self._open_metric = metrics.GATEWAY_BREAKER_OPEN.labels(gateway.name)
        self._seconds_metric = metrics.SUBMIT_SECONDS.labels(gateway.name)
        self._retries_metric = metrics.GATEWAY_RETRIES.labels(gateway.name)
        self._throttled_metric = metrics.GATEWAY_THROTTLED.labels(gateway.name)
        self._ready_metric = metrics.GATEWAY_READY.labels(gateway.name)

    @property
    def is_idle(self) -> bool:
        return not (self.queue or self.in_flight or self._retries)

    @property
    def why_held_back(self) -> str:
        """Say why nothing goes to this gateway now; empty where it does."""
        standing = self.gateway.standing
        if not standing.ready:
            return standing.detail or "not ready"
        if self.breaker.is_open:
            return "circuit breaker open"
        return "daily quota spent" if self.quota.is_spent(self._owner.day()) else ""

    @property
    def can_send(self) -> bool:
        """Whether an offer that comes now may go: a breaker that is due for its probe needs one to send."""
        return (
            self.gateway.standing.ready
            and self.breaker.wait_s(self._owner.monotonic_s()) == 0
            and (self.quota.most is None or not self.quota.is_spent(self._owner.day()))
        )

    def wake(self) -> None:
        self._wake.set()

    async def drop_expired(self) -> None:
        """End what is past its deadline while the gateway is held back; the claim store has the last word."""
        if self.is_idle or not self.why_held_back:
            return
        now_ms = self._owner.now_ms()
        for retry in [one for one in self._retries if now_ms >= one.offer.deadline_ms]:
            self._retries.remove(retry)
            self._settle(retry.offer, DispatchState.EXPIRED, code="deadline")
        heapq.heapify(self._retries)
        late = self.queue.take(lambda offer: now_ms >= offer.deadline_ms)
        for first in range(0, len(late), CLAIMS_AT_ONCE):
            group = late[first : first + CLAIMS_AT_ONCE]
            for offer, answer in zip(group, await self._owner.claim(group), strict=True):
                if answer == ClaimAnswer.UNAVAILABLE:
                    self.queue.push(offer)
                elif answer == ClaimAnswer.CLAIMED:  # the ledger's clock is behind ours; what is claimed must end here
                    self._settle(offer, DispatchState.EXPIRED, code="deadline")
                else:
                    self._owner.not_claimed(offer, answer)

    async def run(self) -> None:
        """Hand over until the owner stops; `finish` then ends what is in flight."""
        while not self._owner.is_stopping:
            self._wake.clear()
            room, wait_s = self._room()
            if room and self._retries and self._retries[0].due_s <= self._owner.monotonic_s():
                self._again(heapq.heappop(self._retries))
            elif room and self.queue:
                await self._hand_over([self.queue.pop() for _ in range(min(room, len(self.queue)))])
            else:
                self._measure()
                await self._sleep(wait_s)

    async def finish(self, timeout_s: float) -> None:
        """Wait for the answers to what was submitted; what has none by then is UNKNOWN.

        What was provably not accepted and waits to be repeated ends here, so that its count goes back.
        """
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=timeout_s)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
        for retry in self._retries:
            self._settle(retry.offer, DispatchState.REJECTED, code="not_accepted")
        self._retries.clear()

    # --- how much may go now ----------------------------------------------------------------------------------------

    def _room(self) -> tuple[int, float]:
        """Return how many submits may start now, and how long to wait if there is nothing to start."""
        t = self._owner.monotonic_s()
        next_retry_s = max(0.0, self._retries[0].due_s - t) if self._retries else LONG_WAIT_S
        if not self.queue and next_retry_s > 0:
            return 0, min(next_retry_s, LONG_WAIT_S)
        if not self._owner.may_claim:
            return 0, 0.1
        if not self.gateway.standing.ready:
            return 0, NOT_READY_S
        breaker_wait_s = self.breaker.wait_s(t)
        if breaker_wait_s > 0:
            return 0, min(breaker_wait_s, LONG_WAIT_S)
        if self.quota.most is not None and self.quota.is_spent(self._owner.day()):
            return 0, LONG_WAIT_S
        tokens = self._bucket.available(t)
        if tokens < 1:
            return 0, self._bucket.wait_s()
        room = min(tokens, self.gateway.capabilities.window - self.in_flight, CLAIMS_AT_ONCE)
        if room < 1:
            return 0, LONG_WAIT_S  # an answer wakes the lane
        return (1, 0.0) if self.breaker.is_open else (room, 0.0)

    async def _sleep(self, wait_s: float) -> None:
        try:
            async with asyncio.timeout(wait_s):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _measure(self) -> None:
        self._in_flight_metric.set(self.in_flight)
        self._queue_metric.set(len(self.queue))
        self._open_metric.set(self.breaker.is_open)
        self._ready_metric.set(self.gateway.standing.ready)

    # --- claim, address, submit -------------------------------------------------------------------------------------

    async def _hand_over(self, offers: list[Offer]) -> None:
        offers = [offer for offer in offers if not self._owner.park_if_paused(offer)]
        if not offers:
            return
        self.breaker.probe()
        answers = await self._owner.claim(offers)
        started = 0
        for offer, answer in zip(offers, answers, strict=True):
            if answer == ClaimAnswer.CLAIMED:
                started += self._start(offer)
            elif answer == ClaimAnswer.UNAVAILABLE:
                self.queue.push(offer)
            else:
                self._owner.not_claimed(offer, answer)
        if not started:
            self.breaker.unused()
        if ClaimAnswer.UNAVAILABLE in answers:
            await asyncio.sleep(self._owner.store_pause_s)

    def _start(self, offer: Offer) -> int:
        """Begin the submit of a claimed offer; return 0 where it has no address, which is a definite failure."""
        try:
            address = self._owner.addresses.lookup(offer.user_id, offer.channel)
        except Exception as error:  # the address book is a store of its own; without it this one is not sent
            log.error("address book cannot answer", error=type(error).__name__)
            address = None
        if address is None:
            self._settle(offer, DispatchState.FAILED, code="no_address")
            return 0
        code = None
        if offer.code is not None:
            code = self._reveal(offer.code)
            if code is None:
                self._settle(offer, DispatchState.FAILED, code="no_code")
                return 0
        capabilities = self.gateway.capabilities
        text = offer.text if code is None else offer.text.replace(CODE_MARK, code)
        if capabilities.sms:
            text = capabilities.finish(text, *self._owner.texts(), is_service=offer.offer_class == "service")
        parts = capabilities.parts(text)
        if capabilities.sms:
            metrics.SMS_SEGMENTS.inc(parts)
        dispatch = Dispatch(
            dispatch_id=dispatch_id(offer),
            offer_id=offer.offer_id,
            address=address,
            text=text,
            title="",
            deadline_ms=offer.deadline_ms,
            data={"scenario": offer.scenario, "benefit": offer.benefit, "code": code},
        )
        self._submit_soon(offer, dispatch, parts, tries=1)
        return 1

    def _reveal(self, ref: str) -> str | None:
        try:
            return self._owner.reveal(ref)
        except Exception as error:  # like the address book: without it this one is not sent
            log.error("the store of codes cannot answer", error=type(error).__name__)
            return None

    def _submit_soon(self, offer: Offer, dispatch: Dispatch, parts: int, tries: int) -> None:
        self._bucket.take(parts)
        self.quota.take(parts)
        self.in_flight += 1
        task = asyncio.create_task(self._submit(offer, dispatch, parts, tries))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _submit(self, offer: Offer, dispatch: Dispatch, parts: int, tries: int) -> None:
        begin_s = self._owner.monotonic_s()
        healthy = True
        try:
            async with asyncio.timeout(self.gateway.capabilities.timeout_s or self._owner.submit_timeout_s):
                submitted = await self.gateway.submit(dispatch)
            self._settle(offer, DispatchState.ACCEPTED, gateway_ids=submitted.gateway_ids)
            metrics.HANDOFF_SECONDS.observe(max(0, self._owner.now_ms() - offer.created_ms) / 1000)
        except GatewayThrottled as error:
            self._bucket.slow_down(self._owner.monotonic_s())
            self._throttled_metric.inc()
            self._retry_or_reject(offer, dispatch, parts, tries - 1, error.retry_after_s or THROTTLED_S)
        except GatewayRetryable as error:
            healthy = False
            self._retry_or_reject(offer, dispatch, parts, tries, error.retry_after_s)
        except GatewayPermanent as error:
            if isinstance(error, GatewayGone):
                self._owner.drop_address(offer)
            self._settle(offer, DispatchState.REJECTED, code=str(error)[:64])
        except GatewayUnknown as error:
            healthy = False
            self._settle(offer, DispatchState.UNKNOWN, gateway_ids=error.gateway_ids, code="no_answer")
        except (TimeoutError, asyncio.CancelledError):
            healthy = False
            self._settle(offer, DispatchState.UNKNOWN, code="no_answer")
        except Exception as error:
            # A fault of the gateway's code: the message may have gone out, so it counts as sent.
            healthy = False
            log.exception("gateway raised what its contract does not allow", gateway=self.gateway.name)
            self._settle(offer, DispatchState.UNKNOWN, code=type(error).__name__)
        finally:
            now_s = self._owner.monotonic_s()
            self._seconds_metric.observe(now_s - begin_s)
            self.breaker.answer(healthy, now_s)
            self.in_flight -= 1
            self._wake.set()

    def _retry_or_reject(
        self, offer: Offer, dispatch: Dispatch, parts: int, tries: int, retry_after_s: float | None
    ) -> None:
        """Plan another submit of the same dispatch, spread by the offer id, or give up for good.

        tries  submits that failed so far; a throttled one is none
        """
        spread = 0.5 + int(offer.offer_id[-4:], 16) / 0x10000
        delay_s = min(RETRY_BASE_S * 2 ** max(0, tries - 1), RETRY_LONGEST_S) * spread
        delay_s = max(delay_s if tries else 0.0, (retry_after_s or 0.0) * (0.5 + spread if not tries else 1.0))
        if tries >= self._owner.most_tries or self._owner.now_ms() + delay_s * 1000 >= offer.deadline_ms:
            self._settle(offer, DispatchState.REJECTED, code="not_accepted")
            return
        self._numbers += 1
        due_s = self._owner.monotonic_s() + delay_s
        heapq.heappush(self._retries, _Retry(due_s, self._numbers, offer, dispatch, parts, tries + 1))

    def _again(self, retry: _Retry) -> None:
        """Submit again what was provably not accepted, unless the world has changed meanwhile."""
        if self._owner.now_ms() >= retry.offer.deadline_ms:
            self._settle(retry.offer, DispatchState.EXPIRED, code="deadline")
            return
        refusal = self._owner.why_not_again(retry.offer)
        if refusal is not None:
            self._settle(retry.offer, DispatchState.FAILED, code=refusal)
            return
        self._retries_metric.inc()
        self.breaker.probe()
        self._submit_soon(retry.offer, retry.dispatch, retry.parts, retry.tries)

    def _settle(
        self, offer: Offer, state: DispatchState, *, gateway_ids: tuple[str, ...] = (), code: str | None = None
    ) -> None:
        record = DispatchRecord(
            dispatch_id(offer),
            offer.offer_id,
            state,
            self._owner.now_ms(),
            gateway_ids[0] if gateway_ids else None,
            code,
            self.gateway.name,
            gateway_ids if self.gateway.capabilities.receipts else (),
        )
        self._owner.settle(Settled(offer.user_id, self.gateway.name, record, gives_back(offer, code)))


def dispatch_id(offer: Offer) -> str:
    """Name one attempt (D4). A repeated submit of a provable refusal is the same attempt."""
    return f"{offer.offer_id}/{offer.channel}/{offer.attempt}"


def gives_back(offer: Offer, code: str | None) -> bool:
    """Say whether a failure gives back what the offer took: not while a second channel may use it, or has (G5)."""
    return offer.attempt == 1 and (offer.fallback_channel is None or code in ENDED)
