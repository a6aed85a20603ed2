"""Kannel: one POST to sendsms per message, delivery reports and users' messages by callback.

202  "0: Accepted for delivery", "3: Queued"     taken                        Submitted
503  "Temporal failure"                          documented: not taken        GatewayRetryable
429                                              not taken                    GatewayThrottled
other 4xx                                        refused                      GatewayPermanent
other 5xx, timeout or cut after the request      nobody knows                 GatewayUnknown, never resent

Login, number and text travel as headers and body, not in the URL, so that no access log on the way keeps them.
Kannel signs nothing: its callbacks carry a secret, and may be limited to networks (FAULTS A10).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from urllib.parse import parse_qs, quote, urlencode

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
from engine.deliver.egress import Network, is_from
from engine.deliver.http_exchange import Answer
from engine.deliver.outbound import Outbound, retry_after_s
from engine.deliver.sms import count_segments
from engine.errors import GatewayPermanent, GatewayRetryable, GatewayThrottled, GatewayUnknown, SettingsError
from engine.model import DispatchState, GatewayReceipt

DELIVERED, FAILED, QUEUED, TAKEN, REFUSED = 1, 2, 4, 8, 16
"""Kannel's dlr-mask: what became of a message, and what we want to hear of."""
_STATES = {
    DELIVERED: DispatchState.DELIVERED,
    FAILED: DispatchState.FAILED,
    QUEUED: DispatchState.ACCEPTED,
    TAKEN: DispatchState.ACCEPTED,
    REFUSED: DispatchState.REJECTED,
}
_MASK = DELIVERED | FAILED | TAKEN | REFUSED
_UNTIL_GIVEN_UP_MIN = 1440


