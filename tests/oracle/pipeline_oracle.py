"""The whole way from an event to its outcome, one event at a time: dictionaries and the words of the rules (D1-D5).

Transitions come from the brute-force presence oracle, counting from the ledger of plain lists. It knows what the
benchmark's content uses: presence triggers, equality of usage fields, one tag, marketing consent, cooldown, rolling and
weekly caps, quiet hours up to the hold, arms. It shares no code with the engine but content and model, which are read.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from engine.definitions import Content, HasTag, PresenceTrigger, Scenario, UsageTrigger
from engine.model import Mode, Option, ReserveRequest, Rule, Scope
from tests.oracle.caps_oracle import CapsOracle
from tests.oracle.locate_oracle import FenceShape
from tests.oracle.presence_oracle import PresenceOracle, User
from tests.oracle.visit_oracle import Feed

SILENT = ("closed", "opened", "gap", "expired", "removed", "returned")  # L8-L10, P7: no offer by themselves
WIDE_GAP_S = 3_600  # P2, feeds of gps and wifi
SURENESS = {"HIGH": 1.0, "MEDIUM": 0.8, "LOW": 0.5}  # D2, context
MINUTE_MS = 60_000


@dataclass(frozen=True)
class Ended:
    """One candidate and how it ended (D5)."""

    user: str
    scenario: str
    key: str
    outcome: str
    reason: str


@dataclass
class Asked:
    scenario: Scenario
    user: str
    key: str
    at_ms: int
    now_ms: int
    sureness: float = 1.0
    is_stale: bool = False


@dataclass
class Known:
    """What profile and consent events said of a user."""

    tags: frozenset[str] | None = None
    consents: dict[str, tuple[int, bool]] = field(default_factory=dict)


class StampedPresence(PresenceOracle):
    """The presence oracle, noting beside each transition `now` and whether a timer gave it."""

    def _fire(self, user: User, fence_id: str, due: int, rank: int, threshold: int, now: int) -> None:
        before = len(self.transitions)
        super()._fire(user, fence_id, due, rank, threshold, now)
        for one in self.transitions[before:]:
            one["now"], one["by_timer"] = now, True


class PipelineOracle:
    """Take events in log order with `take`; `ended` holds every candidate's end, `presence.transitions` the rest.

    id_key  of the offer ids (D4)
    """

    def __init__(self, content: Content, feeds: Mapping[str, Feed], *, tenant: str = "default", id_key: bytes) -> None:
        self.content, self.tenant, self.id_key = content, tenant, id_key
        self.scenarios = {one.id: one for one in content.scenarios}
        self.size_m = {fence.id: FenceShape(fence).characteristic_m for fence in content.fences}
        self.cell = {name: row for row, name in enumerate(content.cells.ids)}
        self.awaits: dict[tuple[str, str, int | None], list[Scenario]] = {}
        thresholds: dict[str, set[int]] = {}
        for one in content.scenarios:
            if isinstance(one.trigger, PresenceTrigger):
                threshold = one.trigger.threshold_s if one.trigger.kind == "dwell" else None
                for fence in one.trigger.fences:
                    self.awaits.setdefault((fence, one.trigger.kind, threshold), []).append(one)
                    if threshold is not None:
                        thresholds.setdefault(fence, set()).add(threshold)
        self.presence = StampedPresence(content.fences, feeds, {key: sorted(one) for key, one in thresholds.items()})
        self.known: dict[str, Known] = {}
        self.ledger = CapsOracle()
        self.held: set[tuple[str, str]] = set()
        self.ended: list[Ended] = []
        self.now_ms = -1

    # --- events -----------------------------------------------------------------------------------------------------

    def take(self, event: Mapping[str, Any]) -> None:
        """One event in log order, `now` being the greatest `at` so far."""
        self.now_ms = max(self.now_ms, event["at"])
        before = len(self.presence.transitions)
        if event["type"] == "ping":
            self.presence.take(self._ping(event))
        else:
            self.presence.finish(self.now_ms)
        for one in self.presence.transitions[before:]:
            one.setdefault("now", self.now_ms)
            one.setdefault("by_timer", False)
        self._from_transitions(self.presence.transitions[before:])
        if event["type"] == "usage":
            self._from_usage(event)
        elif event["type"] == "profile":
            self._of(event["user"]).tags = frozenset(event["tags"])
        elif event["type"] == "consent":
            consents = self._of(event["user"]).consents
            if event["at"] >= consents.get(event["purpose"], (-1, False))[0]:
                consents[event["purpose"]] = (event["at"], event["granted"])

    def _of(self, user: str) -> Known:
        return self.known.setdefault(user, Known())

    def _ping(self, event: Mapping[str, Any]) -> dict[str, Any]:
        ping = {key: event[key] for key in ("user", "feed", "id")}
        ping |= {"at_ms": event["at"], "now_ms": self.now_ms, "method": event["method"], "cell": event.get("cell")}
        if ping["cell"] is None:
            place = round(event["lon"] * 1e7), round(event["lat"] * 1e7), event["accuracy_m"]
        else:
            cells, row = self.content.cells, self.cell[ping["cell"]]
            place = int(cells.lon_e7[row]), int(cells.lat_e7[row]), float(cells.radius_m[row])
        return ping | dict(zip(("lon_e7", "lat_e7", "accuracy_m"), place, strict=True))

    # --- candidates -------------------------------------------------------------------------------------------------

    def _from_transitions(self, transitions: list[dict[str, Any]]) -> None:
        groups: dict[tuple[str, int, bool], list[dict[str, Any]]] = {}
        for one in transitions:
            groups.setdefault((one["user"], one["now"], one["by_timer"]), []).append(one)
        for (user, now_ms, _), group in groups.items():
            smallest: dict[str, dict[str, Any]] = {}  # P8: one candidate a scenario, of the smallest fence
            for one in group:
                if one["reason"] in SILENT:
                    continue
                for scenario in self.awaits.get((one["fence"], one["kind"], one["threshold_s"]), ()):
                    other = smallest.get(scenario.id)
                    if other is None or self._rank(one) < self._rank(other):
                        smallest[scenario.id] = one
            self._decide([self._asked(self.scenarios[name], user, now_ms, one) for name, one in smallest.items()])

    def _rank(self, transition: Mapping[str, Any]) -> tuple[float, str]:
        return self.size_m[transition["fence"]], transition["fence"]

    @staticmethod
    def _asked(scenario: Scenario, user: str, now_ms: int, one: Mapping[str, Any]) -> Asked:
        key = f"{one['fence']}|{one['kind']}|{one['crossed_at']}|{one['threshold_s'] or 0}"
        wide = one["gap_s"] is not None and one["gap_s"] > WIDE_GAP_S
        is_stale = one["kind"] == "enter" and (one["initial"] or wide)  # P2
        return Asked(scenario, user, key, one["confirmed_at"], now_ms, SURENESS[one["confidence"]], is_stale)

    def _from_usage(self, event: Mapping[str, Any]) -> None:
        key = f"{event['feed']}|{event['id']}"
        self._decide(
            [
                Asked(one, event["user"], key, event["at"], self.now_ms)
                for one in self.content.scenarios
                if isinstance(one.trigger, UsageTrigger)
                and all(test.op == "==" and event.get(test.field) == test.value for test in one.trigger.tests)
            ]
        )

    # --- outcomes (D1) ----------------------------------------------------------------------------------------------

    def _decide(self, asked: list[Asked]) -> None:
        """Candidates of one user and instant: gates, arbitration, reservation in that order."""
        rest = []
        for one in asked:
            refused = self._gate(one)
            if refused is None:
                rest.append(one)
            else:
                self._end(one, *refused)
        if not rest:
            return
        rest.sort(key=lambda one: (-self._score(one), one.at_ms, one.scenario.id))
        request = ReserveRequest(rest[0].user, rest[0].user, rest[0].now_ms, tuple(map(self._option, rest)))
        (answer,) = self.ledger.reserve([request])
        for number, one in enumerate(rest):
            if answer.granted < 0 or number < answer.granted:
                self._end(one, "refused", answer.refusals[number])
            elif number > answer.granted:
                self._end(one, "lost", "outscored")
            elif answer.duplicate:
                self._end(one, "refused", "duplicate")
            elif request.options[number].withheld:
                self._end(one, "withheld", "holdout")
            else:
                self._end(one, "offer", "granted")

    def _end(self, one: Asked, outcome: str, reason: str) -> None:
        self.ended.append(Ended(one.user, one.scenario.id, one.key, outcome, reason))

    def _gate(self, one: Asked) -> tuple[str, str] | None:
        scenario, known = one.scenario, self._of(one.user)
        assert scenario.mode is Mode.LIVE
        if one.now_ms - one.at_ms > scenario.max_event_age_ms:
            return "refused", "too_old"
        if one.is_stale:
            return "refused", "stale_presence"
        if isinstance(scenario.audience, HasTag):
            if known.tags is None:
                return "refused", "no_profile"
            if scenario.audience.tag not in known.tags:
                return "refused", "audience"
        (channel,) = scenario.offer.channels
        said = known.consents.get(f"marketing.{channel}")
        if said is None:
            return "refused", "no_consent"
        if not said[1]:
            return "refused", "opted_out"
        since_ms = one.now_ms - scenario.reentry.cooldown_ms
        if any(
            grant.subject == one.user and grant.option.scenario == scenario.id and grant.at_ms > since_ms
            for grant in self.ledger.grants
        ):
            return "refused", "reentry"
        quiet = scenario.quiet_hours or self.content.policy.quiet_hours
        local = self._local(one.now_ms)
        minute = local.hour * 60 + local.minute
        if minute >= quiet.start_minute or minute < quiet.end_minute:  # the night passes midnight
            if isinstance(scenario.trigger, PresenceTrigger):
                return "refused", "quiet_hours"
            if (one.user, scenario.id) in self.held:
                return "lost", "outscored"
            self.held.add((one.user, scenario.id))
            return "held", "quiet_hours"
        return None

    @staticmethod
    def _score(one: Asked) -> float:
        return one.scenario.priority * 1.0 * one.sureness * one.scenario.offer.value

    def _option(self, one: Asked) -> Option:
        scenario, offer = one.scenario, one.scenario.offer
        rules = [Rule(Scope.SCENARIO, one.now_ms - scenario.reentry.cooldown_ms, 1, "reentry", True)]
        caps = self.content.policy.caps + scenario.limits.caps
        for cap in sorted(caps, key=lambda cap: cap.window != "rolling"):
            since_ms = one.now_ms - cap.span_ms if cap.window == "rolling" else self._week_start(one.now_ms) - 1
            rules.append(Rule(cap.scope, since_ms, cap.most, f"cap:{cap.scope.name.lower()}"))
        withheld = self._is_withheld(one.user, "universal", self.content.policy.universal_holdout_percent)
        withheld = withheld or self._is_withheld(one.user, f"scenario/{scenario.id}", scenario.holdout_percent)
        return Option(
            self.offer_id(one), scenario.id, offer.channels[0], offer.benefit_class, offer.partner, tuple(rules),
            True, withheld, False,
        )  # fmt: skip

    def offer_id(self, one: Asked) -> str:
        """D4: the instant, and a keyed hash of tenant, scenario, user and trigger key."""
        said = "\0".join((self.tenant, one.scenario.id, one.user, one.key)).encode()
        return f"{one.at_ms:012x}" + hashlib.blake2b(said, key=self.id_key, digest_size=10).hexdigest()

    def _is_withheld(self, user: str, arm: str, percent: float) -> bool:
        said = f"{self.content.policy.holdout_salt}\0{arm}\0{user}".encode()
        return int.from_bytes(hashlib.blake2b(said, digest_size=8).digest(), "big") < percent / 100 * 2**64

    def _local(self, now_ms: int) -> datetime:
        return datetime.fromtimestamp(now_ms / 1000, ZoneInfo(self.content.policy.time_zone))

    def _week_start(self, now_ms: int) -> int:
        local = self._local(now_ms)
        monday = (local - timedelta(days=local.weekday())).replace(hour=0, minute=0, second=0, microsecond=0)
        return round(monday.timestamp() * 1000)

    def counted(self) -> Counter[tuple[str, ...]]:
        """What ended how: refusals by user, scenario and reason, all else by its trigger too."""
        return Counter(
            (one.user, one.scenario, one.outcome, one.reason, "" if one.outcome == "refused" else one.key)
            for one in self.ended
        )
