"""The composition of the stages, and the only place where they meet.

    records -> decode -> consent -> locate -> presence -\
                                           behavior ----+-> candidates -> decide (reserve) -> Effects

One object for live, replay, backtest and simulation. It does no I/O of its own and reads no clock: time is in the
records (T2), the ledger is handed in. Same records, same effects, however they are cut into blocks (T3, T4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np
import orjson

from engine.batch import NO_EVENTS, NO_RECORDS, Batch
from engine.behavior import Behavior, compile_plan
from engine.candidates import CandidateMaker, usage_trigger
from engine.changes import Change, content_changes
from engine.consent_kernel import drop_without_consent
from engine.content.hours import open_intervals
from engine.cuts import CONTENT, CONTROL, between_contents, stops_of
from engine.decide import Decider, Decision, ProfileTable, Propensity
from engine.decide.profiles import PERSON_SOURCE
from engine.decode.decoder import Decoded, Decoder
from engine.decode.events import (
    AddressChanged,
    Consent,
    InboundMessage,
    Profile,
    Receipt,
    Redemption,
    UserClosed,
)
from engine.decode.users import UserTable
from engine.definitions import Content
from engine.effects import ConsentChange, Effects, Redeemed
from engine.errors import OpportuneError
from engine.fired import FiredMaker, Scene
from engine.hashing_kernel import hash_text
from engine.locate.index import FenceIndex
from engine.model import (
    HIT,
    Block,
    Candidate,
    Drop,
    ReserveAnswer,
    ReserveRequest,
    Trigger,
)
from engine.presence import Presence
from engine.reorder import FOREVER_MS, GoneOn, Reorder
from engine.settings import FeedTable, Settings
from engine.transitions import transition_lines

HOUR_MS = 3_600_000
SWEPT_SLOTS = 1 << 18
"""Looked at in one go: some milliseconds."""
_HOURS_AHEAD_MS = 28 * 24 * HOUR_MS
_HOURS_BEHIND_MS = 2 * 24 * HOUR_MS


class Reserver(Protocol):
    """What the pipeline needs of a ledger (docs/contracts.md)."""

    def reserve(self, requests: Sequence[ReserveRequest]) -> list[ReserveAnswer]: ...

    def release(self, offer_id: str) -> None: ...

    def delivered(self, offer_id: str) -> None: ...

    def lease_codes(self, pool: str, first: int, count: int, epoch: int) -> None: ...

    def recall_codes(self, pool: str, epoch: int) -> None: ...

    def accept_return(self, pool: str, spans: Sequence[Sequence[int]]) -> None: ...

    def spend_codes(self, pool: str, spans: Sequence[Sequence[int]]) -> None: ...


class Pipeline:
    """Everything between a record and an offer, for one partition.

    ledger   answers reservations; embedded: in memory and deterministic
    id_key   keys the hash of offer ids (D4), 16-64 bytes
    propensity  a model of who uses what, instead of the profiles' numbers (D2); may not depend on anything else (T3)
    """

    def __init__(
        self,
        content: Content,
        settings: Settings,
        ledger: Reserver,
        *,
        id_key: bytes,
        propensity: Propensity | None = None,
    ) -> None:
        self.settings = settings
        self.ledger = ledger
        self.on_decoded: Callable[[Block, Decoded], None] | None = None
        """Told what a block held, for whoever watches the feeds; changes nothing."""
        self.now_ms = 0
        self._swept_hour = 0
        self._state_ttl_ms = int(settings.state_ttl_days * 24 * HOUR_MS)
        self.feeds = FeedTable(settings.feeds)
        self.users = UserTable()
        self.decoder = Decoder(self.feeds, content.cells, self.users, tenant=settings.tenant)
        self.profiles = ProfileTable(content.policy)
        self.reorder = Reorder(self.feeds) if self.feeds.array["reorder_ms"].any() else None
        self.behavior = Behavior((), self.feeds, hash_text)
        self.decider = Decider(content, self.profiles, settings.tenant, id_key, ledger.reserve, propensity=propensity)
        self._set_content(content)
        self.presence = Presence(
            content.fences, self.index.arrays, self.feeds, self._maker.thresholds, open_intervals=self._hours(0)
        )

    # --- content ----------------------------------------------------------------------------------------------------

    def activate(self, content: Content, effects: Effects) -> None:
        """Take new content from the next record on (L10); presence keeps the state of unchanged fences."""
        old = self.content
        self._set_content(content)
        self.decoder.set_cells(content.cells)
        cell_rows = _new_rows(old.cells.ids, content.cells.ids)
        if self.reorder is not None:
            self.reorder.renumber_cells(cell_rows)
        removed = self.presence.activate(
            content.fences,
            self.index.arrays,
            self._maker.thresholds,
            open_intervals=self._hours(self.now_ms),
            cell_rows=cell_rows,
            now_ms=self.now_ms,
        )
        if len(removed):
            effects.add_transitions(removed, old.fences)
        self._note(self.decider.activate(content), effects)

    def _set_content(self, content: Content) -> None:
        self.content = content
        self.index = FenceIndex.build(content.fences, content.cells)
        # A tiling covers the land: going from tile to tile visits nothing.
        self._is_place = np.array([not fence.tiling for fence in content.fences], np.bool_)
        size_m = self.index.arrays.row["characteristic_m"]
        self._maker = CandidateMaker(content, size_m)
        plan = compile_plan(content, self.feeds, hash_text)
        self._fired = FiredMaker(content, plan, size_m)
        self.behavior.activate(self._maker.usage_triggers(), plan)
        self.behavior.set_apps(content.apps)

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
        for piece in self._between_sweeps(block, effects):
            if len(piece) == 1 and piece.kind[0] == CONTENT:
                self._pass_time(max(self.now_ms, int(piece.append_ms[0])), effects)
                if load_content is not None:
                    payload, old = bytes(piece.data[int(piece.start[0]) : int(piece.end[0])]), self.content
                    self.activate(load_content(payload), effects)
                    who = str(orjson.loads(payload).get("by", "files"))
                    position = int(piece.position[0])
                    effects.changes += content_changes(old, self.content, position, self.now_ms, who)
                continue
            self._process_events(piece, effects)
        return self._told(effects)

    def _told(self, effects: Effects) -> Effects:
        effects.patterns = self.behavior.take_counts()
        if self.reorder is not None:
            effects.hurried = self.reorder.take_early()
        effects.now_ms = self.now_ms
        return effects

    def _between_sweeps(self, block: Block, effects: Effects) -> Iterator[Block]:
        """Cut a block at content records and where an hour of the log begins: there, users long silent are forgotten.

        The hour is of the log, so the same records evict the same users at the same place, however they are cut (T4).
        Records without an append time tell no hour before they are decoded: a file of such forgets nobody.
        """
        if len(block) and int(block.append_ms.max()) // HOUR_MS <= self._swept_hour:
            yield from between_contents(block)
            return
        hour = np.maximum.accumulate(np.maximum(block.append_ms // HOUR_MS, self._swept_hour))
        begins = np.flatnonzero(np.diff(hour, prepend=self._swept_hour)).tolist()
        start = 0
        for begin in begins:
            if begin > start:
                yield from between_contents(block.part(start, begin))
            self._evict(int(hour[begin]), effects)
            start = begin
        yield from between_contents(block.part(start, len(block)))

    def _evict(self, hour: int, effects: Effects) -> None:
        """Forget users of one stretch of slots who were silent for `state_ttl_days` and of whom nothing binds.

        A profile, a consent, an open visit, a waiting candidate, a reservation that re-entry asks for: each keeps the
        slot. What caps count stays in the ledger, by id. The next hour looks at the next stretch.
        """
        self._swept_hour = hour
        count = self.users.count
        first = hour % (count // SWEPT_SLOTS + 1) * SWEPT_SLOTS
        last = min(first + SWEPT_SLOTS, count)
        before_ms = hour * HOUR_MS - self._state_ttl_ms
        idle = self.presence.idle(first, last, before_ms)
        idle &= self.behavior.idle(first, last, before_ms, hour * HOUR_MS)
        if not idle.any():
            return
        slots = first + np.flatnonzero(idle & self.profiles.blank(first, last))
        slots = slots[self.users.are_used(slots)]
        if bound := self.decider.bound_slots():
            slots = slots[~np.isin(slots, np.fromiter(bound, np.int64))]
        if self.reorder is not None:
            slots = slots[~self.reorder.are_held(slots)]
        if not len(slots):
            return
        effects.note_evicted(slots, self.users)
        self.presence.reset_users(slots)
        self.behavior.reset_users(slots)
        self.profiles.activity.reset(slots)
        self.users.evict(slots)

    def _process_events(self, block: Block, effects: Effects) -> None:
        decoded = self.decoder.decode(block, self.now_ms)
        effects.events += len(decoded.events)
        if effects.first_ms < 0 and len(decoded.events):
            effects.first_ms = int(decoded.events["now_ms"][0])
        effects.dead.extend(decoded.dead)
        if self.on_decoded is not None:
            self.on_decoded(block, decoded)
        self._ensure()
        row = 0
        for stop, rare, record in stops_of(block, decoded):
            if stop > row:
                self._take(block, decoded.events[row:stop], effects)
            if rare >= 0:
                self._apply_rare(block, decoded, rare, effects)
            else:
                self._pass_time(max(self.now_ms, int(block.append_ms[record])), effects)
                if block.kind[record] == CONTROL:
                    self._apply_control(block, record, effects)
            row = stop + (rare >= 0)
        if row < len(decoded.events):
            self._take(block, decoded.events[row:], effects)
        if self.reorder is None:
            effects.drops += np.bincount(decoded.events["drop"], minlength=len(Drop))
        for kind, number in enumerate(np.bincount(decoded.events["type"]).tolist()):
            if number:
                effects.types[kind] = effects.types.get(kind, 0) + number

    def _ensure(self) -> None:
        users = self.users.count
        if self.reorder is not None:
            self.reorder.ensure(users)
        self.profiles.ensure(users)
        self.presence.ensure(users)
        self.behavior.ensure(users)

    def _pass_time(self, now_ms: int, effects: Effects) -> None:
        """Let `now` move on without an event: what is held goes on, timers fire, held candidates are released."""
        if self.reorder is not None:
            self._go_on(NO_RECORDS, self.reorder.pass_time(now_ms), effects)
        self.now_ms = now_ms
        self._renew_hours(now_ms)
        looks_back = self._fired.looks_back
        transitions = self.presence.advance(NO_EVENTS, _NO_HIT_START, _NO_HITS, now_ms, keeps_past=looks_back)
        fired = self.behavior.advance(NO_EVENTS, _NO_MATCHES, transitions, now_ms, _read_nothing)
        if len(transitions) or len(fired):
            nothing = Batch(self.decoder, NO_RECORDS, NO_EVENTS)
            self._decide(nothing, transitions, _NO_MATCHES, fired, {}, effects)
        self._release_held(now_ms, effects)

    def _renew_hours(self, now_ms: int) -> None:
        if now_ms > self._hours_end_ms:
            self.presence.set_open_intervals(self._hours(now_ms))

    def _take(self, block: Block, events: np.ndarray, effects: Effects) -> None:
        """Take rows among which nothing changes but time, presence and behavior: to the stages, or to wait (T5)."""
        if self.reorder is None:
            self._run(Batch(self.decoder, block, events), effects)
            return
        now_ms = int(events["now_ms"][-1])
        # Nothing is held of whom nothing may be looked at; when it goes on, consent is asked again.
        drop_without_consent(events, *self._consent_columns())
        self._go_on(block, self.reorder.take(block, events), effects)
        if now_ms > self.now_ms:
            self._pass_time(now_ms, effects)

    def _go_on(self, block: Block, gone_on: Iterator[GoneOn], effects: Effects) -> None:
        for one in gone_on:
            self._run(Batch(self.decoder, block, one.events, one), effects)
            effects.drops += np.bincount(one.events["drop"], minlength=len(Drop))

    def _run(self, batch: Batch, effects: Effects) -> None:
        while batch.events["now_ms"][-1] > self._hours_end_ms:
            # Opening hours are compiled some weeks ahead; a file may leap over them.
            within = int(np.searchsorted(batch.events["now_ms"], self._hours_end_ms, side="right"))
            if within:
                self._run_within_hours(batch[:within], effects)
            self._renew_hours(int(batch.events["now_ms"][within]))
            batch = batch[within:]
        self._run_within_hours(batch, effects)

    def _run_within_hours(self, batch: Batch, effects: Effects) -> None:
        events = batch.events
        now_ms = int(events["now_ms"][-1])
        drop_without_consent(events, *self._consent_columns())
        hit_start, hits = self.index.locate(events)
        matches = self.behavior.match(events)
        ask = self.behavior.rows_to_look(*matches)
        transitions = self.presence.advance(events, hit_start, hits, now_ms, ask, keeps_past=self._fired.looks_back)
        inside = self.presence.inside_at() if ask is not None else {}
        fired = self.behavior.advance(events, matches, transitions, now_ms, batch.usage)
        if len(transitions) or len(matches[0]) or len(fired):
            self._decide(batch, transitions, matches, fired, inside, effects)
        self.now_ms = now_ms
        self._release_held(now_ms, effects)

    def _consent_columns(self) -> tuple[np.ndarray, np.ndarray, bool, bool]:
        assumed = self.content.policy.assumed_consent
        location, usage = (self.profiles.purpose_column(purpose).array for purpose in ("location", "usage"))
        return location, usage, "location" in assumed, "usage" in assumed

    # --- candidates -------------------------------------------------------------------------------------------------

    def _decide(
        self,
        batch: Batch,
        transitions: np.ndarray,
        matches: tuple[np.ndarray, np.ndarray],
        fired: np.ndarray,
        inside: dict[int, list[int]],
        effects: Effects,
    ) -> None:
        if len(transitions):
            effects.add_transitions(transitions, self.content.fences)
            self.profiles.activity.note(transitions, self._is_place, self.content.policy.time_zone)
        rows, candidates = self._maker.from_transitions(transitions, self.users.ids_of, batch.places)
        if len(matches[0]):
            rows, candidates = self._merge(batch, rows, candidates, matches, inside)
        if len(fired) or self._fired.has_conditions:
            scene = self._scene(batch, transitions)
            candidates = list(self._fired.merge(zip(rows, candidates, strict=True), fired, inside, scene))
        if candidates:
            effects.candidates += len(candidates)
            self._note(self.decider.decide(candidates), effects)

    def _scene(self, batch: Batch, transitions: np.ndarray) -> Scene:
        def usage(row: int) -> Trigger:
            return self._usage_trigger(batch.events[row], batch.names(row))

        return Scene(transitions, self.users.id_of, batch.place, usage, self.presence.inside_after)

    def _merge(
        self,
        batch: Batch,
        made_rows: list[int],
        made: list[Candidate],
        matches: tuple[np.ndarray, np.ndarray],
        inside: dict[int, list[int]],
    ) -> tuple[list[int], list[Candidate]]:
        """List (rows, candidates) in log order: by event row, what timers fired before it first."""
        usage_rows, numbers = matches
        if numbers.max() >= len(self._maker.usage_scenarios):  # the rest are steps of patterns
            own = numbers < len(self._maker.usage_scenarios)
            usage_rows, numbers = usage_rows[own], numbers[own]
        rows: list[int] = []
        merged: list[Candidate] = []
        at, end = 0, len(made)
        for row, number in zip(usage_rows.tolist(), numbers.tolist(), strict=True):
            while at < end and made_rows[at] <= row:
                rows.append(made_rows[at])
                merged.append(made[at])
                at += 1
            candidate = self._from_usage(batch, row, number, inside)
            if candidate is not None:
                rows.append(row)
                merged.append(candidate)
        return rows + made_rows[at:], merged + made[at:]

    def _from_usage(self, batch: Batch, row: int, number: int, inside: dict[int, list[int]]) -> Candidate | None:
        scenario = self._maker.usage_scenarios[number]
        if not self._fired.may_hold(scenario, row, inside):
            return None
        event = batch.events[row]
        if self.behavior.needs_event(number):
            read = batch.usage(event)
            if not self.behavior.passes(number, read):
                return None
        else:
            read = batch.names(row)
        user, (position, item) = int(event["user"]), batch.place(row)
        trigger, now_ms = self._usage_trigger(event, read), int(event["now_ms"])
        return Candidate(scenario, user, self.users.id_of(user), trigger, now_ms, position, item)

    def _usage_trigger(self, event: Any, read: Any) -> Trigger:
        made = usage_trigger(self.feeds.names[event["feed"]], read, int(event["at_ms"]), int(event["id_hash"]))
        if not read.category and event["category_hash"]:
            made.values["category"] = self.content.apps.category_of(read.app)
        return made

    def _note(self, decisions: Sequence[Decision], effects: Effects) -> None:
        effects.decisions.extend(decisions)
        if self.decider.alarms:
            alarms = self.decider.take_alarms()
            effects.alarms.extend(alarms)
            effects.changes += [Change(-1, one.at_ms, "limit", "pause", one.scenario, False, True) for one in alarms]
        effects.offers.extend(offer for decision in decisions if (offer := decision.offer) is not None)

    def _release_held(self, now_ms: int, effects: Effects) -> None:
        if decisions := self.decider.release_due(now_ms):
            self._note(decisions, effects)

    # --- what is neither ping nor usage -----------------------------------------------------------------------------

    def _apply_rare(self, block: Block, decoded: Decoded, row: int, effects: Effects) -> None:
        """Apply a profile, consent, receipt, ... at its place in the log."""
        event, read = decoded.events[row], decoded.rare[row]
        now_ms = int(event["now_ms"])
        if now_ms > self.now_ms:
            self._pass_time(now_ms, effects)
        slot, user_id, at_ms = int(event["user"]), read.user, int(event["at_ms"])
        position, said_before = int(block.position[event["record"]]), len(effects.consents)
        old = self._consents_before(slot, read)
        match read:
            case Profile():
                self.profiles.apply_profile(slot, read, self.now_ms)
            case Consent():
                if self.profiles.apply_consent(slot, read):
                    effects.consents.append(
                        ConsentChange(user_id, read.purpose, read.granted, at_ms, read.source or "consent")
                    )
            case InboundMessage():
                purpose = self.profiles.apply_inbound(slot, read)
                if purpose is not None:
                    said = ConsentChange(user_id, purpose, False, at_ms, "inbound-message", read.text)
                    effects.consents.append(said)
            case UserClosed() | AddressChanged() if self.profiles.was_closed_since(slot, at_ms):
                # Delivered again: the user who has the slot by now is another one (T7).
                effects.drops[Drop.DUPLICATE] += 1
            case UserClosed() | AddressChanged():
                if self.reorder is not None:  # what came before belongs to the user who leaves
                    self._go_on(NO_RECORDS, self.reorder.let_go(slot, self.now_ms), effects)
                self._note(self.decider.close(slot, self.now_ms), effects)
                self.presence.reset_user(slot)
                self.behavior.close_user(slot)
                effects.closed_users.append(user_id)
                told = "user-closed" if isinstance(read, UserClosed) else "address-changed"
                void = ConsentChange(user_id, "*", None, at_ms, told)
                effects.changes.append(self._consent_change(position, void, None))
                effects.closed_at.append((len(effects.consents), len(effects.offers)))
            case Receipt():
                effects.receipts.append(read)
                offer_id = read.offer_id or (read.dispatch_id or "").partition("/")[0]
                if read.state in _DEFINITE_FAILURES and read.definite and offer_id:
                    self.ledger.release(offer_id)
                    self.decider.released(slot, offer_id)
                    self.decider.responses.answered(slot, offer_id, None, self.now_ms)
                elif read.state == "delivered" and offer_id:
                    self.ledger.delivered(offer_id)
                if read.state in _RECEIVED and offer_id:
                    self.decider.responses.received(slot, offer_id, self.now_ms)
            case Redemption():
                effects.redemptions.append(self._redeemed(read))
                if not read.refund:
                    self.decider.responses.answered(slot, read.offer_id, read.benefit, self.now_ms)
        for bound in self.profiles.take_bound():
            change = ConsentChange(self.users.id_of(bound.slot), bound.purpose, False, bound.at_ms, PERSON_SOURCE)
            effects.consents.append(change)
        for said in effects.consents[said_before:]:
            before = old.get(said.purpose) if said.user_id == user_id else None
            effects.changes.append(self._consent_change(position, said, before))

    def _consents_before(self, slot: int, read: Any) -> dict[str, bool]:
        """Return what a user had said of the purpose that this event may change."""
        if not isinstance(read, Consent | InboundMessage):
            return {}
        purpose = read.purpose if isinstance(read, Consent) else f"marketing.{read.channel}"
        evidence = self.profiles.evidence(slot, purpose) if slot < self.profiles.count else None
        return {} if evidence is None else {purpose: evidence.granted}

    def _consent_change(self, position: int, said: ConsentChange, before: bool | None) -> Change:
        given = (said.source, "consent", said.user_id, before, said.granted, said.purpose, said.at_ms)
        return Change(position, self.now_ms, *given)

    def _redeemed(self, read: Redemption) -> Redeemed:
        identity: tuple[Any, ...] = (read.id,)
        if read.id is None:
            identity = (None, read.user, read.at_ms, read.offer_id, read.benefit, read.amount_fen)
        if read.refund:
            identity = (*identity, "refund")
        key = blake2b(orjson.dumps([self.feeds.names[read.feed], *identity]), digest_size=16).digest()
        return Redeemed(key, read.user, read.at_ms, read.offer_id, read.benefit, read.amount_fen, read.refund)

    def _apply_control(self, block: Block, record: int, effects: Effects) -> None:
        control = orjson.loads(bytes(block.data[int(block.start[record]) : int(block.end[record])]))
        match control:
            case {"pause": scenario, "paused": paused}:
                is_paused = scenario in self.decider.pauses
                self.decider.pause(scenario, paused)
                effects.pauses.append((scenario, paused))
                who, position = str(control.get("by", "unknown")), int(block.position[record])
                effects.changes.append(Change(position, self.now_ms, who, "pause", scenario, is_paused, paused))
                return
            case {"lease": pool, "first": first, "count": count, "epoch": epoch}:
                self.ledger.lease_codes(pool, first, count, epoch)
            case {"recall": pool, "epoch": epoch}:
                self.ledger.recall_codes(pool, epoch)
            case {"spent": pool, "spans": spans}:
                self.ledger.spend_codes(pool, spans)
            case {"returned": pool, "spans": spans}:
                self.ledger.accept_return(pool, spans)
        effects.code_records += 1

    def forget(self, user: str) -> bool:
        """Take a user out of all state (I2), the bytes of the id included; say whether there was anything."""
        slot = self.users.slot_of(user, intern=False)
        if slot < 0:
            return False
        self.decider.close(slot, self.now_ms)
        self.presence.reset_user(slot)
        self.behavior.reset_user(slot)
        self.profiles.forget(slot)
        if self.reorder is not None:
            self.reorder.forget(slot)
        self.users.evict([slot])
        self.users = self.decoder.users = UserTable.from_arrays(self.users.arrays())
        return True

    def finish(self) -> Effects:
        """Close what is still open at the end of a recording: held events (T5), runs of equal refusals (D5)."""
        effects = Effects(self.now_ms)
        if self.reorder is not None and len(self.reorder):
            self._pass_time(self.reorder.last_due_ms, effects)
        effects.decisions += self.decider.finish()
        return self._told(effects)

    @property
    def held_events(self) -> int:
        """Events that wait to go on sorted (T5)."""
        return 0 if self.reorder is None else len(self.reorder)

    def first_failing_held(self) -> tuple[int, int] | None:
        """Let all held events go on, one by one; say position and item of the first that the engine fails on.

        For finding a fault (FAULTS F2): the state is of no use afterwards.
        """
        effects = Effects(self.now_ms)
        for one in self.reorder.pass_time(FOREVER_MS - 1) if self.reorder is not None else ():
            batch = Batch(self.decoder, NO_RECORDS, one.events, one)
            for row in range(len(one.events)):
                try:
                    self._run(batch[row : row + 1], effects)
                except (OpportuneError, MemoryError):
                    raise
                except Exception:
                    return batch.place(row)
        return None

    def transition_lines(self, effects: Effects) -> Iterator[bytes]:
        """Yield a block's transitions as the contract's JSON, one line each."""
        for transitions, fences, left in zip(effects.transitions, effects.fences, effects.left, strict=True):
            yield from transition_lines(transitions, self.settings.tenant, fences, self._id_now_or_then(left))

    def _id_now_or_then(self, left: dict[int, str]) -> Callable[[int], str]:
        return lambda slot: left[slot] if slot in left else self.users.id_of(slot)

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
                *((("reorder", self.reorder),) if self.reorder is not None else ()),
            )
            for name, array in part.arrays().items()
        }
        objects = {
            "now_ms": self.now_ms,
            "swept_hour": self._swept_hour,
            "profiles": self.profiles.objects(),
            "decider": self.decider.state(),
        }
        return arrays, objects

    def restore(self, arrays: dict[str, np.ndarray], objects: dict[str, Any]) -> None:
        """Take the state of a snapshot made with the same content."""

        def part(stage: str) -> dict[str, np.ndarray]:
            return {name.partition(".")[2]: array for name, array in arrays.items() if name.startswith(f"{stage}.")}

        self.now_ms, self._swept_hour = objects["now_ms"], objects["swept_hour"]
        self.users = UserTable.from_arrays(part("users"))
        self.decoder.users = self.users
        self.presence.restore(part("presence"))
        self.behavior.restore(part("behavior"))
        self.profiles.restore(part("profiles"), objects["profiles"])
        self.decider.restore(objects["decider"])
        if len(held := part("reorder").get("event", NO_EVENTS)) and self.reorder is None:
            self.reorder = Reorder(self.feeds)  # no feed reorders any more; what is held goes on when it is due
        if self.reorder is not None and len(held):
            self.reorder.restore(part("reorder"))
        self._ensure()
        if self.now_ms > self._hours_end_ms:
            self.presence.set_open_intervals(self._hours(self.now_ms))


_DEFINITE_FAILURES = frozenset({"rejected", "failed", "expired"})
_RECEIVED = frozenset({"accepted", "delivered"})
_NO_HIT_START = np.zeros(1, np.int64)
_NO_HITS = np.zeros(0, HIT)
_NO_MATCHES = np.zeros(0, np.int32), np.zeros(0, np.int32)


def _read_nothing(_event: Any) -> Any:
    raise AssertionError("without events there is nothing to read")


def _new_rows(old: tuple[str, ...], new: tuple[str, ...]) -> np.ndarray | None:
    """Say where each old id stands now, -1 where it is gone; None if nothing moved."""
    if old == new:
        return None
    row = {name: place for place, name in enumerate(new)}
    return np.array([row.get(name, -1) for name in old], np.int32)
