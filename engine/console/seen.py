"""Who was seen in a month, from the newest checkpoint of a state folder (docs/reports.md, activity)."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np

from engine.decide import ProfileTable
from engine.decide.counting import Counter
from engine.decode.users import UserTable
from engine.definitions import Content, InOrganisation
from engine.errors import OpportuneError
from engine.report.activity import ENOUGH, Subtree, activity_sheet
from engine.report.sheet import Sheet
from engine.runtime import checkpoint

_STAGES = ("users.", "profiles.")


@dataclass(frozen=True, slots=True)
class Seen:
    """Profiles and visits as of one instant of the log."""

    users: UserTable
    profiles: ProfileTable
    now_ms: int
    time_zone: str

    @property
    def running_month(self) -> str:
        return _local(self.now_ms, self.time_zone).strftime("%Y-%m")

    def sheet(self, organisations: Sequence[str], from_ms: int, received: Sequence[tuple[str, int]]) -> Sheet:
        """Return the rates of a month that begins at `from_ms`, given who received a message in it, and when."""
        first = _local(from_ms, self.time_zone)
        month = first.strftime("%Y-%m")
        if month > self.running_month:
            raise OpportuneError(f"{month} has not begun; the log has come to {self.running_month}")
        visits = self.profiles.activity.seen(first.year * 12 + first.month - 1)
        if visits is None:
            raise OpportuneError(f"visits of {month} are no longer kept; this month and the last one are")
        active = (visits[: self.profiles.count] >= ENOUGH) | (self._messages(received) >= ENOUGH)
        counter = Counter(self.profiles)
        subtrees = []
        for path in organisations:
            members = counter.reach(InOrganisation(path), self.now_ms).matching
            if not members.any():
                raise OpportuneError(f"nobody belongs to {path!r}{self._near(path)}")
            subtrees.append(Subtree(path, int(members.sum()), int((members & active).sum())))
        return activity_sheet(subtrees, month, self._notes(from_ms))

    def _messages(self, received: Sequence[tuple[str, int]]) -> np.ndarray:
        """Return int64[N]: messages by slot. What a user received who had the number before counts for nobody (A4)."""
        slots = [
            slot
            for user, at_ms in received
            if (slot := self.users.slot_of(user, intern=False)) >= 0 and not self.profiles.was_closed_since(slot, at_ms)
        ]
        return np.bincount(np.array(slots, np.int64), minlength=self.profiles.count)[: self.profiles.count]

    def _near(self, path: str) -> str:
        column = self.profiles.organisation
        known = set() if column is None else {text for text in column.names.texts if text}
        steps = {"/".join(text.split("/")[:depth]) for text in known for depth in range(1, text.count("/") + 2)}
        near = difflib.get_close_matches(path, sorted(steps), 1)
        return f"; did you mean {near[0]!r}?" if near else ""

    def _notes(self, from_ms: int) -> list[str]:
        since_ms = self.profiles.activity.since_ms
        notes = [f"visits as of {self._said(self.now_ms)}, messages as of now"]
        if since_ms < 0:
            notes.append("no visit was counted yet")
        elif since_ms > from_ms:
            notes.append(f"visits are counted since {self._said(since_ms)}: of the time before nothing is known")
        return notes

    def _said(self, at_ms: int) -> str:
        return _local(at_ms, self.time_zone).isoformat(sep=" ", timespec="seconds")


def read_seen(folder: Path, content_of: Callable[[str], Content | None]) -> Seen:
    """Read users, profiles and visits; raise OpportuneError where no checkpoint can be used."""
    found = checkpoint.read_newest(folder, _STAGES)
    newest = found.checkpoint
    if newest is None:
        why = f" ({'; '.join(found.refused)})" if found.refused else ""
        raise OpportuneError(
            f"there is no checkpoint in {folder}{why}; a running service writes one every minute, a stopped one has one"
        )
    content = content_of(newest.content_version)
    if content is None:
        raise OpportuneError(f"the content of the checkpoint, {newest.content_version}, is not in the archive")

    def part(stage: str) -> dict[str, np.ndarray]:
        return {name.removeprefix(stage): array for name, array in newest.arrays.items() if name.startswith(stage)}

    profiles = ProfileTable(content.policy)
    profiles.restore(part("profiles."), newest.objects["pipeline"]["profiles"])
    return Seen(UserTable.from_arrays(part("users.")), profiles, newest.now_ms, content.policy.time_zone)


def _local(at_ms: int, zone: str) -> datetime:
    return datetime.fromtimestamp(at_ms // 1000, ZoneInfo(zone))
