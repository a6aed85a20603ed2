"""What is known of users, by slot: tags, attributes, consent, zone. Columnar, so that a million cost megabytes.

Read without a remote call (rule A1); consent and opt-out as rules A2-A4. A slot is a row of the user table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np

from engine.decide.activity import Activity
from engine.decide.columns import MISSING, Column, Names, TextColumn
from engine.decide.local_time import is_zone
from engine.decide.persons import Persons
from engine.definitions import Policy
from engine.opt_out import is_opt_out

UNSET = msgspec.UNSET
ABSENT, GRANTED, DENIED = 0, 1, 2
KNOWN, DO_NOT_DISTURB = 1, 2
_MOST_ATTRIBUTES = 256
_MOST_TAGS = 4096
_MOST_PURPOSES = 256
_MOST_SOURCES = 16_383
_WORD_BITS = 64
PERSON_SOURCE = "person"
"""Where a refusal came from that was said on another number of the same person."""


class Evidence(NamedTuple):
    """One consent record: what was said, when, and where it came from."""

    granted: bool
    at_ms: int
    source: str


class Bound(NamedTuple):
    """A refusal on one number of a person that now binds another (A4)."""

    slot: int
    purpose: str
    at_ms: int


class ProfileTable:
    """Profiles and consents of all users of a partition.

    policy  whose `assumed_consent` applies where a purpose has no record; the default is none (A2)
    """

    def __init__(self, policy: Policy | None = None) -> None:
        self.assumed: frozenset[str] = policy.assumed_consent if policy else frozenset()
        self.count = 0
        self.capacity = 0
        self.flags = Column("u1", 0, 0)
        self.zone = TextColumn(0, "i2")
        self.tags = Names()
        self.tag_words: list[Column] = []
        self.texts: dict[str, TextColumn] = {}
        self.numbers: dict[str, Column] = {}
        self.organisation: TextColumn | None = None
        self.province: TextColumn | None = None
        self.person: TextColumn | None = None
        self.persons = Persons()
        self._bound: list[Bound] = []
        self.purposes: dict[str, Column] = {}
        self.sources = Names([""])
        self.dynamic: dict[int, dict[str, int]] = {}
        self.void_ms: dict[int, int] = {}
        self.generation: dict[int, int] = {}
        self.ignored_attributes = 0
        self.activity = Activity()

    # --- size -------------------------------------------------------------------------------------------------------

    def ensure(self, count: int) -> None:
        """Make room for slots below `count`."""
        self.count = max(self.count, count)
        if count > self.capacity:
            self.capacity = max(count, self.capacity + self.capacity // 8 + 64)
            for column in self._columns():
                column.grow(self.capacity)

    def _columns(self) -> list[Column]:
        optional = [one for one in (self.organisation, self.province, self.person) if one is not None]
        fixed = [self.flags, self.zone, self.activity.column, *self.tag_words, *optional]
        return [*fixed, *self.texts.values(), *self.numbers.values(), *self.purposes.values()]

    # --- columns, made when first named -----------------------------------------------------------------------------

    def tag_place(self, tag: str) -> tuple[Column, int]:
        """Return the column and the mask of a tag."""
        row = self.tags.intern(tag)
        word, bit = divmod(row, _WORD_BITS)
        while len(self.tag_words) <= word:
            self.tag_words.append(Column("u8", 0, self.capacity))
        return self.tag_words[word], 1 << bit

    def number_column(self, name: str) -> Column:
        column = self.numbers.get(name)
        if column is None:
            column = self.numbers[name] = Column("f8", float("nan"), self.capacity)
        return column

    def text_column(self, name: str) -> TextColumn:
        column = self.texts.get(name)
        if column is None:
            column = self.texts[name] = TextColumn(self.capacity)
        return column

    def organisation_column(self) -> TextColumn:
        if self.organisation is None:
            self.organisation = TextColumn(self.capacity)
        return self.organisation

    def purpose_column(self, purpose: str) -> Column:
        """Return the column of one consent purpose: at_ms << 16 | source << 2 | state."""
        column = self.purposes.get(purpose)
        if column is None:
            column = self.purposes[purpose] = Column("i8", 0, self.capacity)
        return column

    # --- reading ----------------------------------------------------------------------------------------------------

    def is_known(self, slot: int) -> bool:
        return slot < self.count and bool(self.flags.view[slot] & KNOWN)

    def has_tag(self, slot: int, tag: str, now_ms: int) -> bool:
        """Say whether the user bears the tag, imported or still valid among the dynamic ones."""
        until = self.dynamic.get(slot, {}).get(tag)
        if until is not None and until > now_ms:
            return True
        if tag not in self.tags.row:
            return False
        column, mask = self.tag_place(tag)
        return bool(column.view[slot] & mask)

    def attribute(self, slot: int, name: str) -> float | str | None:
        """Return an attribute: a number, a text, or None."""
        number = self.numbers.get(name)
        if number is not None:
            value: float = number.view[slot]
            if value == value:
                return value
        text = self.texts.get(name)
        return None if text is None else text.get(slot)

    def province_of(self, slot: int) -> str | None:
        """Return where a user belongs for settlement: the province said, else the first step of the organisation."""
        said = self.province.get(slot) if self.province is not None else None
        if said is not None or self.organisation is None:
            return said
        path = self.organisation.get(slot)
        return None if path is None else path.partition("/")[0]

    def subject(self, slot: int, user_id: str) -> str:
        """Return whom caps and consent count for (rule A4): the person where one is given, else the user.

        A user who started anew on the same number is another subject.
        """
        if self.person is not None:
            person = self.person.get(slot)
            if person is not None:
                return f"person:{person}"
        if self.generation:
            generation = self.generation.get(slot, 0)
            if generation:
                return f"{user_id}#{generation}"
        return user_id

    def evidence(self, slot: int, purpose: str) -> Evidence | None:
        column = self.purposes.get(purpose)
        packed = column.view[slot] if column is not None else 0
        state = packed & 3
        if state == ABSENT:
            return None
        return Evidence(state == GRANTED, packed >> 16, self.sources.texts[(packed >> 2) & 0x3FFF])

    def about(self, slot: int, now_ms: int) -> dict[str, Any] | None:
        """Tell all that is known of one user, for explaining; None where there is neither profile nor consent."""
        said = {one: told for one in sorted(self.purposes) if (told := self.evidence(slot, one)) is not None}
        if not self.is_known(slot) and not said:
            return None
        tags = [tag for tag in self.tags.texts if self.has_tag(slot, tag, now_ms)]
        tags += [tag for tag, until in self.dynamic.get(slot, {}).items() if until > now_ms and tag not in tags]
        names = sorted({*self.numbers, *self.texts})
        return {
            "tags": sorted(tags),
            "attributes": {name: held for name in names if (held := self.attribute(slot, name)) is not None},
            "organisation": None if self.organisation is None else self.organisation.get(slot),
            "province": self.province_of(slot),
            "time_zone": self.zone.get(slot),
            "dnd": bool(self.flags.view[slot] & DO_NOT_DISTURB),
            "consent": {
                one: {"granted": told.granted, "at": told.at_ms, "source": told.source} for one, told in said.items()
            },
        }

    def allows(self, purpose: str, slots: np.ndarray) -> np.ndarray:
        """Say for each slot whether the purpose may be served: granted, or not denied where the policy assumes it."""
        column = self.purposes.get(purpose)
        assumed = purpose in self.assumed
        if column is None:
            return np.full(len(slots), assumed)
        state = column.array[slots] & 3
        return np.asarray(state != DENIED if assumed else state == GRANTED)

    def blank(self, first: int, last: int) -> np.ndarray:
        """Say of slots first .. last - 1 whether nothing was ever said of them: no profile, consent, tag or closing."""
        blank = np.ones(last - first, np.bool_)
        for column in (self.flags, *self.purposes.values()):
            said = column.array[first:last] != 0
            blank[: len(said)] &= ~said
        for some in (self.dynamic, self.void_ms, self.generation):
            for slot in some:
                if first <= slot < last:
                    blank[slot - first] = False
        return blank

    # --- changing ---------------------------------------------------------------------------------------------------

    def apply_profile(self, slot: int, event: Any, now_ms: int) -> None:
        """Take a profile event: a field given replaces, None clears, a field absent (UNSET) stays."""
        self.ensure(slot + 1)
        self.flags.view[slot] |= KNOWN
        if event.tags is not UNSET:
            for column in self.tag_words:
                column.view[slot] = 0
            self._add_tags(slot, event.tags or ())
        self._add_tags(slot, event.add_tags or ())
        for tag in event.remove_tags or ():
            if tag in self.tags.row:
                column, mask = self.tag_place(tag)
                column.view[slot] &= ~mask
        if event.attributes is not UNSET:
            self._set_attributes(slot, event.attributes or {})
        if event.organisation is not UNSET and (event.organisation or self.organisation):
            self.organisation_column().set(slot, event.organisation or None)
        if event.province is not UNSET and (event.province or self.province):
            self.province = self.province or TextColumn(self.capacity)
            self.province.set(slot, event.province or None)
        if event.person is not UNSET and (event.person or self.person):
            self._set_person(slot, event.person or None)
        if event.time_zone is not UNSET:
            # A zone nobody knows is as good as none: the deployment's then counts, never "not enforced" (C5).
            self.zone.set(slot, event.time_zone if event.time_zone and is_zone(event.time_zone) else None)
        if event.dnd is not UNSET:
            flags = self.flags.view[slot] & ~DO_NOT_DISTURB
            self.flags.view[slot] = flags | DO_NOT_DISTURB if event.dnd else flags

    def _add_tags(self, slot: int, tags: Iterable[str]) -> None:
        for tag in tags:
            if tag not in self.tags.row and len(self.tags.texts) >= _MOST_TAGS:
                # Every tag costs a bit of every user: one feed must not be able to fill the memory with new ones.
                self.ignored_attributes += 1
                continue
            column, mask = self.tag_place(tag)
            column.view[slot] |= mask

    def _set_attributes(self, slot: int, attributes: Mapping[str, Any]) -> None:
        for number in self.numbers.values():
            number.view[slot] = number.fill
        for text in self.texts.values():
            text.view[slot] = MISSING
        for name, value in attributes.items():
            is_new = name not in self.numbers and name not in self.texts
            if is_new and len(self.numbers) + len(self.texts) >= _MOST_ATTRIBUTES:
                self.ignored_attributes += 1
                continue
            if isinstance(value, str):
                self.text_column(name).set(slot, value)
            elif isinstance(value, bool | int | float):
                self.number_column(name).view[slot] = float(value)

    def set_tag(self, slot: int, tag: str, until_ms: int) -> None:
        """Set a dynamic tag with its expiry instant; seen by the very next candidate (rule A1)."""
        self.ensure(slot + 1)
        tags = self.dynamic.setdefault(slot, {})
        tags[tag] = max(until_ms, tags.get(tag, 0))

    def drop_expired_tags(self, now_ms: int) -> None:
        """Forget dynamic tags that ended; changes memory only, never a decision."""
        for slot in list(self.dynamic):
            left = {tag: until for tag, until in self.dynamic[slot].items() if until > now_ms}
            if left:
                self.dynamic[slot] = left
            else:
                del self.dynamic[slot]

    def set_consent(self, slot: int, purpose: str, granted: bool, at_ms: int, source: str = "") -> bool:
        """Record a consent; the newest `at_ms` wins, on equal instants the later record. Returns whether it counts."""
        self.ensure(slot + 1)
        if at_ms <= self.void_ms.get(slot, -1):
            return False
        if purpose not in self.purposes and len(self.purposes) >= _MOST_PURPOSES:
            # No content names it yet. A yes is then no yes; a no counts, and the claim store keeps it.
            self.ignored_attributes += 1
            if not granted and self.person is not None and self.person.view[slot] != MISSING:
                others = self.persons.others(self.person.view[slot], slot)
                self._bound += [Bound(other, purpose, at_ms) for other in others]
            return not granted
        if not granted:
            self._refuse_for_person(slot, purpose, at_ms)
        column = self.purpose_column(purpose)
        packed = column.view[slot]
        if packed and at_ms < packed >> 16:
            return False
        known = source in self.sources.row or len(self.sources.texts) < _MOST_SOURCES
        row = self.sources.intern(source if known else "")
        column.view[slot] = at_ms << 16 | row << 2 | (GRANTED if granted else DENIED)
        return True

    def take_bound(self) -> list[Bound]:
        """Return whom refusals on another number of theirs have bound since the last call; the claim store must know.

        Call it after every profile, consent and inbound message.
        """
        bound, self._bound = self._bound, []
        return bound

    def _set_person(self, slot: int, person: str | None) -> None:
        """Link a number to a person: what either refused so far binds the other (A4)."""
        self.person = self.person or TextColumn(self.capacity)
        self.persons.move(self.person, slot, person)
        row = self.person.view[slot]
        if row == MISSING:
            return
        for purpose, at_ms in sorted(self.persons.refused.get(row, {}).items()):
            self._bind(slot, purpose, at_ms)
        for purpose, column in sorted(self.purposes.items()):
            packed = column.view[slot]
            if packed & 3 == DENIED:
                self._refuse_for_person(slot, purpose, packed >> 16)

    def _refuse_for_person(self, slot: int, purpose: str, at_ms: int) -> None:
        """Let a no on one number bind the person's others."""
        row = self.person.view[slot] if self.person is not None else MISSING
        if row != MISSING and self.persons.refuse(row, purpose, at_ms):
            for other in self.persons.others(row, slot):
                self._bind(other, purpose, at_ms)

    def _bind(self, slot: int, purpose: str, at_ms: int) -> None:
        """Write a person's no to one number, unless that one said yes after it, or no as late."""
        column = self.purpose_column(purpose)
        packed = column.view[slot]
        if packed and (at_ms < packed >> 16 or (at_ms == packed >> 16 and packed & 3 == DENIED)):
            return
        column.view[slot] = at_ms << 16 | self.sources.intern(PERSON_SOURCE) << 2 | DENIED
        self._bound.append(Bound(slot, purpose, at_ms))

    def apply_consent(self, slot: int, event: Any) -> bool:
        """Take a consent event (`purpose, granted, at_ms, source`)."""
        source = event.source if isinstance(event.source, str) else ""
        return self.set_consent(slot, event.purpose, event.granted, event.at_ms, source)

    def apply_inbound(self, slot: int, event: Any) -> str | None:
        """Take an inbound message; returns the purpose it revokes, or None if it is no opt-out (rule A3)."""
        if not is_opt_out(event.text):
            return None
        purpose = f"marketing.{event.channel}"
        return purpose if self.set_consent(slot, purpose, False, event.at_ms, "inbound-message") else None

    def was_closed_since(self, slot: int, at_ms: int) -> bool:
        """Say whether the slot was closed by an event of this instant or a later one."""
        return at_ms <= self.void_ms.get(slot, -1)

    def close(self, slot: int, at_ms: int) -> None:
        """Start a new user in this slot (rule A4): consent is void, older consent records no longer count.

        For `user-closed` and `address-changed` alike: a recycled number may belong to a stranger.
        """
        self.ensure(slot + 1)
        void_ms, generation = max(at_ms, self.void_ms.get(slot, -1)), self.generation.get(slot, 0) + 1
        self.clear(slot)
        self.void_ms[slot], self.generation[slot] = void_ms, generation

    def clear(self, slot: int) -> None:
        """Forget everything of a slot, for a slot that is given to another user."""
        if self.person is not None:
            self.persons.move(self.person, slot, None)
        for column in self._columns():
            column.clear(slot)
        self.dynamic.pop(slot, None)
        self.void_ms.pop(slot, None)
        self.generation.pop(slot, None)

    def forget(self, slot: int) -> None:
        """Clear a slot, and drop the texts that nobody else has (I2). Costs a pass over the columns."""
        self.clear(slot)
        for column in self._columns():
            if isinstance(column, TextColumn):
                column.drop_unused()

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def arrays(self) -> dict[str, np.ndarray]:
        """Return every column by name, cut to `count`; `objects()` names what they mean."""
        named = {"flags": self.flags, "zone": self.zone, "activity": self.activity.column}
        named |= {f"tags/{row}": column for row, column in enumerate(self.tag_words)}
        named |= {f"number/{name}": column for name, column in self.numbers.items()}
        named |= {f"text/{name}": column for name, column in self.texts.items()}
        named |= {f"purpose/{name}": column for name, column in self.purposes.items()}
        for name in ("organisation", "province", "person"):
            if getattr(self, name) is not None:
                named[name] = getattr(self, name)
        return {name: column.array[: self.count] for name, column in named.items()}

    def objects(self) -> dict[str, Any]:
        """Return what the arrays refer to, as plain objects fit for JSON."""
        texts = {f"text/{name}": column.names.texts for name, column in self.texts.items()}
        for name in ("zone", "organisation", "province", "person"):
            if getattr(self, name) is not None:
                texts[name] = getattr(self, name).names.texts
        return {
            "tags": self.tags.texts,
            "sources": self.sources.texts,
            "texts": texts,
            "dynamic": [[slot, tag, until] for slot, tags in self.dynamic.items() for tag, until in tags.items()],
            "void_ms": [list(pair) for pair in self.void_ms.items()],
            "generation": [list(pair) for pair in self.generation.items()],
            "refused": self.persons.state(),
            "activity": self.activity.state(),
        }

    def restore(self, arrays: Mapping[str, np.ndarray], objects: Mapping[str, Any]) -> None:
        """Take over what `arrays()` and `objects()` gave.

        Columns are new ones, so whoever compiled against the old must compile again (`Decider.restore` does).
        """
        self.count = self.capacity = len(arrays["flags"])
        self.tag_words, self.texts, self.numbers, self.purposes = [], {}, {}, {}
        self.organisation = self.province = self.person = None
        self.activity = Activity(self.capacity)  # a checkpoint older than this count begins it anew
        if "activity" in objects:
            self.activity.restore(objects["activity"])
        self.tags, self.sources = Names(objects["tags"]), Names(objects["sources"])
        for tag in self.tags.texts:
            self.tag_place(tag)
        for name, array in arrays.items():
            self._column_named(name).load(np.array(array))
        for name, texts in objects["texts"].items():
            self._text_named(name).names = Names(texts)
        self.dynamic = {}
        for slot, tag, until in objects["dynamic"]:
            self.dynamic.setdefault(slot, {})[tag] = until
        self.void_ms = dict(objects["void_ms"])
        self.generation = dict(objects["generation"])
        self.persons.rebuild(self.person, self.count)
        self.persons.restore(objects["refused"])

    def _column_named(self, name: str) -> Column:
        kind, _, rest = name.partition("/")
        if kind == "tags":
            return self.tag_words[int(rest)]
        if kind == "number":
            return self.number_column(rest)
        if kind == "purpose":
            return self.purpose_column(rest)
        if kind == "flags":
            return self.flags
        if kind == "activity":
            return self.activity.column
        return self._text_named(name)

    def _text_named(self, name: str) -> TextColumn:
        if name.startswith("text/"):
            return self.text_column(name[5:])
        if name == "zone":
            return self.zone
        if getattr(self, name) is None:
            setattr(self, name, TextColumn(self.capacity))
        column = getattr(self, name)
        assert isinstance(column, TextColumn)
        return column
