"""The catalogue of apps as a hash table: the category of usage events that name an app and no category (B1)."""

from __future__ import annotations

import numpy as np

from engine.hashing_kernel import address_of, hash_at
from engine.kernels import kernel, lean_kernel
from engine.model import EventType
from engine.prefetch_kernel import prefetch

APP_CATEGORY = np.dtype([("app", "u8"), ("category", "u8")])
"""One app by hashes; app 0 is an empty slot."""
SLOT_BYTES = APP_CATEGORY.itemsize

_USAGE = int(EventType.USAGE)
_AHEAD = 24  # events between asking for memory and using it: about one memory latency
_NONE = np.uint64(0)


@kernel
def hash_texts(data: np.ndarray, end: np.ndarray, out: np.ndarray) -> None:
    """Hash many texts that lie one behind another: text i ends at end[i].  uint8[B], int64[N], out uint64[N]."""
    base = address_of(data)
    start = np.int64(0)
    for row in range(end.shape[0]):
        out[row] = hash_at(base + start, end[row] - start)
        start = end[row]


@lean_kernel
def fill_catalogue(apps: np.ndarray, categories: np.ndarray, table: np.ndarray) -> None:
    """Put uint64[N] hashes of apps and their categories into an empty table of at least 2 N slots, a power of two."""
    mask = np.int64(table.shape[0] - 1)
    for row in range(apps.shape[0]):
        slot = np.int64(apps[row] & np.uint64(mask))
        while table[slot].app != _NONE:
            slot = (slot + 1) & mask
        table[slot].app = apps[row]
        table[slot].category = categories[row]


@lean_kernel
def fill_categories(events: np.ndarray, table: np.ndarray) -> None:
    """Give usage events without a category the one of their app, where the catalogue knows it.

    events  EVENT[N]         `category_hash` is written
    table   APP_CATEGORY[C]  C a power of two, by the app's hash

    Cost: nothing for events that name their category; one cache line, asked for ahead, for the others.
    """
    mask = np.int64(table.shape[0] - 1)
    base = address_of(table)
    count = events.shape[0]
    for row in range(count):
        if row + _AHEAD < count:
            coming = events[row + _AHEAD]
            if coming.type == _USAGE and coming.category_hash == _NONE:
                prefetch(base + np.int64(coming.app_hash & np.uint64(mask)) * SLOT_BYTES)
        event = events[row]
        if event.type != _USAGE or event.category_hash != _NONE:
            continue
        slot = np.int64(event.app_hash & np.uint64(mask))
        while table[slot].app != _NONE:
            if table[slot].app == event.app_hash:
                event.category_hash = table[slot].category
                break
            slot = (slot + 1) & mask
