"""HTTP to a gateway: guarded against being led astray (FAULTS A1), errors told by what they prove (G2).

connection refused, unknown name, forbidden address, TLS not agreed     nothing was sent    GatewayRetryable
timeout or cut after the request began                                  nobody knows        GatewayUnknown
a header that HTTP cannot carry                                         nothing was sent    GatewayPermanent
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from urllib.parse import urlencode

import h11
import httpcore
import httpx

from engine.clock import monotonic_s
from engine.deliver.egress import ForbiddenAddress, GuardedBackend, Network
from engine.deliver.http_exchange import Answer, Connections, Refused
from engine.errors import GatewayPermanent, GatewayRetryable, GatewayUnknown, SettingsError

LONGEST_WAIT_S = 3600.0
WAITED_S = 0.3
"""After so long without a byte sent, what the claim found may not hold any more (F26: a second in all)."""
_BROKEN = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, h11.ProtocolError, OSError)


class Outbound:
    """Requests of one gateway: no redirect is followed, no proxy read from the environment.

    exceptions  networks that may be connected to although they are not public
    """

    def __init__(
        self,
        name: str,
        *,
        window: int = 32,
        timeout_s: float = 10.0,
        allow_http: bool = False,
        exceptions: Sequence[Network] = (),
        backend: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        self._name = name
        self._allow_http = allow_http
        self._timeout_s = timeout_s
        context = ssl.create_default_context()
        context.set_alpn_protocols(["http/1.1"])
        self._connections = Connections(
            backend or GuardedBackend(exceptions),
            context,
            most_idle=window,
            idle_s=4.0,  # below common servers' 5 s: one closed under a request would read as unknown
            monotonic_s=monotonic_s,
        )

    def target(self, url: str) -> httpx.URL:
        """Check an address that the configuration names; raise SettingsError for what may not be called."""
        try:
            target = httpx.URL(url)
        except httpx.InvalidURL:
            raise SettingsError(f"gateway {self._name}: the URL cannot be read") from None
        if target.scheme != "https" and not (self._allow_http and target.scheme == "http"):
            raise SettingsError(f"gateway {self._name}: the URL must begin with https://, or set allow_http")
        if target.userinfo:
            raise SettingsError(f"gateway {self._name}: the URL must hold no user and password")
        return target

    async def post(
        self,
        url: httpx.URL,
        *,
        content: bytes = b"",
        form: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        why_not_now: Callable[[], str | None] = lambda: None,
    ) -> Answer:
        """POST once; raises GatewayRetryable where provably nothing was sent, else GatewayUnknown.

        why_not_now  asked once connected, if that took its time (contract.Dispatch)
        """
        sent = dict(headers or {})
        if form is not None:
            content = urlencode(form).encode("ascii")
            sent["content-type"] = "application/x-www-form-urlencoded"
        begin_s = monotonic_s()
        try:
            async with asyncio.timeout(self._timeout_s):
                connection = await self._connections.take(url, self._timeout_s)
        except ForbiddenAddress:
            raise GatewayRetryable(
                f"{self._name}: no connection (its address is not public, and allow_networks does not name its network)"
            ) from None
        except (httpcore.ConnectError, httpcore.ConnectTimeout, TimeoutError) as error:
            raise GatewayRetryable(f"{self._name}: no connection ({type(error).__name__})") from None
        try:
            if monotonic_s() - begin_s > WAITED_S and (why := why_not_now()) is not None:
                raise GatewayPermanent(why)
            async with asyncio.timeout(self._timeout_s):
                return await connection.post(url, sent, content)
        except Refused:
            raise GatewayPermanent("bad_request") from None
        except (*_BROKEN, TimeoutError) as error:
            raise GatewayUnknown(f"{self._name}: no answer ({type(error).__name__})") from None
        finally:
            await self._connections.give_back(connection)

    async def close(self) -> None:
        await self._connections.close()


def retry_after_s(value: str | None, now_ms: int) -> float | None:
    """Read Retry-After: seconds or a date; at most an hour, None where it makes no sense."""
    if value is None:
        return None
    if value.strip().isdigit():
        return min(float(value), LONGEST_WAIT_S)
    try:
        instant = parsedate_to_datetime(value)
    except ValueError:
        return None
    return min(max(0.0, instant.timestamp() - now_ms / 1000), LONGEST_WAIT_S)
