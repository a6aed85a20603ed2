"""The signed token of a claim link: which offer, until when, and a signature nobody else can make.

36 characters, because a link in a text message costs by the character: 16 bytes of offer id, 3 of minutes from the
offer's trigger to the end, 8 of keyed BLAKE2b over both. The key is derived from the deployment's, so a token comes
out the same in every run, replay and retry.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b

TOKEN_LENGTH = 36
LONGEST_MS = 29 * 86_400_000
"""A link works at most so long: offers are forgotten after 30 days."""

_MINUTE_MS = 60_000
_ID_BYTES, _MINUTE_BYTES, _MAC_BYTES = 16, 3, 8


@dataclass(frozen=True, slots=True)
class ClaimToken:
    """What a genuine token says."""

    offer_id: str
    until_ms: int


def token_maker(id_key: bytes) -> Callable[[str, int | None], str]:
    """Return what signs tokens; it takes the offer id and when the benefit ends, None where it never does."""
    key = _claim_key(id_key)

    def make(offer_id: str, until_ms: int | None) -> str:
        raw = bytes.fromhex(offer_id)
        trigger_ms = int.from_bytes(raw[:6], "big")
        until_ms = trigger_ms + LONGEST_MS if until_ms is None else min(until_ms, trigger_ms + LONGEST_MS)
        minutes = max(0, (until_ms - trigger_ms) // _MINUTE_MS)
        body = raw + minutes.to_bytes(_MINUTE_BYTES, "big")
        return urlsafe_b64encode(body + _mac(key, body)).decode()

    return make


def token_reader(id_key: bytes) -> Callable[[str], ClaimToken | None]:
    """Return what reads tokens: None for what this deployment has not signed, compared in constant time."""
    key = _claim_key(id_key)

    def read(token: str) -> ClaimToken | None:
        if len(token) != TOKEN_LENGTH or not token.isascii():
            return None
        try:
            raw = urlsafe_b64decode(token)
        except (Error, ValueError):
            return None
        body, mac = raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
        if not hmac.compare_digest(mac, _mac(key, body)) or urlsafe_b64encode(raw).decode() != token:
            return None
        minutes = int.from_bytes(body[_ID_BYTES:], "big")
        return ClaimToken(body[:_ID_BYTES].hex(), int.from_bytes(body[:6], "big") + minutes * _MINUTE_MS)

    return read


def _claim_key(id_key: bytes) -> bytes:
    return blake2b(key=id_key, digest_size=32, person=b"opportune claim").digest()


def _mac(key: bytes, body: bytes) -> bytes:
    return blake2b(body, key=key, digest_size=_MAC_BYTES).digest()
