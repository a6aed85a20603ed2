"""Tables of users as files: CSV and Parquet, row by row, and how far an import has come (docs/profiles.md)."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from engine.errors import OpportuneError

_PARQUET_ROWS = 10_000
_LARGEST_CELL = 128 << 10


class Row(NamedTuple):
    """One row: its number (of the line in a CSV file, from 1 in Parquet), its cells or None where it cannot be read."""

    number: int
    cells: list[Any] | None
    done: int  # of `total`: bytes or rows read


class TableFile:
    """A CSV or Parquet file of users. Raises OpportuneError where it cannot be opened or has no header."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_parquet = path.suffix.lower() in (".parquet", ".pq")
        try:
            if self.is_parquet:
                self._open_parquet()
            else:
                self.total = path.stat().st_size
                with self._text() as text:
                    self.columns = [name.strip() for name in next(csv.reader(text), [])]
        except (OSError, csv.Error) as error:
            raise OpportuneError(f"{path} cannot be read: {type(error).__name__}") from None
        if not all(name.isprintable() for name in self.columns):
            raise OpportuneError(
                f"{path}: the first line is no text in UTF-8; save the table as CSV in UTF-8, or Parquet"
            )
        if not any(self.columns):
            raise OpportuneError(f"{path}: the first line must name the columns")

    def _open_parquet(self) -> None:
        import pyarrow
        import pyarrow.parquet

        try:
            self._parquet = pyarrow.parquet.ParquetFile(self.path)
        except pyarrow.ArrowException as error:
            raise OpportuneError(f"{self.path} is no Parquet file that can be read: {type(error).__name__}") from None
        self.columns = list(self._parquet.schema_arrow.names)
        self.total = int(self._parquet.metadata.num_rows)

    def digest(self) -> str:
        """Name the content of the file, so that a changed one is not gone on with."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()[:32]

    def rows(self) -> Iterator[Row]:
        """Give every row after the header."""
        return self._parquet_rows() if self.is_parquet else self._csv_rows()

    def _parquet_rows(self) -> Iterator[Row]:
        import pyarrow

        number = 0
        for batch in self._parquet.iter_batches(_PARQUET_ROWS):
            # An instant to the nanosecond has no Python object; the engine keeps milliseconds.
            columns = [
                (column.cast(pyarrow.timestamp("ms", column.type.tz), safe=False) if is_instant else column).to_pylist()
                for column in batch.columns
                for is_instant in (pyarrow.types.is_timestamp(column.type),)
            ]
            for cells in zip(*columns, strict=True):
                number += 1
                yield Row(number, list(cells), number)

    def _csv_rows(self) -> Iterator[Row]:
        csv.field_size_limit(_LARGEST_CELL)
        with self._text() as text:
            reader = csv.reader(text, strict=True)
            next(reader)
            buffer = text.buffer
            while True:
                try:
                    cells = next(reader)
                except StopIteration:
                    return
                except csv.Error:
                    yield Row(reader.line_num, None, buffer.tell())
                    continue
                if cells:
                    yield Row(reader.line_num, cells, buffer.tell())

    def _text(self) -> Any:
        # Bytes that are no UTF-8 become surrogates, which refuse their row and not the file.
        return self.path.open(newline="", encoding="utf-8-sig", errors="surrogateescape")


class Progress:
    """How many rows of a file are done, kept beside it: an import that was cut off goes on where it stopped.

    into    where the rows go; another place begins anew, as does a file with other bytes
    """

    def __init__(self, file: TableFile, into: str) -> None:
        self.path = file.path.with_name(file.path.name + ".progress")
        self.rows = self.refused = 0
        self.is_kept = True
        self._identity = {"digest": file.digest(), "into": into}
        with contextlib.suppress(OSError, orjson.JSONDecodeError, KeyError, TypeError):
            found = orjson.loads(self.path.read_bytes())
            if found["identity"] == self._identity:
                self.rows, self.refused = int(found["rows"]), int(found["refused"])

    def save(self) -> None:
        """Keep it; a folder that cannot be written costs only the going on."""
        new = self.path.with_name(self.path.name + ".new")
        try:
            new.write_bytes(orjson.dumps({"identity": self._identity, "rows": self.rows, "refused": self.refused}))
            os.replace(new, self.path)
        except OSError:
            self.is_kept = False

    def finish(self) -> None:
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
