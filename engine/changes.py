"""What somebody must be able to answer for: changes of content, modes, stages, pauses, consent; erasures (A14)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from engine.definitions import Content

Said = str | bool | None


@dataclass(frozen=True, slots=True)
class Change:
    """One change at its place in the log; `subject` of a consent is the user and never stored as such.

    who   the key or command that asked, the source of a consent, `limit` for an automatic pause
    what  content | mode | stage | pause | consent | forget
    """

    position: int  # of the record that asked for it; -1 where none did (an automatic pause, an erasure)
    at_ms: int  # the log's now
    who: str
    what: str
    subject: str
    old: Said
    new: Said
    purpose: str = ""  # of a consent
    said_ms: int = 0  # when the user said it


def content_changes(old: Content, new: Content, position: int, at_ms: int, who: str) -> Iterator[Change]:
    """Yield the change of version, then of every scenario and benefit that is new, gone, in another mode or stage."""
    # The first content of a log is active before its record is read.
    yield Change(position, at_ms, who, "content", "*", None if old.version == new.version else old.version, new.version)
    for what, state_of in (("mode", _modes), ("stage", _stages)):
        before, after = state_of(old), state_of(new)
        for name in sorted(before.keys() | after.keys()):
            if before.get(name) != after.get(name):
                yield Change(position, at_ms, who, what, name, before.get(name), after.get(name))


def _modes(content: Content) -> dict[str, str]:
    return {one.id: one.mode.value for one in content.scenarios}


def _stages(content: Content) -> dict[str, str]:
    return {one.id: one.stage.value for one in content.benefits}
