"""A report as columns and rows, and its bytes as CSV and Parquet, the same each time."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

FEWEST = 10


@dataclass(frozen=True, slots=True)
class Sheet:
    """Rows as wide as `columns`; cells are text, whole numbers, rates or None. `notes` stand below."""

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[object, ...]]
    notes: Sequence[str] = field(default=())

    def digest(self) -> str:
        """Return the SHA-256 of columns and rows: who has the same sheet has the same line."""
        return hashlib.sha256(self.csv()).hexdigest()

    def csv(self) -> bytes:
        """Return UTF-8 CSV. Cells that a spreadsheet would take for a formula begin with ' (FAULTS A7)."""
        from defusedcsv import csv

        out = io.StringIO(newline="")
        writer = csv.writer(out, lineterminator="\r\n")
        writer.writerow(self.columns)
        writer.writerows(tuple("" if cell is None else _cell(cell) for cell in row) for row in self.rows)
        return out.getvalue().encode()

    def parquet(self) -> bytes:
        """Return Parquet with typed columns; texts as they are."""
        import pyarrow
        import pyarrow.parquet

        columns = {}
        for place, name in enumerate(self.columns):
            cells = [row[place] for row in self.rows]
            if any(isinstance(cell, str) for cell in cells):
                cells = [None if cell is None else str(cell) for cell in cells]
            columns[name] = pyarrow.array(cells)
        sink = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(pyarrow.table(columns), sink)
        return bytes(sink.getvalue().to_pybytes())


def _cell(cell: object) -> object:
    if isinstance(cell, float):
        return f"{cell:.6f}"
    # defusedcsv marks = + - @ and leaves the white space that spreadsheets cut off before they look.
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in ("\t", "\r", "\n") else cell


def people(users: int) -> int | str:
    """A number of people as it may be shown: few people are somebody (FAULTS A13)."""
    return users if users == 0 or users >= FEWEST else f"<{FEWEST}"
