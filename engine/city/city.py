"""The city as a source of events: registrations first, then one day in time order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import orjson

from engine.city import signals
from engine.city.apps import usage_sorts
from engine.city.day import plan
from engine.city.people import Person, address, draw_people
from engine.city.places import places_of
from engine.definitions import Content

FRIDAY = date(2026, 11, 20)
OPT_OUT_WORDS = ("R", "TD", "退订", "拒收")


@dataclass(frozen=True, slots=True)
class Slice:
    """Events of a span of the day: newline-delimited JSON up to (not including) `until_ms`."""

    until_ms: int
    events: int
    lines: bytes


class City:
    """`people` inhabitants on one day; same content, people, seed and day: same bytes."""

    def __init__(
        self,
        content: Content,
        *,
        people: int = 3_000,
        seed: int = 1,
        day: date = FRIDAY,
        from_hour: float = 6.5,
        until_hour: float = 22.5,
    ) -> None:
        if not content.fences:
            raise ValueError("a city needs fences: its places are the content's")
        midnight = datetime(day.year, day.month, day.day, tzinfo=ZoneInfo("Asia/Shanghai"))
        midnight_ms = int(midnight.timestamp() * 1000)
        self.begin_ms = midnight_ms + int(from_hour * 3_600_000)
        self.end_ms = midnight_ms + int(until_hour * 3_600_000)
        self.channels = tuple(sorted({channel for one in content.scenarios for channel in one.offer.channels}))
        places = places_of(content)
        self.people = draw_people(content, places, people, seed, self.channels)
        weekend = day.weekday() >= 5
        days = [
            plan(person, places, weekend, np.random.default_rng([seed, 2, person.number])) for person in self.people
        ]
        legs = signals.leg_array(self.people, days)
        self._sorts = usage_sorts(content)
        streams = [np.random.default_rng([seed, 3, stream]) for stream in range(3)]
        rows = np.concatenate(
            [
                signals.fixes(legs, self.people, midnight_ms, streams[0]),
                signals.cell_fixes(legs, places, people, midnight_ms, streams[1]),
                signals.usage(legs, self.people, self._sorts, places.use["cinema"], midnight_ms, streams[2]),
                signals.opt_outs(self.people, midnight_ms),
            ]
        )
        rows = rows[(rows["at_ms"] >= self.begin_ms) & (rows["at_ms"] < self.end_ms)]
        self._rows = rows[np.argsort(rows["at_ms"], kind="stable")]
        self._cells = [orjson.dumps(cell).decode() for cell in places.cell_ids]
        self._bodies = [sort.body for sort in self._sorts]

    @property
    def events(self) -> int:
        """How many events the day has, registrations not counted."""
        return len(self._rows)

    def registrations(self) -> bytes:
        """Profiles and consents of everybody, a minute before the day begins."""
        lines = []
        for person in self.people:
            at = {"v": 1, "user": person.user, "at": self.begin_ms - 60_000}
            lines.append(orjson.dumps({**at, "type": "profile", "id": f"p{person.number}", **person.profile}))
            for purpose, granted in sorted(person.consents.items()):
                identity = f"c{person.number}-{purpose}"
                consent = {"type": "consent", "id": identity, "purpose": purpose, "granted": granted, "source": "demo"}
                lines.append(orjson.dumps({**at, **consent}))
        return b"\n".join(lines)

    def addresses(self) -> Iterator[tuple[str, str, str]]:
        """Yield (user, channel, address) for everybody and every channel of the content; all fictional."""
        for person in self.people:
            for channel in self.channels:
                yield person.user, channel, address(person, channel)

    def slices(self, step: timedelta) -> Iterator[Slice]:
        """Yield the day in slices of `step`; slices without events are yielded too, so that the pace can be kept."""
        step_ms = int(step.total_seconds() * 1000)
        edges = np.arange(self.begin_ms + step_ms, self.end_ms + step_ms, step_ms)
        ends = np.searchsorted(self._rows["at_ms"], edges)
        first = 0
        for edge, last in zip(edges.tolist(), ends.tolist(), strict=True):
            yield Slice(min(edge, self.end_ms), last - first, "\n".join(self._lines(first, last)).encode())
            first = last

    def _lines(self, first: int, last: int) -> list[str]:
        people: list[Person] = self.people
        lines = []
        rows = self._rows[first:last].tolist()
        for number, (at_ms, lon, lat, accuracy_m, person, index, what) in enumerate(rows, first):
            user = people[person].user
            if what == signals.USAGE:
                lines.append(
                    f'{{"v":1,"type":"usage","feed":"dpi","id":"x{number}","user":"{user}","at":{at_ms}{self._bodies[index]}'
                )
            elif what == signals.CELL:
                lines.append(
                    f'{{"v":1,"type":"ping","feed":"signalling","user":"{user}","at":{at_ms},"cell":{self._cells[index]}}}'
                )
            elif what == signals.INBOUND:
                word = OPT_OUT_WORDS[person % len(OPT_OUT_WORDS)]
                lines.append(
                    f'{{"v":1,"type":"inbound-message","id":"i{person}","user":"{user}","at":{at_ms},'
                    f'"channel":"sms","text":"{word}"}}'
                )
            else:
                method = "gps" if what == signals.GPS else "wifi"
                lines.append(
                    f'{{"v":1,"type":"ping","feed":"app","user":"{user}","at":{at_ms},"lon":{lon:.6f},"lat":{lat:.6f},'
                    f'"accuracy_m":{accuracy_m:.0f},"method":"{method}"}}'
                )
        return lines
