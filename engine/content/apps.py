"""App catalogues: which category an app belongs to, for usage events that do not say it (rule B1)."""

from __future__ import annotations

from pathlib import Path

from engine.content.faults import Faults, Shown
from engine.content.files import ReadLimits, read_csv
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
    table = read_csv(path, file, COLUMNS, _REQUIRED, limits, faults)
    if table is None:
        return
    header, rows = table
    app_at, category_at = header.index("app"), header.index("category")
    for number, row in enumerate(rows, 2):
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
