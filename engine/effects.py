"""What a block of records brought about: what the pipeline hands to the ledger, the dispatcher and the metrics."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine.changes import Change
from engine.decide import Decision
from engine.decode.users import UserTable
from engine.definitions import Fence
from engine.model import DeadLetter, Drop, Offer


@dataclass(slots=True)
class ConsentChange:
    """What the claim store must know before the next hand-off (D7)."""

    user_id: str
    purpose: str
    granted: bool | None  # None: void, as if never given
    at_ms: int
    source: str
    text: str | None = None  # of the user's message that said it (A3)


@dataclass(frozen=True, slots=True)
class Redeemed:
    """A benefit that a user used, told once by its key (T7); `offer_id` as the event said it."""

    key: bytes  # 16 bytes of the event's feed and id, or of its content where it has no id
    user_id: str
    at_ms: int
    offer_id: str | None
    benefit: str | None
    amount_fen: int | None
    is_refund: bool = False


@dataclass(slots=True)
class Effects:
    """What a block brought about, in log order."""

    now_ms: int
    first_ms: int = -1  # `now` of the block's first event; -1 where it has none
    events: int = 0
    decisions: list[Decision] = field(default_factory=list)
    offers: list[Offer] = field(default_factory=list)
    transitions: list[np.ndarray] = field(default_factory=list)
    dead: list[DeadLetter] = field(default_factory=list)
    drops: np.ndarray = field(default_factory=lambda: np.zeros(len(Drop), np.int64))
    consents: list[ConsentChange] = field(default_factory=list)
    closed_users: list[str] = field(default_factory=list)
    closed_at: list[tuple[int, int]] = field(default_factory=list)  # consents and offers that came before each close
    receipts: list[Any] = field(default_factory=list)
    redemptions: list[Redeemed] = field(default_factory=list)  # told again by a feed, it is here again
    pauses: list[tuple[str, bool]] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)  # for the audit log
    code_records: int = 0  # leases of codes that were given, recalled or returned
    candidates: int = 0
    patterns: dict[str, int] = field(default_factory=dict)  # completed, sums_merged, keys_evicted, ...
    types: dict[int, int] = field(default_factory=dict)  # EventType -> events
    alarms: list[Any] = field(default_factory=list)
    fences: list[tuple[Fence, ...]] = field(default_factory=list)  # what `fence` of transitions[i] counts in
    left: list[dict[int, str]] = field(default_factory=list)  # users in transitions[i] whose slot is another's by now
    evicted: int = 0
    hurried: int = 0  # held events that a reorder buffer let go on early, because it was full (T5)

    @property
    def is_stored(self) -> bool:
        """Whether the ledger has anything to keep of this; most batches only move on."""
        told = self.receipts or self.redemptions or self.pauses or self.code_records or self.changes
        return bool(self.decisions or self.consents or self.closed_users or told)

    def add_transitions(self, transitions: np.ndarray, fences: tuple[Fence, ...]) -> None:
        self.transitions.append(transitions)
        self.fences.append(fences)
        self.left.append({})

    def note_evicted(self, slots: np.ndarray, users: UserTable) -> None:
        """Keep the ids that transitions of this batch need, before their slots are given away."""
        self.evicted += len(slots)
        for transitions, left in zip(self.transitions, self.left, strict=True):
            for slot in np.intersect1d(transitions["user"], slots).tolist():
                left.setdefault(slot, users.id_of(slot))
