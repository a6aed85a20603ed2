"""The webhook gateway: one signed POST per offer (Standard Webhooks), repeated only where nothing was accepted (G2).

connection refused, unknown name, TLS not agreed       nothing was sent          GatewayRetryable
429                                                     documented: not taken    GatewayThrottled, with Retry-After
503                                                     documented: not taken    GatewayRetryable, with Retry-After
2xx                                                     taken                    Submitted
3xx, other 4xx                                          refused                  GatewayPermanent
other 5xx, timeout or cut after the request began       nobody knows             GatewayUnknown, never resent
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import httpcore
import orjson
from standardwebhooks.webhooks import Webhook

from engine.deliver.contract import Callback, CallbackRefused, Capabilities, Dispatch, Inbox, Reply, Standing, Submitted
from engine.deliver.egress import Network
from engine.deliver.gateways.webhook_callbacks import SignedCallbacks
from engine.deliver.http_exchange import Answer
from engine.deliver.outbound import Outbound, retry_after_s
from engine.errors import GatewayPermanent, GatewayRetryable, GatewayThrottled, GatewayUnknown, SettingsError

NOT_TAKEN = frozenset({429, 503})


class WebhookGateway:
    """POST each dispatch to `url`; take back what is signed with the same secret.

    secret      of Standard Webhooks, `whsec_` and base64
    now_ms      wall clock for the signature and for Retry-After dates
    exceptions  networks that may be connected to although they are not public
    """

    standing = Standing()

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
        self.name = name or f"webhook-{channel}"
        self.channel = channel
        self.capabilities = capabilities or Capabilities(window=32, receipts=True, sms=channel == "sms")
        self._out = Outbound(
            self.name,
            window=self.capabilities.window,
            timeout_s=timeout_s,
            allow_http=allow_http,
            exceptions=exceptions,
            backend=backend,
        )
        self._url = self._out.target(url)
        self._now_ms = now_ms
        try:
            self._signer = Webhook(secret)
        except Exception:
            raise SettingsError(f"gateway {channel}: the secret is not of the form whsec_BASE64") from None
        self._callbacks = SignedCallbacks(self.name, channel, self._signer, now_ms)
        self._inbox: Inbox | None = None

    async def start(self, inbox: Inbox) -> None:
        self._inbox = inbox

    async def on_callback(self, callback: Callback) -> Reply:
        """Take a signed receipt, message, click or redemption."""
        if self._inbox is None:
            raise CallbackRefused
        return await self._callbacks.take(callback, self._inbox)

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
        answer = await self._out.post(self._url, content=body, headers=headers, why_not_now=dispatch.why_not_now)
        return self._judge(answer, dispatch)

    async def close(self, timeout_s: float = 5.0) -> None:
        await self._out.close()

    def _judge(self, answer: Answer, dispatch: Dispatch) -> Submitted:
        status = answer.status_code
        if answer.is_success:
            return Submitted((_named(answer) or dispatch.dispatch_id,))
        if status in NOT_TAKEN:
            wait_s = retry_after_s(answer.headers.get("retry-after"), self._now_ms())
            kind = GatewayThrottled if status == 429 else GatewayRetryable
            raise kind(f"{self.name}: answered {status}", wait_s)
        if status < 500:
            raise GatewayPermanent(f"http_{status}")
        raise GatewayUnknown(f"{self.name}: answered {status}")


def _named(answer: Answer) -> str | None:
    """Return the receiver's own id for the message, where its answer names one."""
    try:
        document = orjson.loads(answer.content)
    except orjson.JSONDecodeError:
        return None
    named = document.get("id") if isinstance(document, dict) else None
    return str(named)[:128] if isinstance(named, str | int) else None
