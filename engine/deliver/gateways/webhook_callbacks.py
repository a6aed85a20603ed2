"""What the receiver of a webhook reports back: taken only with a valid signature, each once (FAULTS A10, rules G3, A3).

Signed by the Standard Webhooks convention with the secret of the gateway's own submits. A callback without or with a
wrong signature, or one more than five minutes off, changes nothing. The same callback again is answered and does
nothing: here for as long as it could pass the time check, in the engine by the id of the event it becomes (T7).
"""

from __future__ import annotations

import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import orjson
from standardwebhooks.webhooks import Webhook

from engine.deliver.contract import Callback, CallbackRefused, InboundText, Inbox, OfferUse, Reply, UseKind
from engine.model import DispatchState, GatewayReceipt

TOLERANCE_MS = 300_000
MOST_REMEMBERED = 200_000
MOST_AMOUNT_FEN = 10**15
_STATES = {
    state.value: state
    for state in (
        DispatchState.ACCEPTED,
        DispatchState.REJECTED,
        DispatchState.DELIVERED,
        DispatchState.FAILED,
        DispatchState.EXPIRED,
        DispatchState.UNKNOWN,
    )
}


class SignedCallbacks:
    """Verify the callbacks of one gateway and pass on what they say."""

    def __init__(self, gateway: str, channel: str, signer: Webhook, now_ms: Callable[[], int]) -> None:
        self._gateway = gateway
        self._channel = channel
        self._signer = signer
        self._now_ms = now_ms
        self._seen: OrderedDict[str, tuple[bytes, int]] = OrderedDict()

    async def take(self, callback: Callback, inbox: Inbox) -> Reply:
        """Answer 200 once what the callback says is durable; raise CallbackRefused, StoreUnavailable."""
        if callback.method != "POST":
            raise CallbackRefused("method_not_allowed", "callbacks of this gateway are sent with POST", 405)
        now_ms = self._now_ms()
        identity = self._verified(callback, now_ms)
        digest = hashlib.sha256(callback.body).digest()
        known = self._seen.get(identity)
        if known is not None and known[0] != digest:
            raise CallbackRefused("replayed_id", "this webhook-id came before with other content")
        if known is None:
            await self._pass_on(identity, callback.body, now_ms, inbox)
            self._remember(identity, digest, now_ms)
        return Reply(200, b'{"accepted":%d}' % (known is None), "application/json")

    def _verified(self, callback: Callback, now_ms: int) -> str:
        headers = callback.headers
        identity, stamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
        given = headers.get("webhook-signature", "").split()
        if not identity or len(identity) > 256 or not (stamp.isascii() and stamp.isdigit()) or len(stamp) > 12:
            raise CallbackRefused
        if abs(now_ms - int(stamp) * 1000) > TOLERANCE_MS:
            raise CallbackRefused("bad_timestamp", "the callback's timestamp is more than five minutes off")
        try:
            expected = self._signer.sign(identity, datetime.fromtimestamp(int(stamp), UTC), callback.body.decode())
        except UnicodeDecodeError:
            raise CallbackRefused from None
        matches = [hmac.compare_digest(one.encode(), expected.encode()) for one in given[:10]]
        if not any(matches):
            raise CallbackRefused
        return identity

    async def _pass_on(self, identity: str, body: bytes, now_ms: int, inbox: Inbox) -> None:
        try:
            document = orjson.loads(body)
        except orjson.JSONDecodeError:
            raise _bad("bad_json", "the body is not JSON") from None
        told = document if isinstance(document, dict) else {}
        data: dict[str, Any] = told["data"] if isinstance(told.get("data"), dict) else {}
        match told.get("type") if isinstance(told.get("data"), dict) else None:
            case "receipt":
                await inbox.receipts([self._receipt(data, now_ms)])
            case "inbound-message":
                await inbox.inbound([self._message(data, identity, now_ms)])
            case "click" | "redemption" as kind:
                await inbox.used([self._use(UseKind(kind), data, identity, now_ms)])
            case _:
                raise _bad("unknown_callback", "type is receipt, inbound-message, click or redemption; data an object")

    def _receipt(self, data: dict[str, Any], now_ms: int) -> GatewayReceipt:
        dispatch_id, state = data.get("dispatch_id"), data.get("state")
        if not isinstance(dispatch_id, str) or not isinstance(state, str) or state not in _STATES:
            raise _bad("bad_receipt", "a receipt needs dispatch_id and one of the known states")
        code = str(data.get("code") or "")[:64]
        return GatewayReceipt(self._gateway, _STATES[state], now_ms, dispatch_id=dispatch_id, code=code)

    def _message(self, data: dict[str, Any], identity: str, now_ms: int) -> InboundText:
        sender, text, to = data.get("from"), data.get("text"), data.get("to", "")
        if not isinstance(sender, str) or not isinstance(text, str) or not isinstance(to, str):
            raise _bad("bad_message", "an inbound message needs from and text")
        return InboundText(self._channel, sender, text, now_ms, identity, self._gateway, to)

    def _use(self, kind: UseKind, data: dict[str, Any], identity: str, now_ms: int) -> OfferUse:
        named = data.get("offer_id") or data.get("dispatch_id")
        benefit, amount, refund = data.get("benefit"), data.get("amount_fen"), data.get("refund", False)
        is_whole = amount is None or (type(amount) is int and 0 <= amount <= MOST_AMOUNT_FEN)
        if not isinstance(named, str) or not isinstance(benefit, str | None) or not isinstance(refund, bool):
            raise _bad("bad_use", f"a {kind} needs offer_id or dispatch_id; benefit is text, refund true or false")
        if not is_whole:
            raise _bad("bad_use", "amount_fen is a whole number of fen")
        offer_id = named.partition("/")[0]
        return OfferUse(kind, offer_id, now_ms, identity, self._gateway, benefit, amount, refund)

    def _remember(self, identity: str, digest: bytes, now_ms: int) -> None:
        self._seen[identity] = digest, now_ms
        while self._seen:
            oldest = next(iter(self._seen))
            if len(self._seen) <= MOST_REMEMBERED and now_ms - self._seen[oldest][1] <= 2 * TOLERANCE_MS:
                break
            del self._seen[oldest]


def _bad(code: str, message: str) -> CallbackRefused:
    return CallbackRefused(code, message, 400)
