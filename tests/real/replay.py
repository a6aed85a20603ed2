"""The whole way: fences and scenarios as files, events as bytes, `opportune replay --transitions`."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from engine.definitions import Fence, Shape
from tests.real.drive import Transition

POLICY = {"time_zone": "Asia/Shanghai", "assumed_consent": ["location", "usage"]}
CLOCK_USER = "the-clock"


def run_replay(
    fences: Sequence[Fence],
    pings: Sequence[Mapping[str, Any]],
    thresholds: Mapping[str, Sequence[int]],
    end_now_ms: int,
    usage: Iterable[Mapping[str, Any]] = (),
) -> list[Transition]:
    """What the command makes of the same pings, fences and usage events; a last event moves `now` to the end."""
    with tempfile.TemporaryDirectory(prefix="opportune-real-") as name:
        folder = Path(name)
        write_fences(folder / "geofences", fences)
        write_scenarios(folder / "scenarios", thresholds)
        events = folder / "events.ndjson"
        with events.open("w") as out:
            out.writelines(json.dumps(event_of(ping)) + "\n" for ping in pings)
            out.writelines(json.dumps(event) + "\n" for event in usage)
            clock = {"type": "usage", "feed": "app", "user": CLOCK_USER, "at": end_now_ms, "app": "clock"}
            out.write(json.dumps(clock) + "\n")
        transitions = folder / "transitions.ndjson"
        command = [sys.executable, "-c", "from engine.cli import main; main()", "replay", str(events)]
        command += ["--geofences", str(folder / "geofences"), "--scenarios", str(folder / "scenarios")]
        done = subprocess.run(
            [*command, "--transitions", str(transitions)], capture_output=True, text=True, check=False, cwd=folder
        )
        if done.returncode != 0:
            raise RuntimeError(f"opportune replay ended with {done.returncode}:\n{done.stderr[-3000:]}")
        return [read_transition(line) for line in transitions.read_text().splitlines()]


def event_of(ping: Mapping[str, Any]) -> dict[str, Any]:
    """A ping as a contract event; coordinates as exact decimals of seven places."""
    event = {
        "type": "ping",
        "feed": ping["feed"],
        "user": ping["user"],
        "at": ping["at_ms"],
        "lon": ping["lon_e7"] / 1e7,
        "lat": ping["lat_e7"] / 1e7,
    }
    optional = {"accuracy_m": ping["accuracy_m"], "method": ping["method"], "id": ping["id"]}
    return event | {key: value for key, value in optional.items() if value is not None}


def write_fences(folder: Path, fences: Sequence[Fence]) -> None:
    folder.mkdir()
    features = [{"type": "Feature", "properties": properties(fence), "geometry": geometry(fence)} for fence in fences]
    collection = {"type": "FeatureCollection", "features": features}
    (folder / "real.geojson").write_text(json.dumps(collection, ensure_ascii=False))


def properties(fence: Fence) -> dict[str, Any]:
    said: dict[str, Any] = {"id": fence.id, "name": fence.name, "kind": fence.kind}
    optional = {
        "radius_m": fence.radius_m or None,
        "buffer_m": fence.buffer_m or None,
        "opening_hours": fence.opening_hours,
        "time_zone": fence.time_zone,
        "enter_delay_s": fence.enter_delay_s,
        "exit_delay_s": fence.exit_delay_s,
        "min_confidence": fence.min_confidence.name,
        "cells": list(fence.cells) or None,
        "tiling": fence.tiling or None,
    }
    for name, at_ms in (("valid_from", fence.valid_from_ms), ("valid_until", fence.valid_until_ms)):
        optional[name] = None if at_ms is None else datetime.fromtimestamp(at_ms / 1000, UTC).isoformat()
    return said | {key: value for key, value in optional.items() if value is not None}


def geometry(fence: Fence) -> dict[str, Any] | None:
    if fence.shape is Shape.CELLS:
        return None
    if fence.shape is Shape.POLYGON:
        parts = [[_closed(_degrees(ring)) for ring in part] for part in fence.parts]
        return {"type": "MultiPolygon", "coordinates": parts}
    line = _degrees(fence.parts[0][0])
    if fence.shape is Shape.CIRCLE:
        return {"type": "Point", "coordinates": line[0]}
    return {"type": "LineString", "coordinates": line}


def _degrees(ring: Any) -> list[list[float]]:
    return [[int(lon) / 1e7, int(lat) / 1e7] for lon, lat in ring]


def _closed(ring: list[list[float]]) -> list[list[float]]:
    return [*ring, ring[0]]


def write_scenarios(folder: Path, thresholds: Mapping[str, Sequence[int]]) -> None:
    """One shadow scenario a dwell threshold, so that the engine compiles it for those fences (P4)."""
    folder.mkdir()
    (folder / "policy.yaml").write_text(yaml.safe_dump(POLICY))
    fences_of: dict[int, list[str]] = defaultdict(list)
    for fence, spans in thresholds.items():
        for span in spans:
            fences_of[span].append(fence)
    for span, fences in sorted(fences_of.items()):
        scenario = {
            "id": f"real/dwell-{span}",
            "name": f"dwell of {span} s",
            "mode": "shadow",
            "goal": "retain",
            "trigger": {"dwell": {"fence": sorted(fences), "for": f"{span} s"}},
            "offer": {
                "benefit": {"id": "none", "name": "none", "class": "living", "partner": "none"},
                "channels": ["app"],
                "text": "none",
            },
        }
        (folder / f"dwell-{span}.yaml").write_text(yaml.safe_dump(scenario, allow_unicode=True))


def read_transition(line: str) -> Transition:
    """One line of the contract in the form the oracle gives."""
    one = json.loads(line)
    for name in ("crossed_at", "confirmed_at"):
        one[name] = round(datetime.fromisoformat(one[name]).timestamp() * 1000)
    one["method"] = None if one["method"] == "unknown" else one["method"]
    return {key: value for key, value in one.items() if key not in ("v", "tenant")}


def on_the_wire(transitions: Sequence[Transition]) -> list[Transition]:
    """The oracle's transitions as JSON can say them: no infinite distance."""
    return [
        {**one, "distance_m": None} if one["distance_m"] is not None and math.isinf(one["distance_m"]) else dict(one)
        for one in transitions
    ]
