"""Where Redis is: a fixed address, or the master that sentinels name at the moment (FAULTS F8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from redis.sentinel import Sentinel

from engine.errors import SettingsError

_SCHEME = "redis+sentinel"
_SENTINEL_PORT = 26379
_ASK_S = 1.0
_sentinel: Any = Sentinel  # redis-py has no types for it


@dataclass(frozen=True, slots=True)
class Address:
    """What OPPORTUNE_CLUSTER__REDIS says; `where` is the same without a password, for messages."""

    where: str
    url: str = ""
    sentinels: tuple[tuple[str, int], ...] = ()
    service: str = ""
    database: str = "0"
    login: str = ""

    def current(self) -> str:
        """Return the address to connect to now; redis.ConnectionError while no sentinel knows a master."""
        if not self.sentinels:
            return self.url
        asked: Any = _sentinel(list(self.sentinels), socket_timeout=_ASK_S, socket_connect_timeout=_ASK_S)
        host, port = asked.discover_master(self.service)
        return f"redis://{self.login}{host}:{port}/{self.database}"


def read_address(url: str) -> Address:
    """Read redis://[:password@]host:port/db, rediss://... or redis+sentinel://[:password@]host:port,.../service[/db].

    Raises SettingsError where it is none of these.
    """
    try:
        parts = urlsplit(url)
        login, at, hosts = parts.netloc.rpartition("@")
        if parts.scheme != _SCHEME:
            return Address(f"{parts.scheme}://{parts.hostname or ''}:{parts.port or 6379}", url)
        service, _, database = parts.path.strip("/").partition("/")
        sentinels = tuple(_host_and_port(one) for one in hosts.split(",") if one)
    except ValueError as error:
        raise SettingsError(f"the redis address is not one: {error}") from None
    if not service or not sentinels:
        raise SettingsError(f"the redis address must be {_SCHEME}://HOST:PORT[,HOST:PORT]/SERVICE[/DB]")
    return Address(f"{_SCHEME}://{hosts}/{service}", "", sentinels, service, database or "0", login + at)


def _host_and_port(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    return (host, int(port)) if colon else (text, _SENTINEL_PORT)
