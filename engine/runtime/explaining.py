"""Why somebody got something or did not: what is stored, what became of it, what would happen now (docs/explain.md).

Nothing is changed by asking: the ledger is asked in shadow, and stored rows are read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import orjson

from engine.errors import UnknownScenario
from engine.ledger.embedded import EmbeddedLedger
from engine.model import CODE_MARK
from engine.pipeline import Pipeline
from engine.settings import Settings

DAYS = 7
MOST_DECISIONS = 100
_SCENARIOS_AT_ONCE = 16
"""How many scenarios are judged before the engine may go on: some milliseconds."""


class Explainer:
    """Reads the ledger, and asks the pipeline while `lock` keeps it still."""

    def __init__(
        self, settings: Settings, ledger: EmbeddedLedger, pipeline: Callable[[], Pipeline], lock: threading.Lock
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._pipeline = pipeline
        self._lock = lock

    def user(
        self, user: str, at_ms: int | None = None, scenario: str | None = None, limit: int = MOST_DECISIONS
    ) -> dict[str, Any]:
        """Tell of a user the decisions of the week before `at_ms`; without it also how things stand now.

        scenario  only this one; UnknownScenario where neither the content has it nor a decision that is told
        """
        now_ms = self._pipeline().now_ms
        until_ms = now_ms if at_ms is None else at_ms
        stored = self._ledger.decisions(
            user=user,
            from_ms=until_ms - DAYS * 86_400_000,
            until_ms=until_ms + 1,
            limit=limit if scenario is None else 1 << 20,
        )
        decisions = (orjson.loads(body) for body in stored)
        wanted = [one for one in decisions if scenario is None or one["scenario"] == scenario][:limit]
        if scenario is not None and not wanted:
            known = {one.id for one in self._pipeline().content.scenarios}
            if scenario not in known:
                raise UnknownScenario(scenario, known)
        answer = self._answer(user, now_ms, wanted)
        if at_ms is None:
            answer |= self._as_of_now(user, now_ms, scenario)
        return answer

    def decision(self, decision_id: str) -> dict[str, Any]:
        """Tell of one decision all that is stored, the message if it is an offer, and its scenario as of now."""
        versions = [orjson.loads(body) for body in self._ledger.decision(decision_id)]
        now_ms = self._pipeline().now_ms
        if not versions:
            return self._answer(None, now_ms, [])
        user, scenario = versions[-1]["user"], versions[-1]["scenario"]
        answer = self._answer(user, now_ms, versions[-1:])
        answer["before"] = versions[:-1]
        offer = self._ledger.find_offer(decision_id)
        if offer is not None:
            answer["message"] = {
                "channel": offer.channel,
                "text": offer.text.replace(CODE_MARK, f"[{offer.code}]"),  # the code itself is codes.db's alone
                "benefit": offer.benefit,
                "class": offer.offer_class,
                "created_at": offer.created_ms,
                "deadline": offer.deadline_ms,
            }
        return answer | self._as_of_now(user, now_ms, scenario)

    def _answer(self, user: str | None, now_ms: int, decisions: list[dict[str, Any]]) -> dict[str, Any]:
        content = self._pipeline().content
        for one in decisions:
            one["hand_off"] = self._hand_off(one) if one["outcome"] == "offer" else None
        return {
            "v": 1,
            "user": user,
            "now_ms": now_ms,
            "content_version": content.version,
            "time_zone": content.policy.time_zone,
            "decisions": decisions,
        }

    def _hand_off(self, decision: dict[str, Any]) -> dict[str, Any] | None:
        """Where an offer stands between the ledger and the gateway (G1); None for one that is only recorded."""
        if decision["values"].get("shadow"):
            return None
        steps = self._ledger.dispatches(decision["decision_id"])
        reached = [one for one in steps if one["applied"]]
        channel = decision["values"].get("channel")
        gateway = self._settings.gateways.get(channel or "")
        return {
            "state": reached[-1]["state"] if reached else "queued",
            "code": reached[-1]["code"] if reached else None,
            "channel": channel,
            "gateway": gateway.kind if gateway is not None else "sandbox",
            "steps": [
                {
                    "at": one["at_ms"],
                    "state": one["state"],
                    "code": one["code"],
                    "applied": bool(one["applied"]),
                    "dispatch_id": one["dispatch_id"],
                    "gateway_id": one["gateway_id"],
                }
                for one in steps
            ],
        }

    def _as_of_now(self, user: str, now_ms: int, scenario: str | None) -> dict[str, Any]:
        """What every scenario would do now, who would win, and what is known of the user; nothing of a stranger."""
        pipeline = self._pipeline()
        slot = pipeline.users.slot_of(user, intern=False)
        if slot < 0:
            return {"now": [], "contest": None, "profile": None, "presence": []}
        rows = [row for row, one in enumerate(pipeline.content.scenarios) if scenario is None or one.id == scenario]
        traces: list[Any] = []
        for first in range(0, len(rows), _SCENARIOS_AT_ONCE):
            traces += self._traces(pipeline, slot, user, now_ms, rows[first : first + _SCENARIOS_AT_ONCE])
        contest = self._contest(pipeline, slot, user, now_ms)
        with self._lock:
            visits, known = pipeline.presence.open_visits(slot), pipeline.profiles.about(slot, now_ms)
        return {"now": traces, "contest": contest, "profile": known, "presence": visits}

    def _contest(self, pipeline: Pipeline, slot: int, user: str, now_ms: int) -> Any:
        """Who would win if the triggers of all scenarios came now."""
        version, contenders, first = pipeline.content.version, list[Any](), 0
        while True:
            with self._lock:
                if pipeline.content.version != version:  # rows are of the old one: begin anew
                    version, contenders, first = pipeline.content.version, [], 0
                last = min(first + _SCENARIOS_AT_ONCE, len(pipeline.content.scenarios))
                contenders += pipeline.decider.contenders(slot, user, now_ms, range(first, last))
                if last == len(pipeline.content.scenarios):
                    return msgspec.to_builtins(pipeline.decider.contest(slot, contenders, now_ms))
                first = last

    def _traces(self, pipeline: Pipeline, slot: int, user: str, now_ms: int, rows: Iterable[int]) -> list[Any]:
        with self._lock:
            known = len(pipeline.content.scenarios)  # new content may come between two groups
            traces = pipeline.decider.explain_user(slot, user, now_ms, [row for row in rows if row < known])
        told: list[Any] = msgspec.to_builtins(traces)
        return told
