"""The composition of the stages, and the only place where they meet.

    records -> decode -> consent -> locate -> presence -\
                                           behavior ----+-> candidates -> decide (reserve) -> Effects

One object for live, replay, backtest and simulation. It does no I/O of its own and reads no clock: time is in the
records (T2), the ledger is handed in. Same records, same effects, however they are cut into blocks (T3, T4).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

import numpy as np
import orjson

from engine.behavior import Behavior
from engine.consent_kernel import drop_without_consent
from engine.content.hours import open_intervals
from engine.decide import Decider, Decision, ProfileTable
from engine.decode.decoder import Decoded, Decoder
from engine.decode.users import UserTable
from engine.definitions import Content, PresenceTrigger, UsageTrigger
from engine.hashing_kernel import hash_text
from engine.locate.index import FenceIndex
from engine.model import (
    EVENT,
    HIT,
    Block,
    Candidate,
    Confidence,
    DeadLetter,
    Drop,
    EventType,
    Method,
    Offer,
    RecordKind,
    ReserveAnswer,
    ReserveRequest,
    TransitionKind,
    TransitionReason,
    Trigger,
)
from engine.presence import Presence
from engine.settings import FeedTable, Settings

HOUR_MS = 3_600_000
_HOURS_AHEAD_MS = 28 * 24 * HOUR_MS
_HOURS_BEHIND_MS = 2 * 24 * HOUR_MS
_QUIET_REASONS = frozenset(
    {
        TransitionReason.CLOSED,
        TransitionReason.OPENED,
        TransitionReason.GAP,
        TransitionReason.EXPIRED,
        TransitionReason.REMOVED,
        TransitionReason.RETURNED,
    }
)
"""Transitions that never make an offer by themselves (L8, L9, L10, P7)."""


class Reserver(Protocol):
    """What the pipeline needs of a ledger (docs/contracts.md)."""

    def reserve(self, requests: Sequence[ReserveRequest]) -> list[ReserveAnswer]: ...

    def release(self, offer_id: str) -> None: ...


@dataclass(slots=True)
class ConsentChange:
    """What the claim store must know before the next hand-off (D7)."""

    user_id: str
    purpose: str
    granted: bool | None  # None: void, as if never given
    at_ms: int
    source: str


@dataclass(slots=True)
class Effects:
    """What a block brought about, in log order."""

    now_ms: int
    events: int = 0
    decisions: list[Decision] = field(default_factory=list)
    offers: list[Offer] = field(default_factory=list)
    transitions: list[np.ndarray] = field(default_factory=list)
    dead: list[DeadLetter] = field(default_factory=list)
    drops: np.ndarray = field(default_factory=lambda: np.zeros(len(Drop), np.int64))
    consents: list[ConsentChange] = field(default_factory=list)
    closed_users: list[str] = field(default_factory=list)
    receipts: list[Any] = field(default_factory=list)
    pauses: list[tuple[str, bool]] = field(default_factory=list)
    candidates: int = 0
    types: dict[int, int] = field(default_factory=dict)  # EventType -> events
    alarms: list[Any] = field(default_factory=list)


class Pipeline:
    """Everything between a record and an offer, for one partition.

    ledger   answers reservations; embedded: in memory and deterministic
    id_key   keys the hash of offer ids (D4), 16-64 bytes
    """

    def __init__(self, content: Content, settings: Settings, ledger: Reserver, *, id_key: bytes) -> None:
        self.settings = settings
        self.ledger = ledger
        self.now_ms = 0
        self.feeds = FeedTable(settings.feeds)
        self.users = UserTable()
        self.decoder = Decoder(self.feeds, content.cells, self.users, tenant=settings.tenant)
        self.profiles = ProfileTable(content.policy)
        self.behavior = Behavior((), self.feeds, hash_text)
        self.decider = Decider(content, self.profiles, settings.tenant, id_key, ledger.reserve)
        self._set_content(content)
        self.presence = Presence(
            content.fences, self.index.arrays, self.feeds, self._thresholds, open_intervals=self._hours(0)
        )

    # --- content ----------------------------------------------------------------------------------------------------

    def activate(self, content: Content) -> Effects:
        """Take new content from the next record on (L10); presence keeps the state of unchanged fences."""
        effects = Effects(self.now_ms)
        self._set_content(content)
        self.decoder.set_cells(content.cells)
        self._note(self.decider.activate(content), effects)
        removed = self.presence.activate(
            content.fences, self.index.arrays, self._thresholds, open_intervals=self._hours(self.now_ms)
        )
        return effects

    def _set_content(self, content: Content) -> None:
        self.content = content
        self.index = FenceIndex.build(content.fences, content.cells)
        self._routes, self._thresholds = _route_transitions(content)
        usage = [
            (row, one.trigger) for row, one in enumerate(content.scenarios) if isinstance(one.trigger, UsageTrigger)
        ]
        self._usage_scenario = [row for row, _ in usage]
        self.behavior.activate([trigger for _, trigger in usage])
        # The smallest fence wins where one event fires a scenario for several (P8).
        self._fence_size = self.index.arrays.row["characteristic_m"].tolist()

    def _hours(self, now_ms: int) -> dict[int, np.ndarray]:
        from_ms = now_ms - now_ms % HOUR_MS - _HOURS_BEHIND_MS
        self._hours_end_ms = now_ms + _HOURS_AHEAD_MS - 2 * 24 * HOUR_MS
        return {
            row: open_intervals(fence, from_ms, now_ms + _HOURS_AHEAD_MS)
            for row, fence in enumerate(self.content.fences)
            if fence.opening_hours or fence.valid_from_ms is not None or fence.valid_until_ms is not None
        }

    # --- records ----------------------------------------------------------------------------------------------------

    def process(self, block: Block, load_content: Callable[[bytes], Content] | None = None) -> Effects:
        """Run one block through all stages and return what it brought about.

        load_content  turns the payload of a content record into the content it names
        """
        effects = Effects(self.now_ms)
        for piece in _between_contents(block):
            if len(piece) == 1 and piece.kind[0] == RecordKind.CONTENT:
                self._pass_time(max(self.now_ms, int(piece.append_ms[0])), effects)
                if load_content is not None:
                    start, end = int(piece.start[0]), int(piece.end[0])
                    self.activate(load_content(bytes(piece.data[start:end])))
                continue
            self._process_events(piece, effects)
        effects.now_ms = self.now_ms
        return effects

    def _process_events(self, block: Block, effects: Effects) -> None:
        decoded = self.decoder.decode(block, self.now_ms)
        effects.events += len(decoded.events)
        effects.dead.extend(decoded.dead)
        self._ensure()
        row = 0
        for stop, rare, record in _stops(block, decoded):
            if stop > row:
                self._run(block, decoded, row, stop, effects)
            if rare >= 0:
                self._apply_rare(block, decoded, rare, effects)
            else:
                self._pass_time(max(self.now_ms, int(block.append_ms[record])), effects)
                if block.kind[record] == RecordKind.CONTROL:
                    self._apply_control(block, record, effects)
            row = stop + (rare >= 0)
        if row < len(decoded.events):
            self._run(block, decoded, row, len(decoded.events), effects)
        effects.drops += np.bincount(decoded.events["drop"], minlength=len(Drop))
        for kind, number in enumerate(np.bincount(decoded.events["type"]).tolist()):
            if number:
                effects.types[kind] = effects.types.get(kind, 0) + number

    def _ensure(self) -> None:
        users = self.users.count
        self.profiles.ensure(users)
        self.presence.ensure(users)
        self.behavior.ensure(users)

    def _pass_time(self, now_ms: int, effects: Effects) -> None:
        """Let `now` move on without an event: timers fire, held candidates are released."""
        self.now_ms = now_ms
        self._renew_hours(now_ms)
        transitions = self.presence.advance(_NO_EVENTS, _NO_HIT_START, _NO_HITS, now_ms)
        if len(transitions):
            self._decide(None, _NO_EVENTS, transitions, _NO_ROWS, _NO_ROWS, effects)
        self._release_held(now_ms, effects)

    def _renew_hours(self, now_ms: int) -> None:
        if now_ms > self._hours_end_ms:
            self.presence.set_open_intervals(self._hours(now_ms))

    def _run(self, block: Block, decoded: Decoded, start: int, end: int, effects: Effects) -> None:
        """Take rows start:end, among which nothing changes but time, presence and behavior."""
        events = decoded.events[start:end]
        if events["now_ms"][-1] > self._hours_end_ms:
            # Opening hours are compiled some weeks ahead; a file may leap over them.
            cut = start + int(np.searchsorted(events["now_ms"], self._hours_end_ms, side="right"))
            if cut > start:
                self._run(block, decoded, start, cut, effects)
            self._renew_hours(int(decoded.events["now_ms"][cut]))
            return self._run(block, decoded, cut, end, effects)
        now_ms = int(events["now_ms"][-1])
        drop_without_consent(events, *self._consent_columns())
        hit_start, hits = self.index.locate(events)
        transitions = self.presence.advance(events, hit_start, hits, now_ms)
        rows, triggers = self.behavior.match(events)
        if len(transitions) or len(rows):
            self._decide(block, events, transitions, rows, triggers, effects)
        self.now_ms = now_ms
        self._release_held(now_ms, effects)
        return None

    # --- candidates -------------------------------------------------------------------------------------------------

    def _decide(
        self,
        block: Block | None,
        events: np.ndarray,
        transitions: np.ndarray,
        usage_rows: np.ndarray,
        usage_triggers: np.ndarray,
        effects: Effects,
    ) -> None:
        if len(transitions):
            effects.transitions.append(transitions)
        candidates = list(self._merge(block, events, transitions, usage_rows, usage_triggers))
        if not candidates:
            return
        effects.candidates += len(candidates)
        self._note(self.decider.decide(candidates), effects)

    def _merge(
        self,
        block: Block | None,
        events: np.ndarray,
        transitions: np.ndarray,
        usage_rows: np.ndarray,
        usage_triggers: np.ndarray,
    ) -> Iterator[Candidate]:
        """Yield candidates in log order: by event row, what timers fired before it first."""
        matches = iter(zip(usage_rows.tolist(), usage_triggers.tolist(), strict=True))
        match = next(matches, None)
        for place, row in self._transitions_by_event(transitions):
            while match is not None and match[0] < row:
                yield from self._from_usage(block, events, match)
                match = next(matches, None)
            yield from self._from_transitions(place, block, events)
        while match is not None:
            yield from self._from_usage(block, events, match)
            match = next(matches, None)

    def _consent_columns(self) -> tuple[np.ndarray, np.ndarray, bool, bool]:
        assumed = self.content.policy.assumed_consent
        location, usage = (self.profiles.purpose_column(purpose).array for purpose in ("location", "usage"))
        return location, usage, "location" in assumed, "usage" in assumed

    def _transitions_by_event(self, transitions: np.ndarray) -> Iterator[tuple[list[Any], int]]:
        """Group transitions that one fix or one timer of a user gave, in the order they were given."""
        if not len(transitions):
            return
        names = ("event", "user", "by_timer", "now_ms", "kind", "fence", "threshold_s", "reason", "initial", "gap_ms")
        more = ("crossed_ms", "confirmed_ms", "duration_ms", "confidence", "method", "wide_gap")
        group: list[Any] = []
        key: tuple[int, ...] | None = None
        for row in zip(*(transitions[name].tolist() for name in names + more), strict=True):
            if row[:4] != key:
                if group:
                    yield group, group[0][0]
                group, key = [], row[:4]
            group.append(row)
        yield group, group[0][0]

    def _from_transitions(self, group: list[Any], block: Block | None, events: np.ndarray) -> Iterator[Candidate]:
        """Make one candidate per scenario of what one fix gave; the smallest fence wins, the others are named (P8)."""
        chosen: dict[int, list[Any]] = {}
        for row in group:
            if row[7] in _QUIET_REASONS:
                continue
            for scenario in self._routes.get((row[4], row[5], row[6]), ()):
                chosen.setdefault(scenario, []).append(row)
        if not chosen:
            return
        event, user, by_timer, now_ms = group[0][:4]
        user_id = self.users.id_of(user)
        position, item = -1, -1
        if not by_timer and block is not None:
            position, item = int(block.position[events[event]["record"]]), int(events[event]["item"])
        for scenario in sorted(chosen):
            rows = chosen[scenario]
            if len(rows) > 1:
                rows.sort(key=lambda row: (self._fence_size[row[5]], row[5]))
            trigger = self._presence_trigger(rows[0])
            trigger.also_fences = tuple(self.content.fences[row[5]].id for row in rows[1:])
            yield Candidate(scenario, user, user_id, trigger, now_ms, position, item)

    def _presence_trigger(self, row: Sequence[Any]) -> Trigger:
        kind, fence_row, threshold_s, _, initial, gap_ms = row[4:10]
        crossed_ms, confirmed_ms, duration_ms, confidence, method, wide_gap = row[10:]
        fence = self.content.fences[fence_row]
        name = _KIND_NAMES[kind]
        values: dict[str, Any] = {
            "crossed_at": crossed_ms,
            "confirmed_at": confirmed_ms,
            "confidence": _CONFIDENCE_NAMES[confidence],
            "method": _METHOD_NAMES[method],
            "initial": bool(initial),
        }
        if gap_ms >= 0:
            values["gap_s"] = gap_ms / 1000
            values["wide_gap"] = bool(wide_gap)
        if duration_ms >= 0:
            values["duration_s"] = duration_ms / 1000
        if threshold_s > 0:
            values["threshold_s"] = threshold_s
        key = f"{fence.id}|{name}|{crossed_ms}|{threshold_s if threshold_s > 0 else 0}"
        return Trigger(name, key, confirmed_ms, fence.id, fence.time_zone, (), values)

    def _from_usage(self, block: Block | None, events: np.ndarray, match: tuple[int, int]) -> Iterator[Candidate]:
        row, number = match
        assert block is not None  # usage matches come from events, and events from a block
        event = events[row]
        read = self.decoder.read(block, event)
        if self.behavior.needs_event(number) and not self.behavior.passes(number, read):
            return
        feed = self.feeds.names[event["feed"]]
        identity = read.id if read.id is not None else f"{int(event['id_hash']):016x}"
        values = {name: text for name in ("app", "category", "action") if (text := getattr(read, name)) is not None}
        trigger = Trigger("usage", f"{feed}|{identity}", int(event["at_ms"]), None, None, (), values)
        user = int(event["user"])
        yield Candidate(
            self._usage_scenario[number],
            user,
            self.users.id_of(user),
            trigger,
            int(event["now_ms"]),
            int(block.position[event["record"]]),
            int(event["item"]),
        )

    def _note(self, decisions: Sequence[Decision], effects: Effects) -> None:
        effects.decisions.extend(decisions)
        if self.decider.alarms:
            effects.alarms.extend(self.decider.take_alarms())
        effects.offers.extend(offer for decision in decisions if (offer := decision.offer) is not None)

    def _release_held(self, now_ms: int, effects: Effects) -> None:
        if decisions := self.decider.release_due(now_ms):
            self._note(decisions, effects)

    # --- what is neither ping nor usage -----------------------------------------------------------------------------

    def _apply_rare(self, block: Block, decoded: Decoded, row: int, effects: Effects) -> None:
        """Apply a profile, consent, receipt, ... at its place in the log."""
        event, read = decoded.events[row], decoded.rare[row]
        self._pass_time(int(event["now_ms"]), effects)
        slot, user_id, at_ms = int(event["user"]), read.user, int(event["at_ms"])
        match EventType(int(event["type"])):
            case EventType.PROFILE:
                self.profiles.apply_profile(slot, read, self.now_ms)
            case EventType.CONSENT:
                if self.profiles.apply_consent(slot, read):
                    effects.consents.append(ConsentChange(user_id, read.purpose, read.granted, at_ms, "consent"))
            case EventType.INBOUND_MESSAGE:
                purpose = self.profiles.apply_inbound(slot, read)
                if purpose is not None:
                    effects.consents.append(ConsentChange(user_id, purpose, False, at_ms, "inbound-message"))
            case EventType.USER_CLOSED | EventType.ADDRESS_CHANGED:
                self._note(self.decider.close(slot, self.now_ms), effects)
                self.presence.reset_user(slot)
                self.behavior.reset_user(slot)
                effects.closed_users.append(user_id)
            case EventType.RECEIPT:
                effects.receipts.append(read)
                if read.state in _DEFINITE_FAILURES:
                    self.ledger.release(read.offer_id)

    def _apply_control(self, block: Block, record: int, effects: Effects) -> None:
        control = orjson.loads(bytes(block.data[int(block.start[record]) : int(block.end[record])]))
        self.decider.pause(control["pause"], control["paused"])
        effects.pauses.append((control["pause"], control["paused"]))

    def finish(self) -> list[Decision]:
        """Close what is still open at the end of a recording: runs of equal refusals (D5)."""
        return self.decider.finish()

    def transition_lines(self, transitions: np.ndarray) -> Iterator[bytes]:
        """Yield transitions as the contract's JSON, one line each."""
        tenant = self.settings.tenant
        for row in transitions:
            distance_m, accuracy_m = float(row["distance_m"]), float(row["accuracy_m"])
            yield orjson.dumps(
                {
                    "v": 1,
                    "tenant": tenant,
                    "user": self.users.id_of(int(row["user"])),
                    "fence": self.content.fences[row["fence"]].id,
                    "kind": _KIND_NAMES[row["kind"]],
                    "crossed_at": rfc3339(int(row["crossed_ms"])),
                    "confirmed_at": rfc3339(int(row["confirmed_ms"])),
                    "initial": bool(row["initial"]),
                    "gap_s": int(row["gap_ms"]) / 1000 if row["gap_ms"] >= 0 else None,
                    "threshold_s": int(row["threshold_s"]) if row["threshold_s"] >= 0 else None,
                    "duration_s": int(row["duration_ms"]) / 1000 if row["duration_ms"] >= 0 else None,
                    "reason": TransitionReason(int(row["reason"])).name.lower(),
                    "confidence": _CONFIDENCE_NAMES[row["confidence"]],
                    "method": _METHOD_NAMES[row["method"]],
                    "distance_m": round(distance_m, 2) if math.isfinite(distance_m) else None,
                    "accuracy_m": round(accuracy_m, 2) if math.isfinite(accuracy_m) else None,
                },
                option=orjson.OPT_APPEND_NEWLINE,
            )

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def snapshot(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return the whole state as (arrays, objects) for a checkpoint; the arrays are views, copy before going on."""
        arrays = {
            f"{stage}.{name}": array
            for stage, part in (
                ("users", self.users),
                ("presence", self.presence),
                ("behavior", self.behavior),
                ("profiles", self.profiles),
            )
            for name, array in part.arrays().items()
        }
        objects = {"now_ms": self.now_ms, "profiles": self.profiles.objects(), "decider": self.decider.state()}
        return arrays, objects

    def restore(self, arrays: dict[str, np.ndarray], objects: dict[str, Any]) -> None:
        """Take the state of a snapshot made with the same content."""

        def part(stage: str) -> dict[str, np.ndarray]:
            return {name.partition(".")[2]: array for name, array in arrays.items() if name.startswith(f"{stage}.")}

        self.now_ms = objects["now_ms"]
        self.users = UserTable.from_arrays(part("users"))
        self.decoder.users = self.users
        self.presence.restore(part("presence"))
        self.behavior.restore(part("behavior"))
        self.profiles.restore(part("profiles"), objects["profiles"])
        self.decider.restore(objects["decider"])
        self._ensure()
        if self.now_ms > self._hours_end_ms:
            self.presence.set_open_intervals(self._hours(self.now_ms))


def rfc3339(instant_ms: int) -> str:
    """Write an instant as RFC 3339 in UTC with milliseconds."""
    return datetime.fromtimestamp(instant_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


_KIND_NAMES = {kind: kind.name.lower() for kind in TransitionKind}
_CONFIDENCE_NAMES = {confidence: confidence.name for confidence in Confidence}
_METHOD_NAMES = {method: method.name.lower() for method in Method}
_DEFINITE_FAILURES = frozenset({"rejected", "failed", "expired"})
_NO_EVENTS = np.zeros(0, EVENT)
_NO_HIT_START = np.zeros(1, np.int64)
_NO_HITS = np.zeros(0, HIT)
_NO_ROWS = np.zeros(0, np.int32)


def _route_transitions(
    content: Content,
) -> tuple[dict[tuple[int, int, int], tuple[int, ...]], dict[int, tuple[int, ...]]]:
    """Map (kind, fence row, threshold_s) to scenario rows, and fence rows to their dwell thresholds (P4).

    The threshold is -1 for enter and exit, as in a transition.
    """
    fence_row = {fence.id: row for row, fence in enumerate(content.fences)}
    routes: dict[tuple[int, int, int], list[int]] = {}
    thresholds: dict[int, set[int]] = {}
    for row, scenario in enumerate(content.scenarios):
        trigger = scenario.trigger
        if not isinstance(trigger, PresenceTrigger):
            continue
        kind = TransitionKind[trigger.kind.upper()]
        threshold_s = trigger.threshold_s if kind == TransitionKind.DWELL else -1
        for fence in trigger.fences:
            routes.setdefault((int(kind), fence_row[fence], threshold_s), []).append(row)
            if kind == TransitionKind.DWELL:
                thresholds.setdefault(fence_row[fence], set()).add(threshold_s)
    return (
        {key: tuple(rows) for key, rows in routes.items()},
        {row: tuple(sorted(seconds)) for row, seconds in thresholds.items()},
    )


def _between_contents(block: Block) -> Iterator[Block]:
    """Cut a block so that each content record stands alone: what follows is read with the new content."""
    contents = np.flatnonzero(block.kind == RecordKind.CONTENT).tolist()
    if not contents:
        yield block
        return
    start = 0
    for record in contents:
        if record > start:
            yield _cut(block, start, record)
        yield _cut(block, record, record + 1)
        start = record + 1
    if start < len(block):
        yield _cut(block, start, len(block))


def _cut(block: Block, start: int, end: int) -> Block:
    return Block(
        block.data,
        block.start[start:end],
        block.end[start:end],
        block.position[start:end],
        block.append_ms[start:end],
        block.kind[start:end],
        block.partition,
    )


def _stops(block: Block, decoded: Decoded) -> list[tuple[int, int, int]]:
    """List where the array path must pause: (event row, rare row or -1, block record or -1), in log order."""
    stops = [(row, row, -1) for row in decoded.rare]
    others = np.flatnonzero(block.kind != RecordKind.EVENTS)
    if len(others):
        rows = np.searchsorted(decoded.events["record"], others, side="right")
        stops += [(int(row), -1, int(record)) for row, record in zip(rows, others, strict=True)]
        # At the same row a tick or control record comes first: it was appended before the event of that row.
        stops.sort(key=lambda stop: (stop[0], stop[1] >= 0, stop[2]))
    else:
        stops.sort()
    return stops
