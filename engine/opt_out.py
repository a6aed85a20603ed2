"""Which messages of users mean "no more" (rule A3): the same words at the border and in the engine."""

from __future__ import annotations

import unicodedata

OPT_OUT_WORDS = frozenset({"R", "TD", "T", "N", "退订", "拒收"})
"""The whole message, trimmed and folded, that revokes marketing on its channel."""


def folded(text: str) -> str:
    """Return a message without regard to width and case, trimmed."""
    return unicodedata.normalize("NFKC", text).strip().casefold().upper()


def is_opt_out(text: str) -> bool:
    """Say whether a whole message is an opt-out word, whatever its width and case."""
    return folded(text) in OPT_OUT_WORDS
