"""Twilio's Messages API, or whoever offers the same: one form POST per message, signed status callbacks.

201                                              taken                        Submitted, by message SID
429                                              not taken                    GatewayThrottled
503                                              documented: not taken        GatewayRetryable
other 4xx                                        refused                      GatewayPermanent, with Twilio's code
other 5xx, timeout or cut after the request      nobody knows                 GatewayUnknown, never resent
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable, Sequence
from urllib.parse import parse_qsl

import orjson

from engine.deliver.contract import (
    Callback,
    CallbackRefused,
    Capabilities,
    Dispatch,
    InboundText,
    Inbox,
    Reply,
    Standing,
    Submitted,
)
from engine.deliver.http_exchange import Answer
from engine.deliver.outbound import Outbound, retry_after_s
from engine.errors import GatewayPermanent, GatewayRetryable, GatewayThrottled, GatewayUnknown, SettingsError
from engine.model import DispatchState, GatewayReceipt

_STATES = {
    "accepted": DispatchState.ACCEPTED,
    "scheduled": DispatchState.ACCEPTED,
    "queued": DispatchState.ACCEPTED,
    "sending": DispatchState.ACCEPTED,
    "sent": DispatchState.ACCEPTED,
    "delivered": DispatchState.DELIVERED,
    "read": DispatchState.DELIVERED,
    "undelivered": DispatchState.FAILED,
    "failed": DispatchState.FAILED,
    "canceled": DispatchState.REJECTED,
}
_SHORTEST_VALIDITY_S, _LONGEST_VALIDITY_S = 1, 36_000
_EMPTY_TWIML = b'<?xml version="1.0" encoding="UTF-8"?><Response></Response>'


class TwilioGateway:
    """POST each dispatch to the account's messages.

    token         the account's auth token; it also signs callbacks
    sender        number or name; or else `messaging_service`
    callback_url  where Twilio reaches this service, exactly as it will call it; None: no receipts
    """

    standing = Standing()

    def __init__(
        self,
        name: str,
        channel: str,
        out: Outbound,
        account: str,
        token: str,
        *,
        now_ms: Callable[[], int],
        url: str = "https://api.twilio.com",
        sender: str = "",
        messaging_service: str = "",
        callback_url: str | None = None,
        capabilities: Capabilities | None = None,
    ) -> None:
        if bool(sender) == bool(messaging_service):
            raise SettingsError(f"gateways.{name}: give either sender or messaging_service")
        self.name = name
        self.channel = channel
        self.capabilities = capabilities or Capabilities(sms=True, receipts=bool(callback_url))
        self._from = {"From": sender} if sender else {"MessagingServiceSid": messaging_service}
        proof = base64.b64encode(f"{account}:{token}".encode()).decode()
        self._headers = {"authorization": f"Basic {proof}"}
        self._token = token
        self._callback_url = f"{callback_url.rstrip('/')}/v1/callbacks/{name}" if callback_url else None
        self._now_ms = now_ms
        self._inbox: Inbox | None = None
        self._out = out
        self._url = self._out.target(f"{url.rstrip('/')}/2010-04-01/Accounts/{account}/Messages.json")

    async def start(self, inbox: Inbox) -> None:
        self._inbox = inbox

    async def submit(self, dispatch: Dispatch) -> Submitted:
        left_s = (dispatch.deadline_ms - self._now_ms()) // 1000
        form = {
            **self._from,
            "To": dispatch.address,
            "Body": dispatch.text,
            "ValidityPeriod": str(max(_SHORTEST_VALIDITY_S, min(left_s, _LONGEST_VALIDITY_S))),
        }
        if self._callback_url:
            form["StatusCallback"] = self._callback_url
        answer = await self._out.post(self._url, form=form, headers=self._headers, why_not_now=dispatch.why_not_now)
        return self._judge(answer)

    async def close(self, timeout_s: float = 5.0) -> None:
        await self._out.close()

    async def on_callback(self, callback: Callback) -> Reply:
        """Take a status callback or a user's message, both signed with the auth token."""
        try:
            form = parse_qsl(callback.body.decode(), keep_blank_values=True, strict_parsing=bool(callback.body))
        except ValueError:
            raise CallbackRefused from None
        self._check(callback, form)
        given = dict(form)
        sid = given.get("MessageSid") or given.get("SmsSid", "")
        assert self._inbox is not None
        state = _STATES.get(given.get("MessageStatus", ""))
        if state is not None:
            code = given.get("ErrorCode", "")[:64]
            await self._inbox.receipts([GatewayReceipt(self.name, state, self._now_ms(), gateway_id=sid, code=code)])
        elif given.get("SmsStatus") == "received":
            message = InboundText(
                channel=self.channel,
                sender=given.get("From", ""),
                text=given.get("Body", ""),
                at_ms=self._now_ms(),
                message_id=sid,
                gateway=self.name,
                to=given.get("To", ""),
            )
            await self._inbox.inbound([message])
        return Reply(200, _EMPTY_TWIML, "text/xml")

    def _check(self, callback: Callback, form: Sequence[tuple[str, str]]) -> None:
        """Compare the signature: HMAC-SHA1 over the address called and the sorted fields, by Twilio's description."""
        if self._callback_url is None:
            raise CallbackRefused
        called = f"{self._callback_url}?{callback.query}" if callback.query else self._callback_url
        signed = called + "".join(f"{name}{value}" for name, value in sorted(form))
        expected = base64.b64encode(hmac.new(self._token.encode(), signed.encode(), hashlib.sha1).digest()).decode()
        given = callback.headers.get("x-twilio-signature", "")
        if not hmac.compare_digest(given.encode(), expected.encode()):
            raise CallbackRefused

    def _judge(self, answer: Answer) -> Submitted:
        status = answer.status_code
        if answer.is_success:
            sid = _field(answer, "sid")
            if not sid:
                raise GatewayUnknown(f"{self.name}: answered {status} without a message id")
            return Submitted((sid,))
        if status == 429:
            wait_s = retry_after_s(answer.headers.get("retry-after"), self._now_ms())
            raise GatewayThrottled(f"{self.name}: answered 429", wait_s)
        if status == 503:
            raise GatewayRetryable(f"{self.name}: answered 503")
        if status < 500:
            raise GatewayPermanent(f"http_{status}_{_field(answer, 'code')}".rstrip("_"))
        raise GatewayUnknown(f"{self.name}: answered {status}")


def _field(answer: Answer, name: str) -> str:
    try:
        document = orjson.loads(answer.content)
    except orjson.JSONDecodeError:
        return ""
    value = document.get(name) if isinstance(document, dict) else None
    return str(value)[:64] if isinstance(value, str | int) else ""
