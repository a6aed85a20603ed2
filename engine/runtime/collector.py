"""Keep Python's cyclic garbage collector off the hot path.

Content is tens of thousands of objects that live as long as the process; every full collection walks them, measured at
tens of milliseconds in the middle of a batch. Frozen they are never walked again, and what a batch makes is freed by
counting anyway.
"""

from __future__ import annotations

import gc

_YOUNG = 100_000


def settle() -> None:
    """Collect once, then take all that lives now out of later collections; call it after content became live."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, 50, 1000)
