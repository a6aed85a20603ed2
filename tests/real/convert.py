"""Turn public trace and usage files into events of docs/contracts.md.

    python -m tests.real.convert KIND FILE --out EVENTS.ndjson

KIND is geolife, studentlife, studentlife-apps, foursquare, owntracks or bandicoot.

Each reader yields plain event objects in the order of the file; `sorted_events` puts several files into one log order.
Bandicoot's call records need the antennas beside them (`--antennas FILE`) and become pings with coordinates of a cell.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, TextIO

import numpy as np

Event = dict[str, Any]
FOURSQUARE_STAMP = "%a %b %d %H:%M:%S %z %Y"


def opened(path: Path) -> TextIO:
    """Open plain or gzipped text."""
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")


def geolife(path: Path) -> Iterator[Event]:
    """GeoLife fixes; the file states no accuracy, so the default of a GPS fix applies (L6)."""
    with opened(path) as file:
        for row in csv.DictReader(file):
            yield {
                "type": "ping",
                "feed": "app",
                "user": f"geolife-{row['user']}",
                "at": row["time_gmt"],
                "lon": float(row["lon"]),
                "lat": float(row["lat"]),
                "method": "gps",
            }


def studentlife(path: Path) -> Iterator[Event]:
    """StudentLife fixes; a network fix is wifi or cell by the column that says so."""
    with opened(path) as file:
        for row in csv.DictReader(file):
            method = "gps" if row["provider"] == "gps" else row["network_type"]
            yield {
                "type": "ping",
                "feed": "app",
                "user": f"studentlife-{row['userId']}",
                "at": int(row["timestamp"]) * 1000,
                "lon": float(row["longitude"]),
                "lat": float(row["latitude"]),
                "accuracy_m": float(row["accuracy"]),
                "method": method,
            }


def studentlife_apps(path: Path) -> Iterator[Event]:
    """The same person's running apps: an event where the app on top changed, not one a snapshot row."""
    top = None
    with opened(path) as file:
        for row in csv.DictReader(file):
            if row["top_package"] == top or not row["top_package"]:
                continue
            top = row["top_package"]
            yield {
                "type": "usage",
                "feed": "dpi",
                "user": f"studentlife-{row['userId']}",
                "at": int(row["timestamp"]) * 1000,
                "app": top,
                "category": top.split(".")[1] if "." in top else top,
                "action": "open",
            }


def foursquare(path: Path) -> Iterator[Event]:
    """Check-ins; `at` keeps the local offset of the venue (+09:00 in Tokyo)."""
    with opened(path) as file:
        for row in csv.DictReader(file):
            zone = timezone(timedelta(minutes=int(row["timezoneOffset"])))
            at = datetime.strptime(row["utcTimestamp"], FOURSQUARE_STAMP).astimezone(zone)
            yield {
                "type": "ping",
                "feed": "app",
                "user": f"tky-{row['userId']}",
                "at": at.isoformat(),
                "lon": float(row["longitude"]),
                "lat": float(row["latitude"]),
                "method": "gps",
            }


def bandicoot(path: Path, antennas: Path) -> Iterator[Event]:
    """Call records: the antenna's place as a cell fix of unknown accuracy; records without an antenna are left out."""
    with opened(antennas) as file:
        places = {row["antenna_id"]: row for row in csv.DictReader(file)}
    with opened(path) as file:
        for row in csv.DictReader(file):
            place = places.get(row["antenna_id"])
            if place is None:
                continue
            yield {
                "type": "ping",
                "feed": "signalling",
                "user": "bandicoot-ego",
                "at": row["datetime"].replace(" ", "T") + "Z",
                "lon": float(place["longitude"]),
                "lat": float(place["latitude"]),
                "method": "cell",
            }


def owntracks(path: Path) -> Iterator[Event]:
    """OwnTracks recorder lines (stamp, topic, payload): the location payloads as pings."""
    with opened(path) as file:
        for line in file:
            payload = json.loads(line.split("\t")[2])
            if payload.get("_type") != "location":
                continue
            yield {
                "type": "ping",
                "feed": "owntracks",
                "user": str(payload["tid"]),
                "at": int(payload["tst"]) * 1000,
                "lon": float(payload["lon"]),
                "lat": float(payload["lat"]),
                "accuracy_m": float(payload["acc"]),
                "method": "gps",
            }


READERS: dict[str, Callable[[Path], Iterator[Event]]] = {
    "geolife": geolife,
    "studentlife": studentlife,
    "studentlife-apps": studentlife_apps,
    "foursquare": foursquare,
    "owntracks": owntracks,
}


def at_ms(event: Event) -> int:
    at = event["at"]
    if isinstance(at, int):
        return at
    instant = datetime.fromisoformat(at).astimezone(UTC)
    return round(instant.timestamp() * 1000)


def sorted_events(*streams: Iterable[Event]) -> list[Event]:
    """All events by instant; equal instants keep the order of the files (T5)."""
    return sorted((event for stream in streams for event in stream), key=at_ms)


def pings_of(events: Iterable[Event], start_now_ms: int = 0) -> list[dict[str, Any]]:
    """What the oracle reads: snapped coordinates (L3), and `now` as the running maximum of `at` (T2)."""
    now_ms = start_now_ms
    pings = []
    for event in events:
        at = at_ms(event)
        now_ms = max(now_ms, at)
        if event["type"] != "ping":
            continue
        accuracy = event.get("accuracy_m")
        pings.append(
            {
                "user": event["user"],
                "at_ms": at,
                "now_ms": now_ms,
                "lon_e7": round(event["lon"] * 1e7),
                "lat_e7": round(event["lat"] * 1e7),
                "accuracy_m": None if accuracy is None else float(np.float32(accuracy)),
                "method": event.get("method"),
                "cell": event.get("cell"),
                "feed": event.get("feed", "default"),
                "id": event.get("id"),
            }
        )
    return pings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=[*READERS, "bandicoot"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--antennas", type=Path, help="bandicoot: the file of antenna positions")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    if chosen.kind == "bandicoot" and chosen.antennas is None:
        parser.error("bandicoot needs --antennas FILE, where antenna_id, latitude and longitude stand")
    events = (
        bandicoot(chosen.file, chosen.antennas) if chosen.kind == "bandicoot" else READERS[chosen.kind](chosen.file)
    )
    written = sorted_events(events)
    with chosen.out.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(event, ensure_ascii=False) + "\n" for event in written)
    print(f"{len(written)} events -> {chosen.out}")


if __name__ == "__main__":
    main()
