"""What all shards of a deployment have in common, for processes that own none: pauses, and whose offer one was."""

from __future__ import annotations

from engine.ledger.redis.link import RedisLink
from engine.ledger.redis.packing import decode


class Deployment:
    """Raises StoreUnavailable where Redis does not answer, SettingsError where it can never serve."""

    def __init__(self, url: str, tenant: str, shards: int, *, patience_s: float = 3.0) -> None:
        self._home = f"{{{tenant}}}"
        self._shards = shards
        self._link = RedisLink(url, patience_s=patience_s, home=self._home)
        self.ping()

    def ping(self) -> None:
        self._link.command("PING")

    def pause(self, scenario: str, paused: bool) -> None:
        """Let no claim of a scenario pass, of none with "*", or let them pass again (D8)."""
        if paused:
            self._link.command("HSET", f"{self._home}p", scenario, 1)
        else:
            self._link.command("HDEL", f"{self._home}p", scenario)

    def user_of_offer(self, offer_id: str) -> str | None:
        """Say whom an offer was made to; None where it is unknown. Asks every shard, in one command."""
        keys = [f"{self._home}{shard}:f:{offer_id}" for shard in range(self._shards)]
        for packed in self._link.command("MGET", *keys):
            if packed:
                user: str | bool = decode(packed)[0]
                return user or None if isinstance(user, str) else None
        return None

    def close(self) -> None:
        self._link.close()
