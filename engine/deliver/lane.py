"""One gateway's lane: its queue, window, rate and breaker, so that a sick gateway slows nobody else (rules G2, G4, D7).

An offer leaves the queue only when it may go at once; only then is it claimed, only after the claim is its address
looked up. What is not claimed stays in the ledger's outbox and survives a crash.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from engine import metrics
from engine.deliver.breaker import Breaker, Bucket, Quota
from engine.deliver.contract import ClaimAnswer, Dispatch, DispatchRecord, Gateway
from engine.deliver.fair_queue import FairQueue
from engine.deliver.in_flight import InFlight
from engine.deliver.making import dispatch_id, make
from engine.deliver.retries import Retries, Retry, delay_s
from engine.deliver.settler import Settled
from engine.errors import GatewayGone, GatewayPermanent, GatewayRetryable, GatewayThrottled, GatewayUnknown
from engine.model import DispatchState, Offer

if TYPE_CHECKING:
    from engine.deliver.dispatcher import Dispatcher

log = structlog.get_logger("opportune.deliver")

CLAIMS_AT_ONCE = 128
THROTTLED_S = 0.25
LONG_WAIT_S = 1.0
ENDED = frozenset({"deadline", "no_consent", "user_closed"})
"""Codes of failures after which no other channel may speak (G5, A3)."""
NOT_READY_S = 0.1
TOLD_EVERY_S = 60.0


class Lane:
    def __init__(self, owner: Dispatcher, gateway: Gateway) -> None:
        self._owner = owner
        self.gateway = gateway
        self.queue = FairQueue()
        self.in_flight = InFlight()
        self.breaker = Breaker()
        self._bucket = Bucket(gateway.capabilities.messages_per_s)
        self.quota = Quota(gateway.capabilities.daily_quota)
        self._retries = Retries()
        self._silent_until_s = 0.0
        self._wake = asyncio.Event()
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
        for retry in self._retries.take_late(now_ms):
            self._settle(retry.offer, DispatchState.EXPIRED, code="deadline")
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
            if room and self._retries and self._retries.next_s <= self._owner.monotonic_s():
                self._again(self._retries.pop())
            elif room and self.queue:
                await self._hand_over([self.queue.pop() for _ in range(min(room, len(self.queue)))])
            else:
                self._measure()
                await self._sleep(wait_s)

    async def finish(self, timeout_s: float) -> None:
        """Wait for the answers to what was submitted; what has none by then is UNKNOWN.

        What was provably not accepted and waits to be repeated ends here, so that its count goes back.
        """
        await self.in_flight.finish(timeout_s)
        for retry in self._retries.take_all():
            self._settle(retry.offer, DispatchState.REJECTED, code="not_accepted")

    # --- how much may go now ----------------------------------------------------------------------------------------

    def _room(self) -> tuple[int, float]:
        """Return how many submits may start now, and how long to wait if there is nothing to start."""
        t = self._owner.monotonic_s()
        next_retry_s = max(0.0, self._retries.next_s - t) if self._retries else LONG_WAIT_S
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
        room = min(tokens, self.gateway.capabilities.window - len(self.in_flight), CLAIMS_AT_ONCE)
        if room < 1:
            return 0, LONG_WAIT_S  # an answer wakes the lane
        return (1, 0.0) if self.breaker.is_open else (room, 0.0)

    async def _sleep(self, wait_s: float) -> None:
        timer = asyncio.get_running_loop().call_later(wait_s, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()

    def _measure(self) -> None:
        self._in_flight_metric.set(len(self.in_flight))
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
        """Begin the submit of a claimed offer; return 0 where there is nothing to submit, a definite failure."""
        made = make(self._owner, self.gateway, offer)
        if isinstance(made, str):
            self._settle(offer, DispatchState.FAILED, code=made)
            return 0
        self._submit_soon(offer, *made, tries=1)
        return 1

    def _submit_soon(self, offer: Offer, dispatch: Dispatch, parts: int, tries: int) -> None:
        self._bucket.take(parts)
        self.quota.take(parts)
        self.in_flight.start(self._submit(offer, dispatch, parts, tries))

    async def _submit(self, offer: Offer, dispatch: Dispatch, parts: int, tries: int) -> None:
        begin_s = self._owner.monotonic_s()
        healthy = True
        self.in_flight.begins(self.gateway.capabilities.timeout_s or self._owner.submit_timeout_s)
        try:
            submitted = await self.gateway.submit(dispatch)
            self._settle(offer, DispatchState.ACCEPTED, gateway_ids=submitted.gateway_ids)
            metrics.HANDOFF_SECONDS.observe(max(0, self._owner.now_ms() - offer.created_ms) / 1000)
        except GatewayThrottled as error:
            self._bucket.slow_down(self._owner.monotonic_s())
            self._throttled_metric.inc()
            self._retry_or_reject(offer, dispatch, parts, tries - 1, error.retry_after_s or THROTTLED_S)
        except GatewayRetryable as error:
            healthy = False
            self._tell(str(error))
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
            self.in_flight.ends()
            if self.queue or self._retries:
                self._wake.set()

    def _retry_or_reject(
        self, offer: Offer, dispatch: Dispatch, parts: int, tries: int, retry_after_s: float | None
    ) -> None:
        """Plan another submit of the same dispatch, or give up for good.

        tries  submits that failed so far; a throttled one is none
        """
        wait_s = delay_s(offer.offer_id, tries, retry_after_s)
        if tries >= self._owner.most_tries or self._owner.now_ms() + wait_s * 1000 >= offer.deadline_ms:
            self._settle(offer, DispatchState.REJECTED, code="not_accepted")
            return
        self._retries.push(self._owner.monotonic_s() + wait_s, offer, dispatch, parts, tries + 1)

    def _tell(self, why: str) -> None:
        """Say in the log, at most once a minute, why the gateway takes nothing: decisions know only that it did not."""
        now_s = self._owner.monotonic_s()
        if now_s >= self._silent_until_s:
            self._silent_until_s = now_s + TOLD_EVERY_S
            log.warning("a gateway took nothing", gateway=self.gateway.name, why=why)

    def _again(self, retry: Retry) -> None:
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


def gives_back(offer: Offer, code: str | None) -> bool:
    """Say whether a failure gives back what the offer took: not while a second channel may use it, or has (G5)."""
    return offer.attempt == 1 and (offer.fallback_channel is None or code in ENDED)
