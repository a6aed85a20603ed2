"""What gateways report back: receipts and users' messages, taken only with a valid signature (FAULTS A10, rule A3).

Signed by the Standard Webhooks convention with the secret of the channel's gateway. A callback without or with a
wrong signature, or one more than five minutes off, changes nothing. The same callback again is answered and does
nothing: here for as long as it could pass the time check, in the engine by the id of the event it becomes (T7).
"""

from __future__ import annotations

import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

import orjson
from standardwebhooks.webhooks import Webhook

from engine.console.intake import Refused
from engine.model import CONTRACT_VERSION

TOLERANCE_MS = 300_000
MOST_REMEMBERED = 200_000
STATES = frozenset({"accepted", "rejected", "delivered", "failed", "expired", "unknown"})


class Directory(Protocol):
    """Who is meant by what a gateway names."""

    async def user_of_offer(self, offer_id: str) -> str | None: ...

    async def user_of_address(self, channel: str, address: str) -> str | None: ...


class Callbacks:
    """Verify callbacks and make events of them. `secrets`: channel -> secret of its gateway."""

    def __init__(self, secrets: Mapping[str, str], directory: Directory) -> None:
        self._signers = {channel: Webhook(secret) for channel, secret in secrets.items()}
        self._directory = directory
        self._seen: OrderedDict[tuple[str, str], tuple[bytes, int]] = OrderedDict()

    async def payload(self, channel: str, headers: Mapping[str, str], body: bytes, now_ms: int) -> bytes | None:
        """Return the event to journal, or None where there is nothing to do; raise Refused for what is not taken."""
        identity = self._verified(channel, headers, body, now_ms)
        digest = hashlib.sha256(body).digest()
        known = self._seen.get((channel, identity))
        if known is not None and known[0] != digest:
            raise Refused(401, "replayed_id", "this webhook-id came before with other content")
        if known is not None:
            return None
        event = await self._event(channel, identity, body, now_ms)
        self._remember((channel, identity), digest, now_ms)
        return None if event is None else orjson.dumps(event)

    def _verified(self, channel: str, headers: Mapping[str, str], body: bytes, now_ms: int) -> str:
        signer = self._signers.get(channel)
        identity, stamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
        given = headers.get("webhook-signature", "").split()
        refused = Refused(401, "bad_signature", "the callback is not signed by this channel's gateway")
        if (
            signer is None
            or not identity
            or len(identity) > 256
            or not (stamp.isascii() and stamp.isdigit())
            or len(stamp) > 12
        ):
            raise refused
        instant_ms = int(stamp) * 1000
        if abs(now_ms - instant_ms) > TOLERANCE_MS:
            raise Refused(401, "bad_timestamp", "the callback's timestamp is more than five minutes off")
        try:
            expected = signer.sign(identity, datetime.fromtimestamp(int(stamp), UTC), body.decode())
        except UnicodeDecodeError:
            raise refused from None
        matches = [hmac.compare_digest(one.encode(), expected.encode()) for one in given[:10]]
        if not any(matches):
            raise refused
        return identity

    async def _event(self, channel: str, identity: str, body: bytes, now_ms: int) -> dict[str, Any] | None:
        try:
            document = orjson.loads(body)
        except orjson.JSONDecodeError:
            raise Refused(400, "bad_json", "the body is not JSON") from None
        data = document.get("data") if isinstance(document, dict) else None
        kind = document.get("type") if isinstance(document, dict) else None
        event = {"v": CONTRACT_VERSION, "id": f"callback/{channel}/{identity}", "at": now_ms}
        if isinstance(data, dict) and kind == "receipt":
            dispatch_id, state = data.get("dispatch_id"), data.get("state")
            if not isinstance(dispatch_id, str) or state not in STATES:
                raise Refused(400, "bad_receipt", "a receipt needs dispatch_id and one of the known states")
            offer_id = dispatch_id.split("/")[0]
            user = await self._directory.user_of_offer(offer_id)
            if user is None:
                return None  # not ours, or forgotten meanwhile: answered, so that it is not sent for ever
            code = str(data.get("code") or "")[:64]
            receipt = {"type": "receipt", "offer_id": offer_id, "dispatch_id": dispatch_id, "state": state}
            return {**event, **receipt, "user": user, "code": code}
        if isinstance(data, dict) and kind == "inbound-message":
            sender, text = data.get("from"), data.get("text")
            if not isinstance(sender, str) or not isinstance(text, str):
                raise Refused(400, "bad_message", "an inbound message needs from and text")
            user = await self._directory.user_of_address(channel, sender)
            if user is None:
                return None
            return {**event, "type": "inbound-message", "user": user, "channel": channel, "text": text[:1000]}
        raise Refused(400, "unknown_callback", 'type is "receipt" or "inbound-message", with an object data')

    def _remember(self, key: tuple[str, str], digest: bytes, now_ms: int) -> None:
        self._seen[key] = digest, now_ms
        while self._seen:
            oldest = next(iter(self._seen))
            if len(self._seen) <= MOST_REMEMBERED and now_ms - self._seen[oldest][1] <= 2 * TOLERANCE_MS:
                break
            del self._seen[oldest]
