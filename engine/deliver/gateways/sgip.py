"""China Unicom's gateway: SGIP 1.2. We connect to submit, the operator connects to us to report."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog

from engine.clock import monotonic_s as wall_monotonic_s
from engine.deliver.contract import Capabilities, Inbox
from engine.deliver.egress import Network, is_from
from engine.deliver.gateways.sgip_dialect import Account, Counter, SgipDialect, SgipInboundDialect
from engine.deliver.operators.link import Back, Link, Timing
from engine.deliver.operators.session import OperatorGateway, Peer
from engine.errors import SettingsError

log = structlog.get_logger("opportune.deliver")

LOGIN_WITHIN_S = 10.0
IDLE_S = 180.0
"""SGIP has no test of a link, and the operator ends an idle one after a minute: what is silent for longer is dead."""
MOST_CONNECTIONS = 32


@dataclass(frozen=True, slots=True)
class Listening:
    """Where the operator connects to us; port 0: any free one. `allowed`: from where, empty: from anywhere."""

    host: str
    port: int
    login: str
    password: str
    allowed: Sequence[Network] = ()


class SgipGateway(OperatorGateway):
    """Both directions of one account."""

    def __init__(
        self,
        name: str,
        channel: str,
        peer: Peer,
        account: Account,
        listening: Listening,
        capabilities: Capabilities,
        *,
        now_ms: Callable[[], int],
        monotonic_s: Callable[[], float] = wall_monotonic_s,
        **more: Any,
    ) -> None:
        counter = Counter(account.node, now_ms)
        super().__init__(
            name,
            channel,
            peer,
            partial(SgipDialect, account, counter),
            capabilities,
            now_ms=now_ms,
            monotonic_s=monotonic_s,
            **more,
        )
        self.listener = SgipListener(name, listening, self.take, now_ms=now_ms, monotonic_s=monotonic_s)

    async def start(self, inbox: Inbox) -> None:
        await self.listener.start()
        await super().start(inbox)

    async def close(self, timeout_s: float = 5.0) -> None:
        await super().close(timeout_s)
        await self.listener.close()


class SgipListener:
    """Takes the operator's connections: at most 32, from allowed networks, each with a right login within 10 s."""

    def __init__(
        self,
        name: str,
        listening: Listening,
        take: Callable[[Link, list[Back]], Coroutine[Any, Any, None]],
        *,
        now_ms: Callable[[], int],
        monotonic_s: Callable[[], float],
    ) -> None:
        self.port = listening.port
        self.links: set[_Accepted] = set()
        self._name = name
        self._listening = listening
        self._take = take
        self._now_ms = now_ms
        self._monotonic_s = monotonic_s
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen; raises SettingsError where that cannot be."""
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(self._accept, self._listening.host, self._listening.port)
        except OSError as error:
            where = f"{self._listening.host}:{self._listening.port}"
            raise SettingsError(
                f"gateways.{self._name}: cannot listen on {where}: {error.strerror}; choose another listen_port"
            ) from None
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for link in list(self.links):
            link.end()

    def _accept(self) -> Link:
        dialect = SgipInboundDialect(self._listening.login, self._listening.password)
        return _Accepted(self, dialect)

    def make(self) -> dict[str, Any]:
        return {
            "name": f"{self._name}-inbound",
            "timing": Timing(answer_s=30.0, test_after_s=30.0, tests=1),
            "take": self._take,
            "on_room": lambda: None,
            "now_ms": self._now_ms,
            "monotonic_s": self._monotonic_s,
        }

    def may_come(self, address: str) -> bool:
        """Say whether there is room for a connection from this address; strangers make room for it."""
        if self._listening.allowed and not is_from(address, self._listening.allowed):
            return False
        if len(self.links) >= MOST_CONNECTIONS:
            stranger = next((link for link in self.links if not link.is_known), None)
            if stranger is None:
                return False
            self.links.discard(stranger)
            stranger.abort()
        return True


class _Accepted(Link):
    """A connection that the operator opened."""

    def __init__(self, listener: SgipListener, dialect: SgipInboundDialect) -> None:
        super().__init__(dialect=dialect, **listener.make())
        self._listener = listener
        self._inbound = dialect

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        if not self._listener.may_come(str(peer[0]) if peer else "0.0.0.0"):
            log.warning("a connection to our SGIP port was refused", gateway=self.name)
            self.abort()
            return
        self._listener.links.add(self)
        loop = asyncio.get_running_loop()
        loop.call_later(LOGIN_WITHIN_S, self._end_unless_bound)
        loop.call_later(IDLE_S, self._end_if_idle)

    def connection_lost(self, error: Exception | None) -> None:
        self._listener.links.discard(self)
        super().connection_lost(error)

    @property
    def is_known(self) -> bool:
        """Whether it has logged in."""
        return self._inbound.is_bound

    def _end_unless_bound(self) -> None:
        if not self._inbound.is_bound:
            self.abort()

    def _end_if_idle(self) -> None:
        if self.ended.is_set():
            return
        left_s = IDLE_S - self.idle_s
        if left_s <= 0:
            log.warning("a connection to our SGIP port is silent and closed", gateway=self.name)
            self.abort()
        else:
            asyncio.get_running_loop().call_later(left_s, self._end_if_idle)
