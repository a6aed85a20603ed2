"""How large the world of a seed is: most are small, so that many fit into a test run; large ones come round in turn."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """People besides the scripted ones, hours from six in the morning on, how often an idle journal ticks, and the
    longest time between two checkpoints."""

    name: str
    people: int
    hours: int
    tick_ms: int
    snapshot_ms: int


SIZES = {
    one.name: one
    for one in (
        Size("small", 3, 8, 420_000, 16_000_000),
        Size("middle", 14, 17, 150_000, 4_000_000),  # reaches into the quiet hours
        Size("large", 40, 24, 60_000, 3_000_000),
    )
}


def size_of(seed: int) -> Size:
    """Of fifty seeds one is large and two are middling."""
    return SIZES["large" if seed % 50 == 0 else "middle" if seed % 25 == 13 else "small"]
