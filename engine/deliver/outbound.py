"""HTTP to a gateway: guarded against being led astray (FAULTS A1), errors told by what they prove (G2).

connection refused, unknown name, forbidden address, TLS not agreed     nothing was sent    GatewayRetryable
timeout or cut after the request began                                  nobody knows        GatewayUnknown
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any

import httpcore
import httpx

from engine.deliver.egress import GuardedBackend, Network
from engine.errors import GatewayRetryable, GatewayUnknown, SettingsError

LONGEST_WAIT_S = 3600.0
MOST_ANSWER_BYTES = 64 << 10


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
        context = ssl.create_default_context()
        transport = httpx.AsyncHTTPTransport(verify=context, trust_env=False)
        # httpx offers no way to give a network backend; its transport only needs a pool, which is public in httpcore.
        transport._pool = httpcore.AsyncConnectionPool(
            ssl_context=context,
            max_connections=window,
            max_keepalive_connections=window,
            keepalive_expiry=4.0,  # below common servers' 5 s: one closed under a request would read as unknown
            network_backend=backend or GuardedBackend(exceptions),
        )
        self._client = httpx.AsyncClient(
            transport=transport, timeout=timeout_s, follow_redirects=False, trust_env=False, max_redirects=0
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
        content: bytes | None = None,
        data: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        auth: tuple[str, str] | None = None,
    ) -> httpx.Response:
        """POST once; raises GatewayRetryable where provably nothing was sent, else GatewayUnknown."""
        try:
            return await self._client.post(
                url, content=content, data=data, headers=headers, auth=auth or httpx.USE_CLIENT_DEFAULT
            )
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise GatewayRetryable(f"{self._name}: no connection ({type(error).__name__})") from None
        except httpx.HTTPError as error:
            raise GatewayUnknown(f"{self._name}: no answer ({type(error).__name__})") from None

    async def close(self) -> None:
        await self._client.aclose()


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
