"""Keep Python's garbage collector, heap and thread switches off the hot path.

Content is tens of thousands of objects that live as long as the process; every full collection walks them, measured at
tens of milliseconds in the middle of a batch. Frozen they are never walked again, and what a batch makes is freed by
counting anyway.

And keep arrays that grow with users out of the heap: glibc puts ever larger blocks there once one of their size was
freed, and every array that grew left a hole; a tenth of the process was such holes.

And let threads take turns sooner: the engine, the event loop and claims share one interpreter, and whoever comes back
from a call that released it waits for the whole switch interval of whoever holds it. With Python's 5 ms an offer
waited several times so long on its way.
"""

from __future__ import annotations

import ctypes
import gc
import sys

_YOUNG, _OLDER = 10_000, 500
"""A young collection of 100,000 objects held everything up for 30 ms; of these it takes 3."""
_SWITCH_S = 0.0005
_M_MMAP_THRESHOLD = -3
_MAPPED_FROM_BYTES = 4 << 20
"""More than any array of one batch, so that the hot path asks the kernel for nothing."""


def settle() -> None:
    """Collect once, then take all that lives now out of later collections; call it after content became live.

    Again after much of it went: what was taken out before is looked through once more.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, _OLDER, 1000)
    sys.setswitchinterval(_SWITCH_S)
    _map_large_arrays()


def _map_large_arrays() -> None:
    """Give every large array pages of its own, which go back when it is freed. Other C libraries have no such call."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_FROM_BYTES)
