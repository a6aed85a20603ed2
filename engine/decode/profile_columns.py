"""Rows of a table of users -> profile and consent events: what each column means, and what is wrong with a cell.

Pure: the caller reads the file. The columns are documented in docs/profiles.md; a row that passes here makes no dead
letter later (tests/property/test_profile_rows.py).
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import orjson

from engine.decode.times import read_instant, zone_named
from engine.errors import EventError, OpportuneError
from engine.model import DeadReason

TEXT_COLUMNS = ("person", "organisation", "province")
PLAIN_COLUMNS = ("user", "tags", *TEXT_COLUMNS, "time_zone", "dnd", "consent_at", "consent_source")
_PURPOSE = re.compile(r"(location|usage|marketing\.[a-z][a-z0-9_-]{0,31})(\.at|\.source)?")
_ATTRIBUTE = re.compile(r"attribute\.([^:]{1,256})(?::(text|number))?")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_YES = frozenset({"yes", "true", "1", "y", "granted", "是", "同意"})
_NO = frozenset({"no", "false", "0", "n", "denied", "否", "不同意"})
LONGEST_USER = 128
LONGEST_TEXT = 256
MOST_TAGS = 64
_LARGEST_EVENT = 60_000


class RowFault(NamedTuple):
    """One row that cannot be used; says what is expected, never what stands there, which may be an address."""

    row: int
    column: str
    expected: str

    def __str__(self) -> str:
        return f"row {self.row}, column {self.column}: {self.expected}"


class CellFault(Exception):
    """What a cell should have held."""


@dataclass(slots=True)
class _Consent:
    """The columns of one purpose: places in the row, -1 where there is none."""

    purpose: str
    granted: int = -1
    at: int = -1
    source: int = -1


class ProfileRows:
    """What turns the rows of one table into events.

    columns       the header
    at_ms         instant of the import, of every profile event
    latest_ms     instant after which a consent cannot have been given
    source        where consents come from that do not say so
    clear         whether an empty cell clears what is known; else it leaves it
    ignore_others whether columns that mean nothing are passed over; else they are refused

    Raises OpportuneError naming every column that cannot be used.
    """

    def __init__(
        self,
        columns: Sequence[str],
        *,
        at_ms: int,
        latest_ms: int,
        source: str = "import",
        tenant: str = "default",
        clear: bool = False,
        ignore_others: bool = False,
    ) -> None:
        self._columns = tuple(columns)
        self._latest_ms = latest_ms
        self._source = source
        self._clear = clear
        self._tenant = {} if tenant == "default" else {"tenant": tenant}
        self._at_ms = at_ms
        self._user = self._tags = self._default_at = self._default_source = -1
        self._fields: list[tuple[int, str, Callable[[Any], Any]]] = []
        self._attributes: list[tuple[int, str, Callable[[Any], Any]]] = []
        consents: dict[str, _Consent] = {}
        faults = [f"{name!r} stands there twice" for name in sorted({one for one in columns if columns.count(one) > 1})]
        self._has_profile = False
        for place, name in enumerate(columns):
            if not self._place(place, name, consents) and not ignore_others:
                near = difflib.get_close_matches(name, PLAIN_COLUMNS, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                faults.append(f"{name!r} is no column of a profile{hint}")
        if self._user < 0:
            faults.append("there is no column 'user'")
        for one in consents.values():
            if one.granted < 0:
                faults.append(f"'consent.{one.purpose}' is missing beside its time or source")
            elif one.at < 0 and self._default_at < 0:
                faults.append(f"'consent.{one.purpose}.at' or 'consent_at' must say when consent was given")
        if faults:
            raise OpportuneError("the columns cannot be used:\n  " + "\n  ".join(faults) + "\n  see docs/profiles.md")
        self._consents = tuple(consents.values())
        self._has_profile = bool(self._fields or self._attributes)

    def _place(self, place: int, name: str, consents: dict[str, _Consent]) -> bool:
        """Note what a column means; say whether it means anything."""
        if name == "user":
            self._user = place
        elif name == "tags":
            self._fields.append((place, name, _tags))
        elif name in TEXT_COLUMNS:
            self._fields.append((place, name, _text))
        elif name == "time_zone":
            self._fields.append((place, name, _zone))
        elif name == "dnd":
            self._fields.append((place, name, _yes_or_no))
        elif name == "consent_at":
            self._default_at = place
        elif name == "consent_source":
            self._default_source = place
        elif found := _ATTRIBUTE.fullmatch(name):
            self._attributes.append((place, found[1], _ATTRIBUTE_READERS[found[2]]))
        elif name.startswith("consent.") and (found := _PURPOSE.fullmatch(name.removeprefix("consent."))):
            one = consents.setdefault(found[1], _Consent(found[1]))
            setattr(one, {None: "granted", ".at": "at", ".source": "source"}[found[2]], place)
        else:
            return False
        return True

    def events(self, row: int, cells: Sequence[Any]) -> list[bytes] | RowFault:
        """Return the events of a row as JSON, or what is wrong with it. `cells` are as many as the columns.

        A cell is a text, or what a typed file holds: number, bool, datetime, list; None and "" are empty.
        """
        if len(cells) != len(self._columns):
            return RowFault(row, "-", f"{len(self._columns)} cells expected")
        place = self._user
        try:
            origin = {"user": _user(cells[place]), "at": self._at_ms, **self._tenant}
            lines = []
            if self._has_profile:
                profile: dict[str, Any] = {"type": "profile", **origin}
                for place, name, read in self._fields:
                    cell = cells[place]
                    if cell is not None and cell != "":
                        profile[name] = read(cell)
                    elif self._clear:
                        profile[name] = None
                if self._attributes:
                    attributes = {}
                    for place, name, read in self._attributes:
                        cell = cells[place]
                        if cell is not None and cell != "":
                            attributes[name] = read(cell)
                    if attributes or self._clear:
                        profile["attributes"] = attributes
                lines.append(orjson.dumps(profile))
            for one in self._consents:
                place = one.granted
                cell = cells[place]
                if cell is None or cell == "":
                    continue
                event = {"type": "consent", **origin, "purpose": one.purpose, "granted": _yes_or_no(cell)}
                place = one.at if one.at >= 0 and not _is_empty(cells[one.at]) else self._default_at
                if place < 0:
                    place = one.at
                event["at"] = self._said_at(cells[place])
                place = one.source if one.source >= 0 else self._default_source
                source = cells[place] if place >= 0 else None
                event["source"] = self._source if _is_empty(source) else _text(source)
                lines.append(orjson.dumps(event))
        except CellFault as fault:
            return RowFault(row, self._columns[place], str(fault))
        except (orjson.JSONEncodeError, UnicodeEncodeError):
            return RowFault(row, self._columns[place], "text in UTF-8 expected")
        if lines and len(lines[0]) > _LARGEST_EVENT:
            return RowFault(row, "-", f"at most {_LARGEST_EVENT} bytes expected")
        return lines

    def _said_at(self, cell: Any) -> int:
        if _is_empty(cell):
            raise CellFault("the instant of the consent expected: a consent without its time is none")
        at_ms = _instant(cell)
        if at_ms > self._latest_ms:
            raise CellFault("an instant that is not in the future expected")
        return at_ms


def _is_empty(cell: Any) -> bool:
    return cell is None or cell == ""


def _user(cell: Any) -> str:
    text = cell if isinstance(cell, str) else str(cell) if isinstance(cell, int) and not isinstance(cell, bool) else ""
    if not 1 <= len(text.encode()) <= LONGEST_USER or _CONTROL.search(text):
        raise CellFault(f"a pseudonymous id of 1 to {LONGEST_USER} bytes without control characters expected")
    return text


def _text(cell: Any) -> str:
    if not isinstance(cell, str) or not 1 <= len(cell) <= LONGEST_TEXT:
        raise CellFault(f"a text of at most {LONGEST_TEXT} characters expected")
    return cell


def _tags(cell: Any) -> list[str]:
    """A list, or texts joined by |."""
    parts = cell if isinstance(cell, list | tuple) else cell.split("|") if isinstance(cell, str) else None
    if parts is None or not all(isinstance(one, str) for one in parts):
        raise CellFault("tags joined by | expected")
    tags = [tag for one in parts if (tag := one.strip())]
    if len(tags) > MOST_TAGS or any(len(tag) > LONGEST_TEXT for tag in tags):
        raise CellFault(f"at most {MOST_TAGS} tags of at most {LONGEST_TEXT} characters expected")
    return tags


def _zone(cell: Any) -> str:
    try:
        zone_named(_text(cell))
    except EventError:
        raise CellFault("an IANA time zone such as Asia/Shanghai expected") from None
    return str(cell)


def _yes_or_no(cell: Any) -> bool:
    if isinstance(cell, bool):
        return cell
    word = str(cell).strip().casefold()
    if word in _YES:
        return True
    if word in _NO:
        return False
    raise CellFault("yes or no expected")


def _instant(cell: Any) -> int:
    if isinstance(cell, datetime):
        if cell.tzinfo is None:
            raise CellFault("an instant with its zone expected")
        cell = math.floor(cell.timestamp() * 1000)
    elif isinstance(cell, str) and cell.isascii() and cell.isdigit() and len(cell) <= 15:
        cell = int(cell)
    try:
        return read_instant(cell, None)
    except EventError as error:
        raise CellFault(
            _INSTANT_FAULTS.get(error.reason, "an instant such as 2026-01-02T03:04:05+08:00 expected")
        ) from None


_INSTANT_FAULTS: Mapping[DeadReason, str] = {
    DeadReason.NO_ZONE: "an instant with its offset expected, such as 2026-01-02T03:04:05+08:00",
    DeadReason.SECONDS_NOT_MS: "epoch milliseconds expected, not seconds",
}


def _value(cell: Any) -> str | float | bool:
    """A number where it is written as JSON writes one (so 007 stays a text), true or false, else a text."""
    if isinstance(cell, str):
        if _NUMBER.fullmatch(cell) and len(cell) <= 32:
            return _number(cell)
        if cell in ("true", "false"):
            return cell == "true"
        return _text(cell)
    if isinstance(cell, bool):
        return cell
    return _number(cell)


def _number(cell: Any) -> float:
    try:
        number = float(cell)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise CellFault("a number expected")
    return number


_ATTRIBUTE_READERS: Mapping[str | None, Callable[[Any], Any]] = {
    None: _value,
    "text": lambda cell: _text(cell if isinstance(cell, str) else str(cell)),
    "number": _number,
}
