"""Growing arrays with cheap single reads: the storage of the profile table."""

from __future__ import annotations

from typing import Any

import numpy as np

MISSING = -1


class Column:
    """One value per user slot. `view[slot]` gives a Python number at a quarter of the cost of indexing the array."""

    __slots__ = ("array", "fill", "view")

    def __init__(self, dtype: str, fill: float, capacity: int) -> None:
        self.fill = fill
        self.load(np.full(capacity, fill, dtype))

    def grow(self, capacity: int) -> None:
        """Make room for `capacity` slots; what is new holds the fill value."""
        wider = np.full(capacity, self.fill, self.array.dtype)
        wider[: len(self.array)] = self.array
        self.load(wider)

    def load(self, array: Any) -> None:
        self.array: Any = array
        self.view: Any = memoryview(array)

    def clear(self, slot: int) -> None:
        self.view[slot] = self.fill if self.array.dtype.kind == "f" else int(self.fill)


class Names:
    """Texts kept once each, known by their row; rows are never reused."""

    __slots__ = ("row", "texts")

    def __init__(self, texts: list[str] | None = None) -> None:
        self.texts: list[str] = list(texts or ())
        self.row = {text: row for row, text in enumerate(self.texts)}

    def intern(self, text: str) -> int:
        row = self.row.get(text)
        if row is None:
            row = self.row[text] = len(self.texts)
            self.texts.append(text)
        return row


class TextColumn(Column):
    """A column of interned texts; MISSING where there is none."""

    __slots__ = ("names",)

    def __init__(self, capacity: int, dtype: str = "i4") -> None:
        super().__init__(dtype, MISSING, capacity)
        self.names = Names()

    def set(self, slot: int, text: str | None) -> None:
        self.view[slot] = MISSING if text is None else self.names.intern(text)

    def drop_unused(self) -> None:
        """Blank the texts that no slot has any more: one that only a forgotten user had is a trace (I2)."""
        used = set(np.unique(self.array).tolist())
        for row, text in enumerate(self.names.texts):
            if row not in used:
                self.names.row.pop(text, None)
                self.names.texts[row] = ""

    def get(self, slot: int) -> str | None:
        row = self.view[slot]
        return None if row == MISSING else self.names.texts[row]
