"""Cell files: where each radio cell is (rule L2)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engine.content.faults import Faults, Shown
from engine.content.files import ReadLimits, read_csv
from engine.content.geometry import to_wgs84
from engine.definitions import CellTable
from engine.model import DEGREE_E7, Datum

COLUMNS = ("cell", "lon", "lat", "radius_m", "azimuth", "beam", "indoor", "datum")
_REQUIRED = COLUMNS[:4]
_TRUE, _FALSE = frozenset({"1", "true", "yes"}), frozenset({"0", "false", "no", ""})
_RANGES = {
    "lon": (-180.0, 180.0, "a longitude, -180 to 180 degrees"),
    "lat": (-90.0, 90.0, "a latitude, -90 to 90 degrees"),
    "radius_m": (1.0, 200_000.0, "a radius in metres, 1 to 200,000"),
    "azimuth": (0.0, 360.0, "degrees clockwise from north, 0 to 360, or nothing"),
    "beam": (0.0, 360.0, "a beam width in degrees, 0 to 360, or nothing"),
}


def load_cells(folder: Path, limits: ReadLimits, faults: Faults) -> CellTable:
    """Read geofences/cells/*.csv into one table sorted by cell id. 200,000 rows take about a second."""
    ids: list[str] = []
    tables: list[dict[str, np.ndarray]] = []
    for path in sorted((folder / "cells").glob("*.csv")):
        shown_as = f"{folder.name}/cells/{path.name}"
        table = _file(path, shown_as, limits, faults)
        if table is not None:
            file_ids, columns = table
            ids += file_ids
            tables.append(columns)
    if len(ids) > limits.cells:
        faults.add(f"{folder.name}/cells", "$", Shown(f"{len(ids):,} cells"), f"at most {limits.cells:,} cells")
    if len(set(ids)) < len(ids):
        for cell, count in sorted((cell, count) for cell, count in Counter(ids).items() if count > 1):
            hint = "keep one of the rows"
            faults.add(f"{folder.name}/cells", "$", Shown(f"cell {cell!r} in {count} rows"), "each cell once", hint)
    order = sorted(range(len(ids)), key=ids.__getitem__)

    def column(name: str, dtype: type) -> np.ndarray:
        joined = np.concatenate([table[name] for table in tables]) if tables else np.empty(0)
        return joined[order].astype(dtype)

    return CellTable(
        ids=tuple(ids[row] for row in order),
        lon_e7=column("lon_e7", np.int32),
        lat_e7=column("lat_e7", np.int32),
        radius_m=column("radius_m", np.float64),
        indoor=column("indoor", np.bool_),
        azimuth_deg=column("azimuth", np.float64),
        beam_deg=column("beam", np.float64),
    )


def _file(path: Path, file: str, limits: ReadLimits, faults: Faults) -> tuple[list[str], dict[str, np.ndarray]] | None:
    table = read_csv(path, file, COLUMNS, _REQUIRED, limits, faults)
    if table is None:
        return None
    header, rows = table
    numbers: Sequence[int] = range(2, len(rows) + 2)
    if any(len(row) != len(header) for row in rows):
        numbers = [number for number, row in enumerate(rows, 2) if row]
        rows = [row for row in rows if row]
    uneven = [(number, row) for number, row in zip(numbers, rows, strict=True) if len(row) != len(header)]
    for number, row in uneven:
        faults.add(file, f"row {number}", Shown(f"{len(row)} values"), f"{len(header)} values, as the header has")
    if uneven or not rows:
        return None
    texts = dict(zip(header, zip(*rows, strict=True), strict=True))
    return _columns(texts, numbers, file, faults)


def _columns(
    texts: dict[str, tuple[str, ...]], numbers: Sequence[int], file: str, faults: Faults
) -> tuple[list[str], dict[str, np.ndarray]]:
    count = len(numbers)
    ids = [cell.strip() for cell in texts["cell"]]
    for row, cell in enumerate(ids):
        if not 0 < len(cell) <= 100:
            faults.add(file, f"row {numbers[row]}, column cell", cell, "an id of 1 to 100 characters")
    columns: dict[str, np.ndarray] = {}
    for name, (low, high, wanted) in _RANGES.items():
        given = texts.get(name)
        values = _numbers(given) if given else np.full(count, np.nan)
        empty = np.array([not text.strip() for text in given]) if given and name not in _REQUIRED else np.isnan(values)
        optional = name not in _REQUIRED
        wrong = ~((values >= low) & (values <= high)) & ~(empty & optional)
        for row in np.flatnonzero(wrong).tolist():
            hint = "longitude and latitude look swapped" if name == "lat" and abs(values[row]) <= 180 else ""
            assert given is not None
            faults.add(file, f"row {numbers[row]}, column {name}", given[row], wanted, hint)
        columns[name] = np.where(wrong, 0.0, values)
    columns["indoor"] = _booleans(texts.get("indoor"), numbers, file, faults)
    _convert(columns, texts.get("datum"), numbers, file, faults)
    for name in ("lon", "lat"):
        columns[f"{name}_e7"] = np.rint(columns[name] * DEGREE_E7)
    return ids, columns


def _numbers(texts: tuple[str, ...]) -> np.ndarray:
    """Parse a column; nan where a value is no number."""
    try:
        return np.array(texts, np.float64)
    except ValueError:
        return np.array([_number(text) for text in texts])


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _booleans(texts: tuple[str, ...] | None, numbers: Sequence[int], file: str, faults: Faults) -> np.ndarray:
    if texts is None:
        return np.zeros(len(numbers), np.bool_)
    folded = [text.strip().lower() for text in texts]
    for row, text in enumerate(folded):
        if text not in _TRUE and text not in _FALSE:
            faults.add(file, f"row {numbers[row]}, column indoor", texts[row], "1 or 0")
    return np.array([text in _TRUE for text in folded])


def _convert(
    columns: dict[str, np.ndarray], datums: tuple[str, ...] | None, numbers: Sequence[int], file: str, faults: Faults
) -> None:
    for row, text in enumerate(datums or ()):
        name = text.strip().lower()
        if name in ("gcj02", "bd09"):
            lon, lat = to_wgs84(columns["lon"][row : row + 1], columns["lat"][row : row + 1], Datum[name.upper()])
            columns["lon"][row], columns["lat"][row] = lon[0], lat[0]
        elif name not in ("", "wgs84"):
            faults.add(file, f"row {numbers[row]}, column datum", text, "wgs84, gcj02 or bd09")
