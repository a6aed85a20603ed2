"""Web Push: one encrypted POST per message to the push service that the browser's subscription names.

201, 202, 200                                  taken                        Submitted, by Location where given
404, 410                                       the subscription is gone     GatewayGone: the address is dropped
429                                            not taken                    GatewayThrottled, with Retry-After
503                                            documented: not taken        GatewayRetryable
other 4xx                                      refused                      GatewayPermanent
other 5xx, timeout or cut                      nobody knows                 GatewayUnknown, never resent

The endpoint comes from a user's browser, so it is guarded like any other address that others choose (FAULTS A1).
Encryption by RFC 8291 and the VAPID token by RFC 8292 are pywebpush's and py_vapid's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
from py_vapid import Vapid02, VapidException
from pywebpush import WebPusher, WebPushException

from engine.deliver.contract import Capabilities, Dispatch, Sessionless, Submitted
from engine.deliver.http_exchange import Answer
from engine.deliver.outbound import Outbound, retry_after_s
from engine.errors import (
    GatewayGone,
    GatewayPermanent,
    GatewayRetryable,
    GatewayThrottled,
    GatewayUnknown,
    SettingsError,
)

MOST_BYTES = 3_800
"""Of the plain message: a push service must take 4,096 encrypted."""
_TOKEN_LASTS_S = 12 * 3600
_LONGEST_TTL_S = 2_419_200


class WebPushGateway(Sessionless):
    """POST each dispatch to its subscription's endpoint.

    key      VAPID private key, PEM
    subject  mailto: or https:, whom the push service may write to
    title    of notifications whose offer has none
    """

    def __init__(
        self,
        name: str,
        channel: str,
        out: Outbound,
        key: Path,
        subject: str,
        *,
        now_ms: Callable[[], int],
        title: str = "",
        capabilities: Capabilities | None = None,
    ) -> None:
        self.name = name
        self.channel = channel
        self.capabilities = capabilities or Capabilities()
        self._subject = subject
        self._title = title
        self._now_ms = now_ms
        try:
            self._vapid = Vapid02.from_pem(key.read_bytes())
        except OSError as error:
            raise SettingsError(f"gateways.{name}.key_file {key} cannot be read: {error.strerror}") from None
        except Exception:
            raise SettingsError(f"gateways.{name}.key_file {key} is no VAPID private key in PEM form") from None
        self._out = out
        self._tokens: dict[str, tuple[dict[str, str], int]] = {}  # by origin: headers, valid until

    async def submit(self, dispatch: Dispatch) -> Submitted:
        try:
            subscription = orjson.loads(dispatch.address)
            target = self._out.target(subscription["endpoint"])
            encoded = WebPusher(subscription).encode(self._content(dispatch))
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, SettingsError, WebPushException):
            raise GatewayPermanent("bad_subscription") from None
        left_s = max(0, min((dispatch.deadline_ms - self._now_ms()) // 1000, _LONGEST_TTL_S))
        headers = {
            "content-encoding": "aes128gcm",
            "content-type": "application/octet-stream",
            "ttl": str(left_s),
            "urgency": "normal",
            **self._authorization(str(target)),
        }
        answer = await self._out.post(
            target, content=encoded["body"], headers=headers, why_not_now=dispatch.why_not_now
        )
        return self._judge(answer, dispatch)

    async def close(self, timeout_s: float = 5.0) -> None:
        await self._out.close()

    def _content(self, dispatch: Dispatch) -> bytes:
        content: dict[str, Any] = {
            "title": dispatch.title or self._title,
            "body": dispatch.text,
            "dispatch_id": dispatch.dispatch_id,
            "valid_until_ms": dispatch.deadline_ms,
            **dispatch.data,
        }
        body = orjson.dumps(content)
        if len(body) > MOST_BYTES:
            raise GatewayPermanent("too_long")
        return body

    def _authorization(self, url: str) -> dict[str, str]:
        """Sign for one push service, at most every twelve hours: its origin is part of the token."""
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc}"
        now_s = self._now_ms() // 1000
        headers, until_s = self._tokens.get(origin, ({}, 0))
        if now_s >= until_s - 600:
            until_s = now_s + _TOKEN_LASTS_S
            claims = {"aud": origin, "exp": until_s, "sub": self._subject}
            try:
                headers = {name.lower(): value for name, value in self._vapid.sign(claims).items()}
            except VapidException:
                raise GatewayPermanent("bad_subscription") from None
            if len(self._tokens) > 1000:
                self._tokens.clear()
            self._tokens[origin] = headers, until_s
        return headers

    def _judge(self, answer: Answer, dispatch: Dispatch) -> Submitted:
        status = answer.status_code
        if answer.is_success:
            return Submitted((answer.headers.get("location", dispatch.dispatch_id)[:128],))
        if status in (404, 410):
            raise GatewayGone("subscription_gone")
        if status in (429, 503):
            wait_s = retry_after_s(answer.headers.get("retry-after"), self._now_ms())
            kind = GatewayThrottled if status == 429 else GatewayRetryable
            raise kind(f"{self.name}: answered {status}", wait_s)
        if status < 500:
            raise GatewayPermanent(f"http_{status}")
        raise GatewayUnknown(f"{self.name}: answered {status}")