class KannelGateway:
    """POST each dispatch to `url`.

    callback_url     where Kannel reaches this service; None: no receipts
    callback_secret  what callbacks must carry as `secret`
    now_ms           wall clock
    """

    standing = Standing()

    def __init__(
        self,
        name: str,
        channel: str,
        out: Outbound,
        url: str,
        login: str,
        password: str,
        *,
        now_ms: Callable[[], int],
        sender: str = "",
        smsc: str = "",
        callback_url: str | None = None,
        callback_secret: str | None = None,
        allow_from: Sequence[Network] = (),
        capabilities: Capabilities | None = None,
    ) -> None:
        if callback_url and not callback_secret:
            raise SettingsError(f"gateways.{name}: callback_url needs callback_secret_file: Kannel signs nothing")
        self.name = name
        self.channel = channel
        self.capabilities = capabilities or Capabilities(sms=True, receipts=bool(callback_url))
        self._headers = {"x-kannel-username": login, "x-kannel-password": password}
        if sender:
            self._headers["x-kannel-from"] = sender
        if smsc:
            self._headers["x-kannel-smsc"] = smsc
        self._callback_url = callback_url.rstrip("/") if callback_url else None
        self._secret = callback_secret or ""
        self._allow_from = tuple(allow_from)
        self._now_ms = now_ms
        self._inbox: Inbox | None = None
        self._out = out
        self._url = self._out.target(url)

    async def start(self, inbox: Inbox) -> None:
        self._inbox = inbox

    async def submit(self, dispatch: Dispatch) -> Submitted:
        headers = self._headers | {
            "content-type": "text/plain; charset=UTF-8",
            "x-kannel-to": dispatch.address,
            "x-kannel-coding": "0" if count_segments(dispatch.text).encoding == "gsm7" else "2",
            "x-kannel-validity": str(self._minutes_left(dispatch.deadline_ms)),
        }
        if self._callback_url:
            headers["x-kannel-dlr-mask"] = str(_MASK)
            headers["x-kannel-dlr-url"] = self._report_url(dispatch.dispatch_id)
        answer = await self._out.post(
            self._url, content=dispatch.text.encode(), headers=headers, why_not_now=dispatch.why_not_now
        )
        return self._judge(answer, dispatch)

    async def close(self, timeout_s: float = 5.0) -> None:
        await self._out.close()

    # --- what Kannel calls ------------------------------------------------------------------------------------------

    async def on_callback(self, callback: Callback) -> Reply:
        """Take a delivery report (`dispatch`, `type`, ...) or a user's message (`from`, `text`, ...)."""
        given = {name: values[0] for name, values in parse_qs(callback.query, keep_blank_values=True).items()}
        self._check(given.get("secret", ""), callback.peer)
        assert self._inbox is not None
        if "dispatch" in given:
            receipt = self._receipt(given)
            if receipt is not None:
                await self._inbox.receipts([receipt])
        elif "from" in given:
            await self._inbox.inbound([self._message(given)])
        # Kannel sends the body of the answer to the user who wrote: an empty one sends nothing.
        return Reply(200, b"")

    def _check(self, secret: str, peer: str) -> None:
        if not self._secret or not hmac.compare_digest(secret.encode(), self._secret.encode()):
            raise CallbackRefused
        if self._allow_from and not is_from(peer, self._allow_from):
            raise CallbackRefused

    def _receipt(self, given: dict[str, str]) -> GatewayReceipt | None:
        state = _STATES.get(int(given["type"])) if given.get("type", "").isdigit() else None
        if state is None:
            return None
        code = given.get("answer", "")[:64]
        return GatewayReceipt(self.name, state, self._at_ms(given), dispatch_id=given["dispatch"], code=code)

    def _message(self, given: dict[str, str]) -> InboundText:
        return InboundText(
            channel=self.channel,
            sender=given["from"],
            text=given.get("text", ""),
            at_ms=self._at_ms(given),
            message_id=given.get("id") or _name_of(given),
            gateway=self.name,
            to=given.get("to", ""),
        )

    def _at_ms(self, given: dict[str, str]) -> int:
        """Read `%T`, seconds, or `%t`, text in UTC; now where there is neither."""
        at = given.get("at", "")
        if at.isdigit() and len(at) <= 12:
            return int(at) * 1000
        try:
            return int(datetime.fromisoformat(at).replace(tzinfo=UTC).timestamp() * 1000)
        except ValueError:
            return self._now_ms()

    # --- what we send -----------------------------------------------------------------------------------------------

    def _report_url(self, dispatch_id: str) -> str:
        """The address Kannel calls with a report; it puts the type for %d, the time for %T, the answer for %A."""
        fixed = urlencode({"secret": self._secret, "dispatch": dispatch_id}, safe="/", quote_via=quote)
        return f"{self._callback_url}/v1/callbacks/{self.name}?{fixed}&type=%d&at=%T&answer=%A"

    def _minutes_left(self, deadline_ms: int) -> int:
        """The validity period in minutes (D6), at least one: what is past its deadline is never submitted."""
        return max(1, min((deadline_ms - self._now_ms()) // 60_000, _UNTIL_GIVEN_UP_MIN))

    def _judge(self, answer: Answer, dispatch: Dispatch) -> Submitted:
        status = answer.status_code
        if answer.is_success:
            return Submitted((dispatch.dispatch_id,))
        if status == 429:
            raise GatewayThrottled(
                f"{self.name}: answered 429", retry_after_s(answer.headers.get("retry-after"), self._now_ms())
            )
        if status == 503:
            raise GatewayRetryable(f"{self.name}: answered 503")
        if status < 500:
            raise GatewayPermanent(f"http_{status}")
        raise GatewayUnknown(f"{self.name}: answered {status}")


def _name_of(given: dict[str, str]) -> str:
    """Name a message that came without a name by a hash: the name is journaled, a number must not be (I2)."""
    told = "/".join((given["from"], given.get("at", ""), given.get("text", "")))
    return hashlib.blake2b(told.encode(), digest_size=16).hexdigest()
