"""Reading ledger.db beside whoever writes it: what reports and the audit ask. Opened read-only; nothing is changed."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from engine.errors import StoreUnavailable
from engine.ledger.database import store_error
from engine.ledger.redemptions import Redemption, read_redemptions

_DAY_MS = 86_400_000


class Granted(NamedTuple):
    """One decision that gave a user an offer, or withheld one to measure what offers do."""

    offer_id: str
    user: str
    scenario: str
    withheld: bool
    at_ms: int
    content_version: str


class Sent(NamedTuple):
    """One offer as it was queued, and the states its dispatches reached."""

    offer_id: str
    user: str
    channel: str
    benefit: str
    province: str | None
    code: str | None  # pool#number
    created_ms: int
    states: frozenset[str]


class LedgerReader:
    """Reads one ledger file. Raises StoreUnavailable where there is none or it cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            raise StoreUnavailable(f"there is no ledger at {path}; name the state folder of a service by --state")
        try:
            self._connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10.0)
        except sqlite3.Error as error:
            raise store_error(path, error) from error

    def close(self) -> None:
        self._connection.close()

    def rows(self, query: str, *values: object) -> Iterator[tuple[object, ...]]:
        """Give the rows of a query; errors as StoreUnavailable or StoreCorrupt."""
        try:
            yield from self._connection.execute(query, values)
        except sqlite3.Error as error:
            raise store_error(self.path, error) from error

    def granted(self, from_ms: int, until_ms: int) -> list[Granted]:
        """List offers granted and withheld with an instant in [from_ms, until_ms), by instant and id.

        What a scenario in shadow would have offered, and a tag that was set without an offer, are none.
        """
        found: dict[str, Granted] = {}
        # A batch is as old as its last record: a day more on both sides is more than any batch spans.
        bodies = self.rows(
            "SELECT body FROM decisions WHERE now_ms >= ? AND now_ms < ? ORDER BY position",
            from_ms - _DAY_MS,
            until_ms + _DAY_MS,
        )
        for (body,) in bodies:
            assert isinstance(body, bytes)
            for one in orjson.loads(body):
                if one["outcome"] in ("offer", "withheld") and from_ms <= one["at"] < until_ms and _is_offer(one):
                    found[one["decision_id"]] = Granted(
                        one["decision_id"],
                        one["user"],
                        one["scenario"],
                        one["outcome"] == "withheld",
                        one["at"],
                        one["content_version"],
                    )
        return sorted(found.values(), key=lambda one: (one.at_ms, one.offer_id))

    def sent(self, offer_ids: set[str] | None = None) -> dict[str, Sent]:
        """Return queued offers by id, those asked for or all."""
        states: dict[bytes, set[str]] = {}
        for key, state in self.rows("SELECT offer_id, state FROM dispatches WHERE applied"):
            assert isinstance(key, bytes)
            states.setdefault(key, set()).add(str(state))
        out = {}
        for key, body in self.rows("SELECT offer_id, body FROM offers"):
            assert isinstance(key, bytes)
            assert isinstance(body, bytes)
            offer_id = key.hex()
            if offer_ids is not None and offer_id not in offer_ids:
                continue
            one = orjson.loads(body)
            out[offer_id] = Sent(
                offer_id,
                one["user_id"],
                one["channel"],
                one["benefit"],
                one.get("province"),
                one.get("code"),
                one["created_ms"],
                frozenset(states.get(key, ())),
            )
        return out

    def received(self, from_ms: int, until_ms: int) -> list[tuple[str, int]]:
        """List user and instant of every message delivered in [from_ms, until_ms), by the instant of its receipt."""
        query = (
            "SELECT user, min(at_ms) FROM dispatches JOIN offers USING (offer_id) "
            "WHERE applied AND state = 'delivered' AND at_ms >= ? AND at_ms < ? GROUP BY offer_id"
        )
        return [(str(user), int(str(at_ms))) for user, at_ms in self.rows(query, from_ms, until_ms)]

    def redemptions(self, from_ms: int, until_ms: int, *, refunds: bool = False) -> list[Redemption]:
        """List redemptions, or refunds, with an instant in [from_ms, until_ms), in order of time."""
        try:
            table = "refunds" if refunds else "redemptions"
            return list(read_redemptions(self._connection.cursor(), from_ms, until_ms, table))
        except sqlite3.Error as error:
            raise store_error(self.path, error) from error

    def versions(self) -> list[str]:
        """List the content versions that stored decisions were made with."""
        version = "json_extract(value, '$.content_version')"
        query = f"SELECT DISTINCT {version} FROM decisions, json_each(CAST(body AS TEXT))"
        return sorted(str(version) for (version,) in self.rows(query))


def _is_offer(decision: dict[str, Any]) -> bool:
    values = decision.get("values")
    return not values or ("channel" in values and not values.get("shadow"))
