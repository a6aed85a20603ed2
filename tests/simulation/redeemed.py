"""Redemptions and refunds, each counted once however often it is told (T7)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from tests.simulation.story import Story

Row = tuple[bool, str, int, Any, Any, Any]


class Redeemed:
    """What the log says was used and refunded, by feed and id, or by content where there is no id."""

    def __init__(self) -> None:
        self._rows: dict[tuple[Any, ...], Row] = {}

    def hear(self, event: dict[str, Any]) -> None:
        is_refund = bool(event.get("refund"))
        facts = (event["user"], event["at"], event.get("offer_id"), event.get("benefit"), event.get("amount_fen"))
        identity = (event["id"],) if "id" in event else facts
        self._rows.setdefault((event.get("feed", "default"), is_refund, *identity), (is_refund, *facts))

    def forget(self, user: str) -> None:
        self._rows = {key: row for key, row in self._rows.items() if row[1] != user}

    def differences(self, story: Story) -> Iterator[str]:
        """Compare with what the ledger holds at the end."""
        right, found = Counter(self._rows.values()), Counter(story.redemptions)
        for row in right - found:
            yield f"redemption {row} is not counted"
        for row, times in (found - right).items():
            yield f"redemption {row} is counted {times} times too often"
