"""All lanes of a dispatcher: opened and closed together; which of them an offer takes (rule G4)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import structlog

from engine.deliver.breaker import Quota
from engine.deliver.contract import Capabilities, Dispatch, Gateway, Sessionless, Submitted
from engine.deliver.lane import Lane
from engine.deliver.routing import EVERYTHING, Route, rank
from engine.errors import GatewayPermanent, SettingsError
from engine.model import Offer

if TYPE_CHECKING:
    from engine.deliver.dispatcher import Dispatcher

log = structlog.get_logger("opportune.deliver")

MOST_MOVED = 2_000
"""Offers moved at once from a gateway that is held back; the rest follow a second later."""


class Lanes:
    """One lane a gateway, and one in which offers end that none takes.

    routes        by name of the gateway; without one it takes all offers of its channel
    make_missing  makes the gateway of a channel that none serves, or None: its offers end as `no_gateway`
    """

    def __init__(
        self,
        owner: Dispatcher,
        gateways: Sequence[Gateway],
        routes: Mapping[str, Route],
        make_missing: Callable[[str], Gateway | None],
    ) -> None:
        self._owner = owner
        self._routes = routes
        self._make_missing = make_missing
        self._lanes: dict[str, Lane] = {}
        self._by_channel: dict[str, list[str]] = {}
        self._none = Lane(owner, _NoGateway())
        self._running: list[asyncio.Task[None]] = []
        self._opening: set[asyncio.Task[None]] = set()
        self._is_open = False
        for gateway in gateways:
            self._add(gateway)

    def __iter__(self) -> Iterator[Lane]:
        yield from list(self._lanes.values())
        yield self._none

    def named(self, gateway: str) -> Lane | None:
        return self._lanes.get(gateway)

    def named_or_of(self, name: str) -> list[Gateway]:
        """List the gateway of this name, else those of this channel."""
        names = [name] if name in self._lanes else self._by_channel.get(name, [])
        return [self._lanes[one].gateway for one in names]

    def held_back(self) -> dict[str, str]:
        """Say of each gateway why nothing goes to it now; empty where it does."""
        return {name: lane.why_held_back for name, lane in self._lanes.items()}

    # --- life -------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        self._is_open = True
        for lane in self:
            await self._open(lane)

    async def finish(self, timeout_s: float) -> None:
        """Let every lane end what it has claimed; sessions stay open meanwhile, as answers and receipts may come."""
        for lane in self:
            lane.wake()
        if self._running:
            await asyncio.wait(self._running, timeout=timeout_s)
        await asyncio.gather(*(lane.finish(timeout_s) for lane in self))
        await asyncio.gather(*(lane.gateway.close() for lane in self), return_exceptions=True)

    async def close(self) -> None:
        tasks = [*self._running, *self._opening]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- which one --------------------------------------------------------------------------------------------------

    def lane_for(self, offer: Offer) -> Lane:
        """Return the first of those that take the offer and can send now; where none can, the first."""
        names = self._by_channel.get(offer.channel)
        if names is None:
            return self._missing(offer.channel)
        if len(names) == 1 and names[0] not in self._routes:
            return self._lanes[names[0]]
        ranked = [self._lanes[name] for name in rank(offer, names, self._routes)]
        return next((lane for lane in ranked if lane.can_send), ranked[0] if ranked else self._none)

    def reroute(self, routes: Mapping[str, Route]) -> None:
        """Let other routes hold from now on, for what waits as well: nothing of it is claimed yet."""
        self._routes = routes
        for lane in self:
            for offer in lane.queue.take(_any):
                taken = self.lane_for(offer)
                taken.queue.push(offer)
                taken.wake()

    def move_on(self) -> None:
        """Move what waits for a gateway that is held back to others that take it and can send.

        Nothing of it is claimed yet, so no attempt is begun twice.
        """
        for names in self._by_channel.values():
            ready = [name for name in names if self._lanes[name].can_send]
            if not ready or len(names) == len(ready):
                continue
            takes = [self._routes.get(name, EVERYTHING).takes for name in ready]
            for name in names:
                if name in ready:
                    continue
                moved = self._lanes[name].queue.take(partial(_any_takes, takes), MOST_MOVED)
                for offer in moved:
                    lane = self.lane_for(offer)
                    lane.queue.push(offer)
                    lane.wake()
                if moved:
                    log.info("offers go another way", gateway=name, offers=len(moved))

    def _missing(self, channel: str) -> Lane:
        made = self._make_missing(channel)
        if made is None:
            return self._none
        log.info("a new channel gets a gateway", channel=channel, gateway=made.name)
        lane = self._add(made)
        if self._is_open:
            task = asyncio.get_running_loop().create_task(self._open(lane))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)
        return lane

    def _add(self, gateway: Gateway) -> Lane:
        if gateway.name in self._lanes:
            raise SettingsError(f"two gateways are named {gateway.name}")
        lane = self._lanes[gateway.name] = Lane(self._owner, gateway)
        self._by_channel.setdefault(gateway.channel, []).append(gateway.name)
        return lane

    async def _open(self, lane: Lane) -> None:
        if lane.quota.most is not None:
            lane.quota = Quota(lane.quota.most, self._owner.day(), await self._owner.sent_today(lane.gateway.name))
        await lane.gateway.start(self._owner.returns)
        self._running.append(asyncio.create_task(lane.run()))


def _any_takes(takes: Sequence[Callable[[Offer], bool]], offer: Offer) -> bool:
    return any(one(offer) for one in takes)


def _any(offer: Offer) -> bool:
    return True


class _NoGateway(Sessionless):
    """Where offers end that no gateway takes: a definite failure, said once per offer."""

    name = "none"
    channel = "none"
    capabilities = Capabilities()

    async def submit(self, dispatch: Dispatch) -> Submitted:
        raise GatewayPermanent("no_gateway")

    async def close(self, timeout_s: float = 5.0) -> None:
        return None
