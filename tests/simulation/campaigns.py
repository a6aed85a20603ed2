"""Scenarios with patterns, dynamic tags, stock, codes, lotteries, switched channels and pauses for who ignores them.

Most are not bound by caps, so that what they are here for decides.
"""

from __future__ import annotations

import random
from typing import Any

from tests.simulation.plan import HOUR_MS, Limit, Plan, category, usage
from tests.simulation.terms import Benefit, Pattern, Step, Test, moved, opened

MINUTE_MS = 60_000
APPS = (("didi", "travel"), ("kuaishou", "video"), ("luckin", "cafe"), ("starbucks", "cafe"))
"""The catalogue of apps: what category an event means that names none (B1)."""
LATER_APPS = (*APPS[:2], ("luckin", "food"), APPS[3])
"""As of the second content."""
POOLS = {"latte": 9, "film": 6}
"""Codes of each pool."""
CLAIM_DOMAIN = "quan.example.cn"


def make_benefits(dice: random.Random) -> tuple[Benefit, ...]:
    """What runs out, in every way there is (O3)."""
    few = dice.choice
    return (
        Benefit("sim/latte-card", 500, total=few((3, 6, 12)), per_user=2, pool="latte"),
        Benefit("sim/data-pack", 300, per_day=few((3, 5)), budget_fen=few((1800, 2700)), budget_per_user_fen=700),
        Benefit("sim/film-ticket", 2000, budget_per_day_fen=few((4000, 8000)), pool="film", valid_for_ms=2 * HOUR_MS),
        Benefit("sim/film-and-data"),
        Benefit("sim/game-coins", valid_for_ms=few((20, 40)) * MINUTE_MS),
    )


def make_campaigns(dice: random.Random) -> tuple[Plan, ...]:
    few = dice.choice
    free: dict[str, Any] = {"bypass": True, "counts": False}
    shopping = opened(category="ecommerce")
    around = ("sim/mall", "sim/cinema", "sim/park")
    return (
        # Codes, counts and money.
        Plan("sim/latte", category("cafe"), text="咖啡券{code}，{claim_url}领取。", takes=("sim/latte-card",), **free),
        Plan("sim/data", category("travel"), takes=("sim/data-pack",), holdout=15.0, **free),
        Plan(
            "sim/film",
            usage(("app", "==", "kuaishou")),
            takes=("sim/film-ticket",),
            text="影票{code}，{claim_url}",
            **free,
        ),
        Plan(
            "sim/film-night",
            category("music"),
            takes=("sim/film-and-data", "sim/data-pack", "sim/film-ticket"),
            text="套餐{code}。",
            value=1.5,
            **free,
        ),
        # What somebody does who has redeemed a link is a usage event like any other.
        Plan("sim/thanks", usage(("category", "==", "offer"), ("action", "==", "redeem")), **free),
        # Dynamic tags: one is set alone, one beside an offer; others ask for them.
        Plan("sim/mark-traveller", category("travel"), tag=("traveller", few((30, 90)) * MINUTE_MS), is_tag=True),
        Plan("sim/snack", category("food"), audience=("tag", "traveller"), **free),
        Plan("sim/stay-in", category("sport"), audience=("none", (("tag", "traveller"),)), **free),
        Plan("sim/lounge", ("enter", ("sim/airport",), 0), audience=("tag", "traveller"), **free),
        Plan("sim/stroll", ("enter", ("sim/park", "sim/mall"), 0), tag=("stroller", 40 * MINUTE_MS), **free),
        Plan("sim/stroll-on", ("exit", ("sim/park", "sim/mall"), 0), audience=("tag", "stroller"), **free),
        # Who ignores it is left alone.
        Plan(
            "sim/game",
            category("game"),
            takes=("sim/game-coins",),
            text="点击{claim_url}领取金币。",
            pause_after=(2, 12 * HOUR_MS, few((2, 5)) * HOUR_MS),
            **free,
        ),
        Plan("sim/game-tips", category("game"), deadline_s=1800, pause_after=(1, 6 * HOUR_MS, HOUR_MS), **free),
        # By lot, by another channel in quiet hours, by organisation.
        Plan("sim/lucky", category("sport"), lottery=(few((2, 3)), "luck"), **free),
        Plan("sim/late-news", category("news"), quiet=(17 * 60, 11 * 60, "switch"), switch_to="push", **free),
        Plan("sim/district", category("news"), audience=("organisation", "北京/海淀"), **free),
        # Patterns.
        _on(Pattern("count", (shopping,), 90 * MINUTE_MS, 2), "sim/shops-often", **free),
        _on(Pattern("count", (shopping,), 4 * HOUR_MS, 2, same="app"), "sim/shops-there", **free),
        _on(Pattern("sum", (shopping,), 5 * HOUR_MS, 3000, "props.amount_fen"), "sim/spends", **free),
        _on(Pattern("distinct", (opened(category="video"),), 3 * HOUR_MS, 2, "app"), "sim/zaps", **free),
        _on(Pattern("count", (moved("enter", *around),), 6 * HOUR_MS, 2), "sim/goes-out", **free),
        _on(Pattern("sequence", (moved("enter", *around), shopping), HOUR_MS), "sim/shops-inside", **free),
        _on(Pattern("sequence", (opened(app="bank"), opened(category="travel")), 3 * HOUR_MS), "sim/sets-out"),
        _on(
            Pattern("absence", (moved("exit", *around), opened(category="travel")), 20 * MINUTE_MS),
            "sim/no-ride",
            **free,
        ),
        _on(Pattern("absence", (shopping, opened(app="bank")), 30 * MINUTE_MS), "sim/left-cart", **free),
        _on(
            Pattern("absence", (Step((Test("category", "in", ("video", "music")),)), shopping), HOUR_MS, same="app"),
            "sim/left-player",
            **free,
        ),
        # Joined with presence, and with a pattern.
        Plan("sim/music-inside", category("music"), inside=around, **free),
        Plan("sim/eats-after", category("food"), asked=Pattern("count", (shopping,), 2 * HOUR_MS), **free),
        Plan("sim/limited", category("game"), limits=(Limit("scenario", 2, "day"),), counts=False),
    )


def _on(pattern: Pattern, name: str, **more: Any) -> Plan:
    return Plan(name, ("pattern", pattern), **more)
