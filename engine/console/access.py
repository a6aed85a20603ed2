"""Who may call: an optional key, compared in constant time; without one only loopback is served."""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress

from engine.errors import SettingsError


class Access:
    """Check the key of a request. The key may come as Bearer token or as either half of Basic credentials.

    Phones (OwnTracks) and Segment's clients can only send Basic: the former as password, the latter as user name.
    """

    def __init__(self, api_key: str | None) -> None:
        self._key = api_key.encode() if api_key else None

    @property
    def asks_for_key(self) -> bool:
        return self._key is not None

    def allows(self, authorization: bytes | None) -> bool:
        if self._key is None:
            return True
        if authorization is None:
            return False
        scheme, _, value = authorization.partition(b" ")
        if scheme.lower() == b"bearer":
            return hmac.compare_digest(value.strip(), self._key)
        user, password = basic_credentials(authorization) or (b"", b"")
        # Both are compared always, so that the time tells nothing.
        return hmac.compare_digest(user, self._key) | hmac.compare_digest(password, self._key)


def basic_credentials(authorization: bytes | None) -> tuple[bytes, bytes] | None:
    """Return (user, password) of a Basic header, or None."""
    if authorization is None or authorization[:6].lower() != b"basic ":
        return None
    try:
        user, colon, password = base64.b64decode(authorization[6:].strip(), validate=True).partition(b":")
    except (binascii.Error, ValueError):
        return None
    return (user, password) if colon else None


def check_binding(host: str, api_key: str | None) -> None:
    """Refuse to listen beyond this machine without a key; raise SettingsError."""
    if api_key:
        return
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = host == "localhost"
    if not is_loopback:
        raise SettingsError(
            f"host {host} is reachable from other machines, and no api_key is set; "
            "set OPPORTUNE_API_KEY, or listen on 127.0.0.1"
        )
