"""The flow: what becomes of a block of records, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import orjson

from engine.changes import content_changes
from engine.consent_kernel import drop_without_consent
from engine.decode.decoder import Decoded
from engine.decode.events import AddressChanged, UserClosed
from engine.definitions import Content
from engine.effects import Effects
from engine.errors import OpportuneError
from engine.model import HIT, Block, Drop, Trigger
from engine.pipeline.batch import NO_EVENTS, NO_RECORDS, Batch
from engine.pipeline.cuts import CONTENT, CONTROL, between_contents, stops_of
from engine.pipeline.facts import apply_control, apply_fact
from engine.pipeline.fired import Scene
from engine.pipeline.stages import HOUR_MS, Stages
from engine.pipeline.transitions import transition_lines
from engine.reorder import FOREVER_MS, GoneOn


class Pipeline(Stages):
    """Everything between a record and an offer, for one partition; made as `Stages` are."""

    on_decoded: Callable[[Block, Decoded], None] | None = None
    """Told what a block held, for whoever watches the feeds; changes nothing."""

    # --- records ------------------------------------------------------------------------------------------------------

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

    def finish(self) -> Effects:
        """Close what is still open at the end of a recording: held events (T5), runs of equal refusals (D5)."""
        effects = Effects(self.now_ms)
        if self.reorder is not None and len(self.reorder):
            self._pass_time(self.reorder.last_due_ms, effects)
        effects.decisions += self.decider.finish()
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
        last_ms = int(block.append_ms[0]) if len(block) == 1 else int(block.append_ms.max(initial=-1))
        if last_ms // HOUR_MS <= self._swept_hour:
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
                    apply_control(self, block, record, effects)
            row = stop + (rare >= 0)
        if row < len(decoded.events):
            self._take(block, decoded.events[row:], effects)
        if not len(decoded.events):
            return
        if self.reorder is None:
            effects.drops += np.bincount(decoded.events["drop"], minlength=len(Drop))
        for kind, number in enumerate(np.bincount(decoded.events["type"]).tolist()):
            if number:
                effects.types[kind] = effects.types.get(kind, 0) + number

    # --- time and batches ---------------------------------------------------------------------------------------------

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
            rows, candidates = self._usage.merge(rows, candidates, matches, inside, batch, self.users.id_of)
        if len(fired) or self._fired.has_conditions:
            scene = self._scene(batch, transitions)
            candidates = list(self._fired.merge(zip(rows, candidates, strict=True), fired, inside, scene))
        if candidates:
            effects.candidates += len(candidates)
            self.note(self.decider.decide(candidates), effects)

    def _scene(self, batch: Batch, transitions: np.ndarray) -> Scene:
        def usage(row: int) -> Trigger:
            return self._usage.trigger(batch.events[row], batch.names(row))

        return Scene(transitions, self.users.id_of, batch.place, usage, self.presence.inside_after)

    def _release_held(self, now_ms: int, effects: Effects) -> None:
        if decisions := self.decider.release_due(now_ms):
            self.note(decisions, effects)

    def _apply_rare(self, block: Block, decoded: Decoded, row: int, effects: Effects) -> None:
        """Apply a profile, consent, receipt, ... at its place in the log."""
        event, read = decoded.events[row], decoded.rare[row]
        now_ms, slot, at_ms = int(event["now_ms"]), int(event["user"]), int(event["at_ms"])
        if now_ms > self.now_ms:
            self._pass_time(now_ms, effects)
        leaves = isinstance(read, UserClosed | AddressChanged) and not self.profiles.was_closed_since(slot, at_ms)
        if leaves and self.reorder is not None:  # what came before belongs to the user who leaves
            self._go_on(NO_RECORDS, self.reorder.let_go(slot, self.now_ms), effects)
        apply_fact(self, slot, read, at_ms, int(block.position[event["record"]]), effects)

    # --- what waits (T5), what is told --------------------------------------------------------------------------------

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


_NO_HIT_START = np.zeros(1, np.int64)
_NO_HITS = np.zeros(0, HIT)
_NO_MATCHES = np.zeros(0, np.int32), np.zeros(0, np.int32)


def _read_nothing(_event: Any) -> Any:
    raise AssertionError("without events there is nothing to read")
