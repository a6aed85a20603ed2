"""The content's apps as the table that the kernel reads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.behavior import catalogue_kernel as kernel
from engine.definitions import AppTable


def compile_apps(apps: AppTable) -> np.ndarray | None:
    """Build the table of `fill_categories`; None without apps. 200,000 apps take some 50 ms."""
    if not apps.apps:
        return None
    known = {category: row for row, category in enumerate(dict.fromkeys(apps.categories))}
    categories = _hashes(tuple(known))
    rows = np.fromiter((known[category] for category in apps.categories), np.int64, len(apps.apps))
    capacity = 8
    while capacity < 2 * len(apps.apps):
        capacity *= 2
    table = np.zeros(capacity, kernel.APP_CATEGORY)
    kernel.fill_catalogue(_hashes(apps.apps), categories[rows], table)
    return table


def _hashes(texts: Sequence[str]) -> np.ndarray:
    encoded = [text.encode() for text in texts]
    end = np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)))
    hashes = np.zeros(len(encoded), np.uint64)
    kernel.hash_texts(np.frombuffer(b"".join(encoded), np.uint8), end, hashes)
    return hashes
