"""The webhook gateway: one signed POST per offer (Standard Webhooks), repeated only where nothing was accepted (G2).

connection refused, unknown name, TLS not agreed       nothing was sent          GatewayRetryable
429                                                     documented: not taken    GatewayThrottled, with Retry-After
503                                                     documented: not taken    GatewayRetryable, with Retry-After
2xx                                                     taken                    Submitted
3xx, other 4xx                                          refused                  GatewayPermanent
other 5xx, timeout or cut after the request began       nobody knows             GatewayUnknown, never resent
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpcore
import httpx
import orjson
from standardwebhooks.webhooks import Webhook

from engine.deliver.contract import Capabilities, Dispatch, Sessionless, Submitted
from engine.deliver.egress import GuardedBackend, Network
from engine.errors import GatewayPermanent, GatewayRetryable, GatewayThrottled, GatewayUnknown, SettingsError

NOT_TAKEN = frozenset({429, 503})
_LONGEST_WAIT_S = 3600.0
_ANSWER_BYTES = 64 << 10


class WebhookGateway(Sessionless):
    """POST each dispatch to `url`.

    secret      of Standard Webhooks, `whsec_` and base64
    now_ms      wall clock for the signature and for Retry-After dates
    exceptions  networks that may be connected to although they are not public
    """

    def __init__(
        self,
        channel: str,
        url: str,
        secret: str,
        *,
        now_ms: Callable[[], int],
        name: str | None = None,
        capabilities: Capabilities | None = None,
        timeout_s: float = 10.0,
        allow_http: bool = False,
        exceptions: Sequence[Network] = (),
        backend: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        try:
            target = httpx.URL(url)
        except httpx.InvalidURL:
            raise SettingsError(f"gateway {channel}: the URL cannot be read") from None
        if target.scheme != "https" and not (allow_http and target.scheme == "http"):
            raise SettingsError(f"gateway {channel}: the URL must begin with https://, or set allow_http")
        if target.userinfo:
            raise SettingsError(f"gateway {channel}: the URL must hold no user and password")
        self.name = name or f"webhook-{channel}"
        self.channel = channel
        self.capabilities = capabilities or Capabilities(window=32, receipts=True, sms=channel == "sms")
        self._url = target
        self._now_ms = now_ms
        try:
            self._signer = Webhook(secret)
        except Exception:
            raise SettingsError(f"gateway {channel}: the secret is not of the form whsec_BASE64") from None
        self._client = _client(self.capabilities.window, timeout_s, backend or GuardedBackend(exceptions))

    async def submit(self, dispatch: Dispatch) -> Submitted:
        instant = datetime.fromtimestamp(self._now_ms() / 1000, UTC)
        body = orjson.dumps(
            {
                "type": "offer.dispatched",
                "timestamp": instant.isoformat(timespec="milliseconds"),
                "data": {
                    "dispatch_id": dispatch.dispatch_id,
                    "offer_id": dispatch.offer_id,
                    "channel": self.channel,
                    "to": dispatch.address,
                    "title": dispatch.title,
                    "text": dispatch.text,
                    "valid_until": datetime.fromtimestamp(dispatch.deadline_ms / 1000, UTC).isoformat(),
                    **dispatch.data,
                },
            }
        )
        headers = {
            "content-type": "application/json",
            # The same id with every repetition, so that the receiver can take it once.
            "webhook-id": dispatch.dispatch_id,
            "webhook-timestamp": str(int(instant.timestamp())),
            "webhook-signature": self._signer.sign(dispatch.dispatch_id, instant, body.decode()),
        }
        try:
            answer = await self._client.post(self._url, content=body, headers=headers)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise GatewayRetryable(f"{self.name}: no connection ({type(error).__name__})") from None
        except httpx.HTTPError as error:
            raise GatewayUnknown(f"{self.name}: no answer ({type(error).__name__})") from None
        return self._judge(answer, dispatch)

    async def close(self, timeout_s: float = 5.0) -> None:
        await self._client.aclose()

    def _judge(self, answer: httpx.Response, dispatch: Dispatch) -> Submitted:
        status = answer.status_code
        if answer.is_success:
            return Submitted((_named(answer) or dispatch.dispatch_id,))
        if status in NOT_TAKEN:
            wait_s = _retry_after_s(answer.headers.get("retry-after"), self._now_ms())
            kind = GatewayThrottled if status == 429 else GatewayRetryable
            raise kind(f"{self.name}: answered {status}", wait_s)
        if status < 500:
            raise GatewayPermanent(f"http_{status}")
        raise GatewayUnknown(f"{self.name}: answered {status}")


def _client(window: int, timeout_s: float, backend: httpcore.AsyncNetworkBackend) -> httpx.AsyncClient:
    """Build a client that follows no redirect, reads no proxy from the environment and connects through `backend`."""
    context = ssl.create_default_context()
    transport = httpx.AsyncHTTPTransport(verify=context, trust_env=False)
    # httpx offers no way to give a network backend; its transport only needs a pool, which is public in httpcore.
    transport._pool = httpcore.AsyncConnectionPool(
        ssl_context=context,
        max_connections=window,
        max_keepalive_connections=window,
        keepalive_expiry=4.0,  # below common servers' 5 s: a connection closed under a request would read as unknown
        network_backend=backend,
    )
    return httpx.AsyncClient(
        transport=transport, timeout=timeout_s, follow_redirects=False, trust_env=False, max_redirects=0
    )


def _named(answer: httpx.Response) -> str | None:
    """Return the receiver's own id for the message, where its answer names one."""
    if len(answer.content) > _ANSWER_BYTES:
        return None
    try:
        document = orjson.loads(answer.content)
    except orjson.JSONDecodeError:
        return None
    named = document.get("id") if isinstance(document, dict) else None
    return str(named)[:128] if isinstance(named, str | int) else None


def _retry_after_s(value: str | None, now_ms: int) -> float | None:
    """Read Retry-After: seconds or a date; at most an hour, None where it makes no sense."""
    if value is None:
        return None
    if value.strip().isdigit():
        return min(float(value), _LONGEST_WAIT_S)
    try:
        instant = parsedate_to_datetime(value)
    except ValueError:
        return None
    return min(max(0.0, instant.timestamp() - now_ms / 1000), _LONGEST_WAIT_S)
