"""Draw the rows of `python -m bench latency --json`: python -m bench.latency_chart < rows > docs/latency.svg"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 760, 420, 64, 40, 150, 56
LINES = {"p50": "#2b8a3e", "p90": "#1971c2", "p99": "#e8590c", "p99.9": "#c2255c"}
_NAME = re.compile(r"latency\.(\d+)\.(p50|p90|p99|p99\.9|max)_ms")


def main() -> int:
    rows = [json.loads(line) for line in sys.stdin if line.strip()]
    print(draw(rows))
    return 0


def draw(rows: Iterable[dict[str, object]]) -> str:
    """Return a picture of quantiles over the rate, both in logarithms; dashed: the bare loop's p99."""
    ours: dict[str, dict[int, float]] = {}
    bare: dict[int, float] = {}
    for row in rows:
        found = _NAME.fullmatch(str(row["name"]))
        if found:
            rate, quantile = int(found[1]), found[2]
            value = float(str(row["value"]))
            ours.setdefault(quantile, {})[rate] = value
            if quantile == "p99":
                bare[rate] = value / float(str(row["ratio"]))
    rates = sorted(ours["p50"])
    shown = [value for name in LINES for value in ours.get(name, {}).values()] + [*bare.values()]
    low, high = min(shown) * 0.8, max(shown) * 1.25

    def x(rate: float) -> float:
        span = math.log(rates[-1] / rates[0]) or 1.0
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(rate / rates[0]) / span

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * math.log(value / low) / math.log(high / low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="14">From the instant an event is due to the hand-off of its offer</text>',
    ]
    for value in _ticks(low, high):
        parts.append(
            f'<path d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}" stroke="#dee2e6"/>'
            f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g} ms</text>'
        )
    for rate in rates:
        parts.append(
            f'<path d="M{x(rate):.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#f1f3f5"/>'
            f'<text x="{x(rate):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{rate / 1000:.1f}</text>'
        )
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 14}" text-anchor="middle">thousand events/s</text>'
    )
    for name, colour in LINES.items():
        points = ours.get(name, {})
        parts += _line([(x(rate), y(points[rate])) for rate in rates if rate in points], colour, name)
    parts += _line([(x(rate), y(bare[rate])) for rate in rates], "#868e96", "bare loop p99", dashed=True)
    parts.append("</svg>")
    return "\n".join(parts)


def _line(points: list[tuple[float, float]], colour: str, name: str, *, dashed: bool = False) -> list[str]:
    path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    px, py = points[-1]
    dots = "".join(f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="2.5" fill="{colour}"/>' for cx, cy in points)
    return [
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>{dots}',
        f'<text x="{px + 8:.1f}" y="{py + 4:.1f}" fill="{colour}">{name}</text>',
    ]


def _ticks(low: float, high: float) -> list[float]:
    steps = [base * 10.0**power for power in range(-1, 6) for base in (1, 2, 5)]
    return [step for step in steps if low <= step <= high]


if __name__ == "__main__":
    sys.exit(main())
