"""The content sets of a seed: what `plan` and `campaigns` say, with limits that differ from seed to seed."""

from __future__ import annotations

import random
from dataclasses import replace

from tests.simulation.campaigns import APPS, LATER_APPS, make_benefits, make_campaigns
from tests.simulation.plan import EXPO, HOUR_MS, PLACES, TOWERS, City, Limit, Plan, make_plans

WINDOWS_MS = (0, 0, 0, 8_000, 45_000)
"""How long competitors for a user are gathered first (D2)."""
GONE = ("sim/office", "sim/late-shift", "sim/read", "sim/zaps", "sim/snack")
"""Not in the second content; back in the third."""


def make_cities(seed: int) -> tuple[City, ...]:
    """The content sets of one seed, in the order they go live; the first is live from the start."""
    dice = random.Random(f"{seed}/content")
    first = City(
        "v1",
        PLACES,
        TOWERS,
        (*make_plans(dice), *make_campaigns(dice)),
        limits=(Limit("all", dice.choice((3, 5)), "day"), Limit("all", dice.choice((2, 3)), "rolling", 2 * HOUR_MS)),
        min_gap_ms=dice.choice((0, 60_000, 300_000)),
        assumed=frozenset(dice.choice(((), ("location", "usage"), ("location", "usage", "marketing.push")))),
        universal_holdout=dice.choice((0.0, 5.0)),
        salt=f"salt-{seed % 3}",
        window_ms=dice.choice(WINDOWS_MS),
        benefits=make_benefits(dice),
        apps=APPS,
    )
    plans = [
        replace(plan, limits=(Limit("scenario", 3, "day"),)) if plan.id == "sim/shop" else plan
        for plan in first.plans
        if plan.id not in GONE
    ]
    plans.insert(2, Plan("sim/expo", ("enter", ("sim/expo",), 0), limits=(Limit("all", 2, "rolling", HOUR_MS),)))
    places = tuple(place for place in PLACES if place.id != "sim/office") + (EXPO,)
    second = replace(first, version="v2", places=places, plans=tuple(plans), apps=LATER_APPS, by_id={})
    return first, second, replace(first, version="v3", by_id={})
