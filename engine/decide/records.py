"""The decision as it is stored and sent (docs/contracts.md, Decision; rule D5)."""

from __future__ import annotations

from typing import Any

import msgspec

from engine.model import Offer


class DecisionTrigger(msgspec.Struct, gc=False):
    """What started the candidate; `at` in epoch milliseconds."""

    kind: str
    key: str
    at: int
    fence: str | None
    values: dict[str, Any]


class Decision(msgspec.Struct, dict=True):
    """How one candidate ended, in the order of the contract's fields; instants in epoch milliseconds.

    outcome  a model.Outcome value; reason a model.Reason value, or cap:<scope>
    values   what the deciding gate compared
    A second decision with the same id updates the first (a held one released, a run of refusals closed); one with
    reason `duplicate` does not: the offer of that id was decided before.
    """

    v: int
    tenant: str
    decision_id: str
    outcome: str
    reason: str
    user: str
    scenario: str
    trigger: DecisionTrigger
    at: int
    content_version: str
    values: dict[str, Any]
    count: int
    first: int
    last: int

    @property
    def offer(self) -> Offer | None:
        """The offer to publish, for a live scenario whose outcome is `offer`. Rides along; no part of the record."""
        offer: Offer | None = self.__dict__.get("offer_granted")
        return offer

    def grant(self, offer: Offer) -> None:
        self.__dict__["offer_granted"] = offer


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Decision)


def encode(decision: Decision) -> bytes:
    """Return the decision as one JSON object, without a newline."""
    return _ENCODER.encode(decision)


def encode_lines(decisions: list[Decision]) -> bytes:
    """Return decisions as JSON, one a line."""
    return _ENCODER.encode_lines(decisions)


def decode(line: bytes) -> Decision:
    """Read a decision back; unknown fields are ignored."""
    return _DECODER.decode(line)
