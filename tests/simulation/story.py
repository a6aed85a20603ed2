"""What happened, in plain records: the only form in which the auditor sees the world and the engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Told:
    """Everything one block brought about.

    transitions  user, fence, kind, reason, crossed_ms, confirmed_ms, now_ms, threshold_s, by_timer, is_stale
    rows         of each transition the event row: which came from the same fix (only for records taken one by one)
    decisions    as JSON, as they are stored
    """

    transitions: list[tuple[Any, ...]] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    decisions: list[bytes] = field(default_factory=list)
    offers: list[tuple[str, str, str, str, str, int, str | None]] = field(default_factory=list)
    dead: list[tuple[int, int, str]] = field(default_factory=list)
    consents: list[tuple[str, str, bool | None]] = field(default_factory=list)
    alarms: list[tuple[str, int]] = field(default_factory=list)
    events: int = 0
    drops: list[int] = field(default_factory=list)

    def add(self, other: Told) -> None:
        for name in ("transitions", "rows", "decisions", "offers", "dead", "consents", "alarms"):
            getattr(self, name).extend(getattr(other, name))
        self.events += other.events
        self.drops = [a + b for a, b in zip(self.drops, other.drops, strict=True)] if self.drops else list(other.drops)


COMPARED = ("transitions", "decisions", "offers", "dead", "consents", "alarms", "events", "drops")
"""What two runs of the same records must agree in."""


@dataclass(frozen=True)
class Message:
    """What the gateway has got."""

    at_ms: int
    offer_id: str
    dispatch_id: str
    user: str
    scenario: str
    channel: str
    text: str
    code: str | None = None  # as people read it


@dataclass(frozen=True)
class Scan:
    """Somebody looks at a claim link or redeems it. `status` 0: the service died before it answered.

    till      the idempotency key
    position  how far the log had come
    """

    token: str
    till: str | None
    amount_fen: int | None
    is_look: bool = False
    at_ms: int = 0
    position: int = 0
    status: int = 0
    answer: dict[str, Any] = field(default_factory=dict)


@dataclass
class LogRecord:
    """What the world knows of an acknowledged record."""

    position: int
    append_ms: int
    kind: int
    payload: bytes
    poison: frozenset[int] = frozenset()


@dataclass
class Story:
    """Everything that happened, for the auditor."""

    records: list[LogRecord] = field(default_factory=list)
    blocks: list[tuple[int, int, Told]] = field(default_factory=list)  # first and last position, what was said
    messages: list[Message] = field(default_factory=list)
    claims: list[tuple[int, str, str]] = field(default_factory=list)  # instant, offer id, answer
    outages: list[tuple[int, int]] = field(default_factory=list)  # positions at which reserving was impossible
    committed: list[int] = field(default_factory=list)
    left_in_outbox: list[str] = field(default_factory=list)
    endings: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # dispatch states of each offer
    stored_decisions: int = 0
    redemptions: list[tuple[bool, str, int, Any, Any, Any]] = field(default_factory=list)  # of the ledger; True: refund
    forgotten: list[tuple[int, str]] = field(default_factory=list)  # before which position, and who
    traces: list[str] = field(default_factory=list)  # where something of them was found afterwards
    scans: list[Scan] = field(default_factory=list)  # of claim links, in the order in which they were asked
    early: list[str] = field(default_factory=list)  # offers whose receipt came before the answer to their submit
    end_ms: int = 0
    happened: dict[str, int] = field(default_factory=dict)

    def note(self, what: str) -> None:
        self.happened[what] = self.happened.get(what, 0) + 1
