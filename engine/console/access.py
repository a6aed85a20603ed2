"""Who may call: an optional key, compared in constant time; without one only loopback is served."""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
from collections.abc import Mapping

from engine.errors import SettingsError

SHORTEST_KEY = 16


class Access:
    """Check the key of a request. The key may come as Bearer token or as either half of Basic credentials.

    Phones (OwnTracks) and Segment's clients can only send Basic: the former as password, the latter as user name.

    api_key   a key without a name; None: there is none
    api_keys  further keys by name; with no key at all everybody may call
    """

    def __init__(self, api_key: str | None, api_keys: Mapping[str, str] | None = None) -> None:
        self._keys = [("", api_key.encode())] if api_key else []
        self._keys += [(name, key.encode()) for name, key in sorted((api_keys or {}).items())]

    @property
    def asks_for_key(self) -> bool:
        return bool(self._keys)

    def allows(self, authorization: bytes | None) -> bool:
        return not self._keys or self.name_of(authorization) is not None

    def name_of(self, authorization: bytes | None) -> str | None:
        """Return the name of the key a request shows, "" for the one without a name; None where it shows none."""
        if authorization is None:
            return None
        scheme, _, value = authorization.partition(b" ")
        bearer = (value.strip(), b"") if scheme.lower() == b"bearer" else None
        shown = bearer or basic_credentials(authorization) or (b"", b"")
        found = None
        for name, key in self._keys:
            # Every key and both halves are compared always, so that the time tells nothing.
            if hmac.compare_digest(shown[0], key) | hmac.compare_digest(shown[1], key):
                found = name
        return found


def basic_credentials(authorization: bytes | None) -> tuple[bytes, bytes] | None:
    """Return (user, password) of a Basic header, or None."""
    if authorization is None or authorization[:6].lower() != b"basic ":
        return None
    try:
        user, colon, password = base64.b64decode(authorization[6:].strip(), validate=True).partition(b":")
    except (binascii.Error, ValueError):
        return None
    return (user, password) if colon else None


def check_binding(host: str, api_key: str | None, api_keys: Mapping[str, str] | None = None) -> None:
    """Refuse to listen beyond this machine without a key; raise SettingsError. Every key named must be one."""
    named = {f"api_keys.{name}": key for name, key in (api_keys or {}).items()}
    for name, key in (({"api_key": api_key} if api_key else {}) | named).items():
        if len(key) < SHORTEST_KEY:
            raise SettingsError(
                f"{name} has fewer than {SHORTEST_KEY} characters; whoever guesses it may call. "
                "openssl rand -hex 16 makes a good one"
            )
        if not key.isascii() or not key.isprintable() or key != key.strip():
            raise SettingsError(f"{name} may hold letters, digits and signs of ASCII, without space around them")
    if api_key or api_keys:
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
