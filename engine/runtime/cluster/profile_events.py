"""What is known of a user as the events that would make it known again (A1, A2, A4)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from engine.decide.profiles import DO_NOT_DISTURB, PERSON_SOURCE, ProfileTable

_AHEAD_MS = 300_000
"""Events further in the future than this are none (T6); what was said after `at_ms` is in the log itself."""


def profile_events(profiles: ProfileTable, slot: int, user: str, tenant: str, at_ms: int) -> Iterator[bytes]:
    """Give a user's closings, profile and consents, in this order, as events of the instant `at_ms`.

    Tags that scenarios set for a time are not told.
    """

    def event(kind: str, **fields: Any) -> bytes:
        return orjson.dumps({"type": kind, "tenant": tenant, "user": user, "at": at_ms, **fields})

    for _ in range(profiles.generation.get(slot, 0)):
        yield event("user-closed", at=min(profiles.void_ms.get(slot, at_ms), at_ms))
    if profiles.is_known(slot):
        yield event("profile", **_fields(profiles, slot))
    for purpose in sorted(profiles.purposes):
        said = profiles.evidence(slot, purpose)
        # A refusal that came from another number of the person comes from there again.
        if said is not None and said.source != PERSON_SOURCE and said.at_ms <= at_ms + _AHEAD_MS:
            yield event("consent", at=said.at_ms, purpose=purpose, granted=said.granted, source=said.source)


def _fields(profiles: ProfileTable, slot: int) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "tags": [tag for tag in profiles.tags.texts if _bears(profiles, slot, tag)],
        "dnd": bool(profiles.flags.view[slot] & DO_NOT_DISTURB),
    }
    names = [*profiles.numbers, *profiles.texts]
    attributes = {name: value for name in names if (value := profiles.attribute(slot, name)) is not None}
    if attributes:
        fields["attributes"] = attributes
    for name, column in (
        ("organisation", profiles.organisation),
        ("province", profiles.province),
        ("person", profiles.person),
        ("time_zone", profiles.zone),
    ):
        said = column.get(slot) if column is not None else None
        if said is not None:
            fields[name] = said
    return fields


def _bears(profiles: ProfileTable, slot: int, tag: str) -> bool:
    column, mask = profiles.tag_place(tag)
    return bool(column.view[slot] & mask)
