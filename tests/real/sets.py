"""The real traces, each with the fences it is judged against. Nothing is copied: the files stay in ../shared/data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.definitions import Fence
from tests.real import convert, places

DAY_MS = 86_400_000


@dataclass(frozen=True)
class RealSet:
    """Pings in log order, fences in row order, dwell thresholds by fence, and usage events between the pings."""

    name: str
    pings: list[dict[str, Any]]
    fences: tuple[Fence, ...]
    thresholds: dict[str, tuple[int, ...]]
    usage: tuple[convert.Event, ...] = ()

    @property
    def end_now_ms(self) -> int:
        """Two days after the last record, so that every timer has fired."""
        return int(self.pings[-1]["now_ms"]) + 2 * DAY_MS


def _set(name: str, events: Iterable[convert.Event], fences: list[Fence], frequent: int) -> RealSet:
    log = convert.sorted_events(events)
    pings = convert.pings_of(log)
    rows = places.in_row_order([*fences, *places.frequent_places(pings, frequent, name)])
    usage = tuple(event for event in log if event["type"] == "usage")
    return RealSet(name, pings, rows, places.thresholds_of(rows), usage)


def geolife(data: Path, users: tuple[str, ...] = ()) -> RealSet:
    """Nine people in Beijing, or some of them; fences are drawn from those chosen."""
    events = convert.geolife(data / "traces/geolife_beijing_9users.csv.gz")
    chosen = (event for event in events if not users or event["user"].removeprefix("geolife-") in users)
    return _set("geolife", chosen, places.beijing(), 36)


def studentlife(data: Path) -> RealSet:
    """One person in Hanover with fixes of 3 to 5000 m; his apps advance `now` between them."""
    pings = convert.studentlife(data / "traces/studentlife_user00_gps.csv.gz")
    apps = convert.studentlife_apps(data / "events/studentlife_user00_running_apps.csv.gz")
    return _set("studentlife", [*pings, *apps], places.hanover(), 30)


def tokyo(data: Path) -> RealSet:
    """Three days of check-ins around cinemas, malls and department stores."""
    path = data / "traces/foursquare_tky_3days.csv.gz"
    return _set("tokyo", convert.foursquare(path), places.venues(path), 0)


def owntracks(data: Path) -> RealSet:
    """One phone on a motorway."""
    return _set("owntracks", convert.owntracks(data / "traces/owntracks_demo_iphone.rec"), places.autobahn(), 0)


def bandicoot(data: Path) -> RealSet:
    """Call records: coordinates of antennas without accuracy."""
    path = data / "traces/bandicoot_cdr_ego.csv"
    events = convert.bandicoot(path, data / "traces/bandicoot_cdr_antennas.csv")
    around = [
        places.circle("cambridge", -71.0950, 42.3650, 6_000.0),
        places.circle("antenna", -71.0836, 42.3669, 900.0),
    ]
    return _set("bandicoot", events, around, 4)


SETS = {"geolife": geolife, "studentlife": studentlife, "tokyo": tokyo, "owntracks": owntracks, "bandicoot": bandicoot}
