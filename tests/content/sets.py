"""A small sound content set that tests bend one thing of."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import yaml

SQUARE = [[116.40, 39.90], [116.41, 39.90], [116.41, 39.91], [116.40, 39.91], [116.40, 39.90]]

FENCE: dict[str, Any] = {
    "type": "Feature",
    "properties": {"id": "beijing/one", "name": "一号商场", "kind": "mall", "tags": ["shopping"]},
    "geometry": {"type": "Polygon", "coordinates": [SQUARE]},
}

SCENARIO: dict[str, Any] = {
    "id": "national/welcome",
    "name": "欢迎",
    "goal": "touchpoints",
    "mode": "live",
    "trigger": {"enter": {"kind": "mall"}},
    "offer": {
        "benefit": {"id": "coupon", "name": "优惠券", "class": "living", "partner": "shop"},
        "channels": ["sms"],
        "text": "欢迎来到{fence_name}",
    },
}

POLICY: dict[str, Any] = {"time_zone": "Asia/Shanghai", "claim_domains": ["quan.example.cn"]}


def fence(**changes: Any) -> dict[str, Any]:
    """Return FENCE with other properties; `geometry` replaces the geometry, `None` removes a property."""
    feature = copy.deepcopy(FENCE)
    if "geometry" in changes:
        feature["geometry"] = changes.pop("geometry")
    feature["properties"] = {k: v for k, v in {**feature["properties"], **changes}.items() if v is not None}
    return feature


def scenario(**changes: Any) -> dict[str, Any]:
    """Return SCENARIO with other fields; `offer__text=...` reaches into a mapping."""
    given = copy.deepcopy(SCENARIO)
    for name, value in changes.items():
        *path, last = name.split("__")
        target = given
        for step in path:
            target = target.setdefault(step, {})
        target[last] = value
    return given


def collection(*features: Any, **members: Any) -> dict[str, Any]:
    return {"type": "FeatureCollection", **members, "features": list(features)}


def write_set(
    root: Path,
    fences: dict[str, Any] | str | bytes | None = None,
    scenarios: list[dict[str, Any]] | None = None,
    policy: dict[str, Any] | None = None,
    cells: str | None = None,
    files: dict[str, str | bytes] | None = None,
) -> tuple[Path, Path]:
    """Write a content set below `root`; what is not given is sound. `files` are written last, as they are."""
    geofences, folder = root / "geofences", root / "scenarios"
    (geofences / "cells").mkdir(parents=True, exist_ok=True)
    folder.mkdir(exist_ok=True)
    text = fences if isinstance(fences, str | bytes) else json.dumps(fences or collection(FENCE))
    _write(geofences / "f.geojson", text)
    for number, one in enumerate([SCENARIO] if scenarios is None else scenarios):
        plain = json.loads(json.dumps(one))  # shared parts would be written as aliases
        _write(folder / f"s{number}.yaml", yaml.safe_dump(plain, allow_unicode=True, sort_keys=False))
    _write(folder / "policy.yaml", yaml.safe_dump(POLICY if policy is None else policy, allow_unicode=True))
    if cells is not None:
        _write(geofences / "cells" / "c.csv", cells)
    for name, value in (files or {}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        _write(root / name, value)
    return geofences, folder


def _write(path: Path, text: str | bytes) -> None:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
