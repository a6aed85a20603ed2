"""CROSS: two fixes outside, the way between them through a fence (P8)."""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.geometry_kernel import FenceArrays
from engine.kernels import kernel
from engine.presence.layout_kernel import Rules, State


@kernel
def write_crossings(state: State, rules: Rules, fences: FenceArrays, out: np.ndarray, fix: Any, begin: int) -> None:
    pass
