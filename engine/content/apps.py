"""App catalogues: which category an app belongs to, for usage events that do not say it (rule B1)."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from engine.content.faults import Faults, Shown, did_you_mean
from engine.content.files import ReadLimits, read_bytes
from engine.definitions import AppTable

APPS_FOLDER = "apps"
COLUMNS = ("app", "category", "name")
_REQUIRED = COLUMNS[:2]
_LONGEST = 200


def load_apps(folder: Path, limits: ReadLimits, faults: Faults) -> AppTable:
    """Read scenarios/apps/*.csv into one table sorted by app. 200,000 rows take half a second of a processor."""
    category: dict[str, str] = {}
    for path in sorted((folder / APPS_FOLDER).glob("*.csv")):
        _file(path, f"{folder.name}/{APPS_FOLDER}/{path.name}", category, limits, faults)
    if len(category) > limits.apps:
        found = Shown(f"{len(category):,} apps")
        faults.add(f"{folder.name}/{APPS_FOLDER}", "$", found, f"at most {limits.apps:,} apps")
    apps = tuple(sorted(category))
    return AppTable(apps, tuple(category[app] for app in apps))


def _file(path: Path, file: str, category: dict[str, str], limits: ReadLimits, faults: Faults) -> None:
    data = read_bytes(path, file, limits.csv_bytes, faults)
    if data is None:
        return
    try:
        rows = list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True))
    except UnicodeDecodeError as error:
        faults.add(file, f"$ (byte {error.start})", Shown("bytes that are not UTF-8"), "text in UTF-8")
        return
    except csv.Error as error:
        faults.add(file, "$", Shown(str(error)), "comma-separated values", "quote a value that holds a comma")
        return
    header = [name.strip().lower() for name in rows[0]] if rows else []
    wrong = [name for name in header if name not in COLUMNS]
    for name in wrong:
        faults.add(file, "row 1", Shown(f"the column {name!r}"), "known columns", did_you_mean(name, COLUMNS))
    for name in _REQUIRED:
        if name not in header:
            faults.add(file, "row 1", Shown(f"no column {name!r}"), f"a header with {', '.join(_REQUIRED)}")
    if wrong or not set(_REQUIRED) <= set(header):
        return
    app_at, category_at = header.index("app"), header.index("category")
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(header):
            if row:
                faults.add(file, f"row {number}", Shown(f"{len(row)} values"), f"{len(header)} values, as the header")
            continue
        app, named = row[app_at].strip(), row[category_at].strip()
        if not 0 < len(app) <= _LONGEST:
            faults.add(file, f"row {number}, column app", app, f"an app of 1 to {_LONGEST} characters")
        elif not 0 < len(named) <= _LONGEST:
            faults.add(file, f"row {number}, column category", named, f"a category of 1 to {_LONGEST} characters")
        elif app in category:
            hint = "keep one of the rows; an app has one category"
            faults.add(file, f"row {number}, column app", Shown(f"app {app!r} again"), "each app once", hint)
        else:
            category[app] = named
