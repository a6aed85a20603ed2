"""The transition table of one user and one fence (P1): data that the kernel runs on, and its print."""

from __future__ import annotations

import numpy as np

from engine.presence import layout_kernel as layout

STATES = ("OUTSIDE", "ENTERING", "INSIDE", "EXITING", "SUSPENDED")
INPUTS = (
    (layout.IN_WAITING, "IN, enter delay running"),
    (layout.IN_ENOUGH, "IN, enter delay over"),
    (layout.UNSURE, "UNSURE (point inside)"),
    (layout.NEAR, "NEAR"),
    (layout.BEYOND, "BEYOND, run not enough"),
    (layout.BEYOND_ENOUGH, "BEYOND, run enough"),
    (layout.ENTER_DUE, "timer: enter delay"),
    (layout.EXIT_DUE, "timer: exit delay"),
    (layout.SUSPEND_DUE, "timer: silent for ttl"),
    (layout.EXPIRE_DUE, "timer: silent for 24 h"),
    (layout.CLOSING, "timer: fence closes"),
    (layout.REMOVED, "fence removed"),
    (layout.HOP_UNDONE, "return, begun by the hop"),
    (layout.EXIT_TAKEN_BACK, "return, EXIT by the hop"),
)
_O, _E, _I, _X, _S = range(5)
_NEXT = {
    #                        OUTSIDE ENTERING INSIDE EXITING SUSPENDED
    layout.IN_WAITING: (_E, _E, _I, _I, _I),
    layout.IN_ENOUGH: (_I, _I, _I, _I, _I),
    layout.UNSURE: (_O, _O, _I, _I, _I),
    layout.NEAR: (_O, _O, _I, _I, _S),
    layout.BEYOND: (_O, _O, _X, _X, _O),
    layout.BEYOND_ENOUGH: (_O, _O, _O, _O, _O),
    layout.ENTER_DUE: (_O, _I, _I, _X, _S),
    layout.EXIT_DUE: (_O, _E, _I, _O, _S),
    layout.SUSPEND_DUE: (_O, _O, _S, _S, _S),
    layout.EXPIRE_DUE: (_O, _O, _O, _O, _O),
    layout.CLOSING: (_O, _O, _O, _O, _O),
    layout.REMOVED: (_O, _O, _O, _O, _O),
    layout.HOP_UNDONE: (_O, _O, _I, _I, _S),
    layout.EXIT_TAKEN_BACK: (_I, _E, _I, _X, _S),
}
_PRESENT = frozenset((_I, _X, _S))


def transition_table() -> np.ndarray:
    """The next state of (state, input) as uint8[5, INPUTS]."""
    return np.array([_NEXT[number] for number in range(layout.INPUTS)], np.uint8).T.copy()


def printed() -> str:
    """The table as Markdown: the next state, and what is emitted on the way."""
    lines = ["| fix or timer | " + " | ".join(STATES) + " |", "|---" * 6 + "|"]
    for number, name in INPUTS:
        cells = []
        for state, after in enumerate(_NEXT[number]):
            gives = ""
            if state in _PRESENT and after not in _PRESENT:
                gives = " + EXIT"
            elif state not in _PRESENT and after in _PRESENT:
                gives = " + ENTER"
            cells.append("." if after == state else STATES[after] + gives)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
