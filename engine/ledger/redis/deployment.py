"""What all shards of a deployment have in common, for processes that own none: pauses."""

from __future__ import annotations

from engine.errors import StoreUnavailable
from engine.ledger.redis.link import RedisLink


def must_serve(url: str, tenant: str) -> None:
    """Raise StoreUnavailable where this Redis does not answer, SettingsError where it can never serve."""
    Deployment(url, tenant).close()


class Deployment:
    """Raises StoreUnavailable where Redis does not answer, SettingsError where it can never serve."""

    def __init__(self, url: str, tenant: str, *, patience_s: float = 3.0) -> None:
        self._home = f"{{{tenant}}}"
        self._link = RedisLink(url, patience_s=patience_s, home=self._home)
        try:
            self.ping()
        except StoreUnavailable as error:
            raise StoreUnavailable(
                f"{error}: start it, or name another with OPPORTUNE_CLUSTER__REDIS=redis://host:port/database"
            ) from None

    def ping(self) -> None:
        self._link.command("PING")

    def pause(self, scenario: str, paused: bool) -> None:
        """Let no claim of a scenario pass, of none with "*", or let them pass again (D8)."""
        if paused:
            self._link.command("HSET", f"{self._home}p", scenario, 1)
        else:
            self._link.command("HDEL", f"{self._home}p", scenario)

    def close(self) -> None:
        self._link.close()
