"""The stages of one partition: made of the content in force, and all that is remembered between two blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from engine.behavior import Behavior, compile_plan
from engine.changes import Change
from engine.content.hours import open_intervals
from engine.decide import Decider, Decision, ProfileTable, Propensity
from engine.decode.decoder import Decoder
from engine.decode.users import UserTable
from engine.definitions import Content
from engine.effects import Effects
from engine.hashing_kernel import hash_text
from engine.locate.index import FenceIndex
from engine.model import ReserveAnswer, ReserveRequest
from engine.pipeline.batch import NO_EVENTS
from engine.pipeline.candidates import CandidateMaker
from engine.pipeline.fired import FiredMaker
from engine.pipeline.usage import UsageMaker
from engine.presence import Presence
from engine.reorder import Reorder
from engine.settings import FeedTable, Settings

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


class Stages:
    """What a partition consists of, and how it takes new content, grows, forgets and is saved.

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

    # --- content ------------------------------------------------------------------------------------------------------

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
        self.note(self.decider.activate(content), effects)

    def _set_content(self, content: Content) -> None:
        self.content = content
        self.index = FenceIndex.build(content.fences, content.cells)
        # A tiling covers the land: going from tile to tile visits nothing.
        self._is_place = np.array([not fence.tiling for fence in content.fences], np.bool_)
        size_m = self.index.arrays.row["characteristic_m"]
        self._maker = CandidateMaker(content, size_m)
        plan = compile_plan(content, self.feeds, hash_text)
        self._fired = FiredMaker(content, plan, size_m)
        self._usage = UsageMaker(content, plan, self._fired, self.behavior, self.feeds)
        self.behavior.activate(plan.usage_triggers, plan)
        self.behavior.set_apps(content.apps)

    def _hours(self, now_ms: int) -> dict[int, np.ndarray]:
        from_ms = now_ms - now_ms % HOUR_MS - _HOURS_BEHIND_MS
        self._hours_end_ms = now_ms + _HOURS_AHEAD_MS - 2 * 24 * HOUR_MS
        return {
            row: open_intervals(fence, from_ms, now_ms + _HOURS_AHEAD_MS)
            for row, fence in enumerate(self.content.fences)
            if fence.opening_hours or fence.valid_from_ms is not None or fence.valid_until_ms is not None
        }

    def _renew_hours(self, now_ms: int) -> None:
        if now_ms > self._hours_end_ms:
            self.presence.set_open_intervals(self._hours(now_ms))

    # --- users --------------------------------------------------------------------------------------------------------

    def _ensure(self) -> None:
        users = self.users.count
        if self.reorder is not None:
            self.reorder.ensure(users)
        self.profiles.ensure(users)
        self.presence.ensure(users)
        self.behavior.ensure(users)

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

    # --- decisions ----------------------------------------------------------------------------------------------------

    def note(self, decisions: Sequence[Decision], effects: Effects) -> None:
        """Add decisions to the effects, with the offers and alarms that came of them."""
        effects.decisions.extend(decisions)
        if self.decider.alarms:
            alarms = self.decider.take_alarms()
            effects.alarms.extend(alarms)
            effects.changes += [Change(-1, one.at_ms, "limit", "pause", one.scenario, False, True) for one in alarms]
        effects.offers.extend(offer for decision in decisions if (offer := decision.offer) is not None)

    # --- checkpoints --------------------------------------------------------------------------------------------------

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
            "feeds": self.feeds.names,
            "profiles": self.profiles.objects(),
            "decider": self.decider.state(),
        }
        return arrays, objects

    def restore(self, arrays: dict[str, np.ndarray], objects: dict[str, Any]) -> None:
        """Take the state of a snapshot made with the same content; feeds may have come, gone or moved since."""
        arrays = _with_feeds(arrays, tuple(objects.get("feeds", self.feeds.names)), self.feeds)

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
        self._renew_hours(self.now_ms)


def _with_feeds(arrays: dict[str, np.ndarray], names: tuple[str, ...], feeds: FeedTable) -> dict[str, np.ndarray]:
    """Name feeds in the arrays of a snapshot by their rows of today; what came by one that is gone becomes `default`'s.

    State names a feed by its row, and the kernels trust it: a row of yesterday is another feed's, or nobody's.
    """
    if names == feeds.names:
        return arrays
    row = np.array([feeds.row.get(name, 0) for name in names], np.uint8)
    renamed = dict(arrays)
    for name, array in arrays.items():
        if array.dtype.names and "feed" in array.dtype.names:
            renamed[name] = array.copy()
            renamed[name]["feed"] = row[array["feed"]]
    if (seen := arrays.get("behavior.pattern_feed")) is not None:
        known = np.array([name in feeds.row for name in names], np.bool_)
        renamed["behavior.pattern_feed"] = np.zeros((len(feeds.names), *seen.shape[1:]), seen.dtype)
        renamed["behavior.pattern_feed"][row[known]] = seen[known]
    return renamed


def _new_rows(old: tuple[str, ...], new: tuple[str, ...]) -> np.ndarray | None:
    """Say where each old id stands now, -1 where it is gone; None if nothing moved."""
    if old == new:
        return None
    row = {name: place for place, name in enumerate(new)}
    return np.array([row.get(name, -1) for name in old], np.int32)
