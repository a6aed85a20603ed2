"""CROSS: two fixes outside, the way between them through a fence (P8)."""

from __future__ import annotations

from engine.kernels import kernel


@kernel
def write_crossings(state, rules, fences, out, fix, begin):  # type: ignore[no-untyped-def]
    pass
