"""Offer ids and arms: keyed hashes that come out the same in every run, replay and retry (rules D3, D4)."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b

_ARM_SPAN = 1 << 64


def offer_id(key: bytes, tenant: str, scenario: str, user: str, trigger_key: str, at_ms: int) -> str:
    """Return 32 hexadecimal digits: 12 of the trigger's milliseconds, 20 of BLAKE2b-80 (docs/contracts.md).

    key  16-64 bytes, the deployment's own
    """
    return offer_id_maker(key, tenant, scenario)(user, trigger_key, at_ms)


def offer_id_maker(key: bytes, tenant: str, scenario: str) -> Callable[[str, str, int], str]:
    """Hash what one scenario's ids have in common once; the function returned takes user, trigger key and instant."""
    start = blake2b(f"{tenant}\0{scenario}\0".encode(), key=key, digest_size=10)

    def make(user: str, trigger_key: str, at_ms: int) -> str:
        digest = start.copy()
        digest.update(f"{user}\0{trigger_key}".encode())
        return f"{at_ms & 0xFFFFFFFFFFFF:012x}{digest.hexdigest()}"

    return make


def jitter_ms(offer: str, most_ms: int) -> int:
    """Spread releases over [0, most_ms] by the offer id alone (rule C6)."""
    return int(offer[12:], 16) % (most_ms + 1)


def arm_maker(salt: str, name: str, percent: float) -> Callable[[str], bool] | None:
    """Return the test whether a user is withheld from `name`; None where nobody is.

    Stable as long as the salt is; arms of different names are independent of each other.
    """
    if percent <= 0:
        return None
    start = blake2b(f"{salt}\0{name}\0".encode(), digest_size=8)
    limit = int(percent / 100 * _ARM_SPAN)

    def is_withheld(user: str) -> bool:
        digest = start.copy()
        digest.update(user.encode())
        return int.from_bytes(digest.digest(), "big") < limit

    return is_withheld
