"""The drawings of a backtest page: offers by hour, reasons, and the map, as inline SVG."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any
from zoneinfo import ZoneInfo

from engine.definitions import Fence, Shape

_HOUR_MS = 3_600_000
_COLOURS = 6
_M_PER_E7 = 0.0111319491  # of latitude
_WIDTH = 1100
_MOST_REASONS = 16


def draw_hours(sides: Sequence[dict[str, Any]], zone: ZoneInfo) -> str:
    """Stacked columns of offers, an hour or a day each; two sides one above the other, to the same scale."""
    order: Counter[str] = Counter()
    for side in sides:
        for row in side["hours"]:
            order[row["scenario"]] += row["offers"]
    if not order:
        return '<p class="soft">no offers</p>'
    leading = [name for name, _ in order.most_common(_COLOURS)]
    hours = [row["hour"] for side in sides for row in side["hours"]]
    is_daily = max(hours) - min(hours) > 5 * 24 * _HOUR_MS
    columns = [_columns(side, leading, zone, is_daily) for side in sides]
    starts = sorted({start for one in columns for start in one})
    if not is_daily:
        starts = list(range(starts[0], starts[-1] + _HOUR_MS, _HOUR_MS))
    most = max(sum(parts.values()) for one in columns for parts in one.values())
    drawings = []
    for side, one in zip(sides, columns, strict=True):
        title = f"<h3>{escape(side['name'])}</h3>" if len(sides) > 1 else ""
        drawings.append(title + _stacked(one, starts, most, [*leading, "others"], zone, is_daily))
    named = leading + (["others"] if len(order) > len(leading) else [])
    key = "".join(
        f'<span><i style="background:var(--c{row})"></i>{escape(name)}</span>' for row, name in enumerate(named)
    )
    return "".join(drawings) + f'<div class="key">{key}</div>'


def _columns(side: dict[str, Any], leading: list[str], zone: ZoneInfo, is_daily: bool) -> dict[int, Counter[str]]:
    made: defaultdict[int, Counter[str]] = defaultdict(Counter)
    for row in side["hours"]:
        start = row["hour"]
        if is_daily:
            here = _local(start, zone).replace(hour=0, minute=0)
            start = round(here.timestamp() * 1000)
        made[start][row["scenario"] if row["scenario"] in leading else "others"] += row["offers"]
    return dict(made)


def _stacked(
    columns: dict[int, Counter[str]], starts: list[int], most: int, names: list[str], zone: ZoneInfo, is_daily: bool
) -> str:
    height, left, bottom, top = 210, 46, 24, 10
    step = (_WIDTH - left) / len(starts)
    tick = _tick(most)
    scale = (height - top - bottom) / (tick * math.ceil(most / tick))
    parts = []
    for number in range(math.ceil(most / tick) + 1):
        y = height - bottom - number * tick * scale
        parts.append(f'<line x1="{left}" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--line)"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{number * tick:,}</text>')
    wanted = max(1, math.ceil(len(starts) / 16))
    for place, start in enumerate(starts):
        here = _local(start, zone)
        x, y = left + place * step, height - bottom
        held = columns.get(start, Counter())
        label = here.strftime("%d %b") if is_daily else here.strftime("%H:%M")
        whole = sum(held.values())
        bars = []
        for row, name in enumerate(names):
            tall = held[name] * scale
            y -= tall
            if tall:
                bars.append(
                    f'<rect x="{x + step * 0.1:.1f}" y="{y:.1f}" width="{step * 0.8:.1f}" height="{tall:.2f}" '
                    f'fill="var(--c{row})"/>'
                )
        told = "&#10;".join(f"{escape(name)}: {held[name]:,}" for name in names if held[name])
        parts.append(f"<g><title>{label}: {whole:,} offers&#10;{told}</title>{''.join(bars)}</g>")
        if place % wanted == 0:
            parts.append(f'<text x="{x + step / 2:.1f}" y="{height - 6}" text-anchor="middle">{label}</text>')
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="offers by hour">{"".join(parts)}</svg>'


def draw_reasons(sides: Sequence[dict[str, Any]]) -> str:
    """Bars of candidates by outcome and reason, the most frequent first; two sides in pairs."""
    counts: list[Counter[tuple[str, str]]] = []
    for side in sides:
        found: Counter[tuple[str, str]] = Counter()
        for row in side["reasons"]:
            found[row["outcome"], row["reason"]] += row["count"]
        counts.append(found)
    everything = sum(counts, Counter())
    keys = [key for key, _ in everything.most_common(_MOST_REASONS)]
    if not keys:
        return '<p class="soft">no candidates</p>'
    most = max(found[key] for found in counts for key in keys)
    left, right, bar, gap = 190, 120, 15 if len(sides) > 1 else 18, 10
    row_height = bar * len(sides) + gap
    parts = []
    for row, (outcome, reason) in enumerate(keys):
        y = row * row_height
        name = "offer" if reason == "granted" else f"{reason} (held)" if outcome == "held" else reason
        parts.append(
            f'<text x="{left - 10}" y="{y + bar * len(sides) / 2 + 4:.0f}" text-anchor="end" class="value">'
            f"{escape(name)}<title>{outcome} / {escape(reason)}</title></text>"
        )
        for number, found in enumerate(counts):
            long = max(1.0, found[outcome, reason] / most * (_WIDTH - left - right)) if found[outcome, reason] else 0
            colour = "--first" if number == 0 else "--second"
            faded = "" if outcome in ("offer", "withheld") else ' fill-opacity="0.55"'
            parts.append(
                f'<rect x="{left}" y="{y + number * bar}" width="{long:.1f}" height="{bar - 2}" rx="2" '
                f'fill="var({colour})"{faded}/>'
                f'<text x="{left + long + 8:.1f}" y="{y + number * bar + bar - 4}">{found[outcome, reason]:,}'
                f" \N{MIDDLE DOT} {100 * found[outcome, reason] / max(1, sum(found.values())):.1f} %</text>"
            )
    key = ""
    if len(sides) > 1:
        key = "".join(
            f'<span><i style="background:var({colour})"></i>{escape(side["name"])}</span>'
            for side, colour in zip(sides, ("--first", "--second"), strict=False)
        )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {len(keys) * row_height}" role="img" aria-label="reasons">{"".join(parts)}</svg>'
        f'<div class="key">{key}</div>'
    )


def draw_map(side: dict[str, Any], fences: Sequence[Fence], most: int) -> str:
    """Outlines of the fences around those with offers, shaded by offers; a dot where an outline would be too small.

    most  offers of the darkest, the same for maps that are compared
    """
    offers = {row["fence"]: row["offers"] for row in side["fences"]}
    drawn = [fence for fence in fences if fence.parts]
    lit = [fence for fence in drawn if fence.id in offers]
    if not lit:
        return '<p class="soft">the fences with offers have no outline</p>'
    west, south, east, north = _bounds(lit)
    middle = math.cos(math.radians((south + north) / 2e7))
    pad = 0.06 * max((east - west) * middle, north - south, 20_000)
    width, most_height = 560.0, 520.0
    scale = min((width - 1) / ((east - west) * middle + 2 * pad), most_height / (north - south + 2 * pad))
    height = (north - south + 2 * pad) * scale
    shift = (width - ((east - west) * middle) * scale) / 2

    def at(lon_e7: float, lat_e7: float) -> tuple[float, float]:
        return (lon_e7 - west) * middle * scale + shift, (north + pad - lat_e7) * scale

    parts = [f'<rect width="{width:.0f}" height="{height:.0f}" rx="8" fill="var(--land)"/>']
    for fence in sorted(drawn, key=lambda one: one.id in offers):
        x, y = at(*_middle(fence))
        if not (-40 < x < width + 40 and -40 < y < height + 40):
            continue
        number = offers.get(fence.id)
        weight = 0.0 if number is None else math.sqrt((number if isinstance(number, int) else 5) / max(most, 10))
        colour = f'fill="var(--heat)" fill-opacity="{0.12 + 0.5 * weight:.2f}"' if number is not None else 'fill="none"'
        line = (
            'stroke="var(--heat)" stroke-width="1"' if number is not None else 'stroke="var(--soft)" stroke-width="0.6"'
        )
        told = f"{escape(fence.name or fence.id)}: {number if number is not None else 0} offers"
        body = _outline(fence, at, scale, colour, line)
        if number is not None:
            body += f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{3 + 9 * weight:.1f}" {colour} {line}/>'
        parts.append(f"<g><title>{told}</title>{body}</g>")
    parts.append(_scale_bar(scale, height))
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="map of fences, {escape(side["name"])}">'
        f"{''.join(parts)}</svg>"
    )


def _outline(fence: Fence, at: Any, scale: float, colour: str, line: str) -> str:
    if fence.shape is Shape.CIRCLE:
        x, y = at(*fence.parts[0][0][0])
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{fence.radius_m / _M_PER_E7 * scale:.2f}" {colour} {line}/>'
    if fence.shape is Shape.CORRIDOR:
        points = " ".join("{:.1f},{:.1f}".format(*at(*point)) for point in fence.parts[0][0])
        wide = max(1.0, 2 * fence.buffer_m / _M_PER_E7 * scale)
        return (
            f'<polyline points="{points}" fill="none" stroke="{"var(--heat)" if "heat" in line else "var(--soft)"}" '
            f'stroke-opacity="0.4" stroke-width="{wide:.1f}" stroke-linecap="round"/>'
        )
    rings = (_ring(ring, at) for polygon in fence.parts for ring in polygon)
    return f'<path d="{"".join(rings)}" fill-rule="evenodd" {colour} {line}/>'


def _ring(ring: Any, at: Any) -> str:
    """One ring as a path; points closer than half a pixel to the last one are left out."""
    kept: list[tuple[float, float]] = []
    for point in ring:
        x, y = at(*point)
        if not kept or abs(x - kept[-1][0]) + abs(y - kept[-1][1]) > 0.5:
            kept.append((x, y))
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in kept) + "Z"


def _scale_bar(scale: float, height: float) -> str:
    """A line of a round length, at most a fifth of the map."""
    m_per_px = _M_PER_E7 / scale
    length_m = 10 ** math.floor(math.log10(110 * m_per_px))
    length_m *= next(factor for factor in (5, 2, 1) if factor * length_m <= 110 * m_per_px)
    name = f"{length_m / 1000:g} km" if length_m >= 1000 else f"{length_m:g} m"
    long, y = length_m / m_per_px, height - 14
    return (
        f'<path d="M14 {y - 4:.1f}V{y:.1f}H{14 + long:.1f}V{y - 4:.1f}" fill="none" stroke="var(--soft)"/>'
        f'<text x="{20 + long:.1f}" y="{y + 1:.1f}">{name}</text>'
    )


def _bounds(fences: Iterable[Fence]) -> tuple[float, float, float, float]:
    lons, lats = [], []
    for fence in fences:
        for polygon in fence.parts:
            for ring in polygon:
                lons += [float(ring[:, 0].min()), float(ring[:, 0].max())]
                lats += [float(ring[:, 1].min()), float(ring[:, 1].max())]
    return min(lons), min(lats), max(lons), max(lats)


def _middle(fence: Fence) -> tuple[float, float]:
    if fence.lon or fence.lat:
        return fence.lon * 1e7, fence.lat * 1e7
    west, south, east, north = _bounds([fence])
    return (west + east) / 2, (south + north) / 2


def _tick(most: int) -> int:
    """A round step that cuts `most` into three to six."""
    rough = max(1.0, most / 5)
    size = 10 ** math.floor(math.log10(rough))
    return int(next(factor * size for factor in (1, 2, 5, 10) if factor * size >= rough))


def _local(at_ms: int, zone: ZoneInfo) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, UTC).astimezone(zone)
