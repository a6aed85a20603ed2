"""Hand-off while a table of users is imported into the same service, beside the same load without an import.

The import sends rows of a CSV file all the time that the load lasts. What it must not do is stall the hand-off: its
ratio is that of the two p99 latencies, each from the intended send time to the gateway.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from bench.service import measure

RATE = 1_000
OFFERS = 1_000
ROWS = 300_000
COLUMNS = "user,tags,attribute.age,attribute.plan,organisation,consent.marketing.sms,consent.location,consent_at\n"


def run(smoke: bool = False) -> list[dict[str, Any]]:
    rate, offers, fences = (200, 20, 100) if smoke else (RATE, OFFERS, 1_000)
    with tempfile.TemporaryDirectory(prefix="opportune-import-") as folder:
        table = Path(folder) / "users.csv"
        write_table(table, 2_000 if smoke else ROWS)
        alone = {row["name"]: row["value"] for row in measure(rate, offers=offers, fences=fences)}
        beside = measure(rate, offers=offers, fences=fences, importing=table)
    rows = []
    for row in beside:
        name = row["name"].removeprefix(f"service.{rate}.")
        out = {**row, "name": f"importing.service.{rate}.{name}"}
        if name.startswith("p"):
            out |= {"peer": alone[row["name"]], "ratio": row["value"] / alone[row["name"]]}
        rows.append(out)
    return rows


def write_table(path: Path, count: int, seed: int = 8) -> None:
    """Write users with two tags, two attributes, a village of 51,200 and two consents."""
    random = np.random.default_rng(seed)
    ages, plans, places = (random.integers(0, most, count).tolist() for most in (80, 3, 51_200))
    with path.open("w") as file:
        file.write(COLUMNS)
        for number in range(count):
            village = places[number]
            path_text = f"p{village % 8}/c{village // 8 % 20}/d{village // 160 % 20}/t{village // 3200}/v{village % 16}"
            file.write(f"i{number},member|film,{ages[number]},plan-{plans[number]},{path_text},yes,yes,1767326400000\n")
