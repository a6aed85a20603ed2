"""Whom an audience would reach, counted over all profiles; beside pyarrow on the same columns.

`count` is the whole answer: expression, consent of one channel, and what may be told of the counts (differences with 64
sets told before included). The peer evaluates the same expression and consent with Arrow's compute kernels.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from engine.decide.counting import Counter
from engine.decide.disclosure import Disclosure
from engine.decide.profiles import KNOWN, ProfileTable
from engine.definitions import Compare, Every, Expression, HasTag, InOrganisation, Neither, Policy, Some

NOW_MS = 1_767_326_400_000
VILLAGES = 51_200
ROUNDS = 9


def run(smoke: bool = False) -> list[dict[str, Any]]:
    users = 10_000 if smoke else 1_000_000
    table = build(users)
    expression = audience(0)
    counter, disclosure = Counter(table), Disclosure()
    for number in range(64):
        disclosure.tell(counter.reach(audience(number + 1), NOW_MS).matching)

    def count() -> int | str:
        reach = counter.reach(expression, NOW_MS, ["sms"])
        disclosure.tell(reach.matching)
        return disclosure.tell(reach.by_channel["sms"])

    first_ms = clocked_ms(count)
    best_ms = min(clocked_ms(count) for _ in range(ROUNDS))
    peer_count = arrow(table)
    matching = int(counter.reach(expression, NOW_MS, ["sms"]).by_channel["sms"].sum())
    if peer_count() != matching:
        raise AssertionError("the peer counts another audience")
    peer_ms = min(clocked_ms(peer_count) for _ in range(ROUNDS))
    row = {"name": f"audience.{users}.count_ms", "value": best_ms, "unit": "ms"}
    more = {"first_ms": first_ms, "matching": matching, "villages": VILLAGES, "remembered": 64}
    return [row | {"peer": peer_ms, "ratio": best_ms / peer_ms} | more]


def audience(number: int) -> Expression:
    """All, any and none over tags, numbers, texts and a city's subtree; another number, another age."""
    return Every(
        (
            HasTag("member"),
            Some((HasTag("film"), HasTag("sport"), Compare("plan", "in", ("plan-1", "plan-2")))),
            Compare("age", ">=", 18 + number),
            Compare("age", "<", 75),
            InOrganisation("p3"),
            Neither((Compare("plan", "==", "plan-0"), HasTag("suppressed"))),
        )
    )


def build(users: int, seed: int = 9) -> ProfileTable:
    """Fill the columns at once, as a million profile events would."""
    random = np.random.default_rng(seed)
    table = ProfileTable(Policy())
    table.ensure(users)
    table.flags.array[:users] = KNOWN
    for tag, share in (("member", 0.6), ("film", 0.3), ("sport", 0.2), ("game", 0.2), ("suppressed", 0.05)):
        column, bit = table.tag_place(tag)
        column.array[:users] |= np.where(random.random(users) < share, np.uint64(bit), np.uint64(0))
    table.number_column("age").array[:users] = random.integers(10, 90, users)
    plan, organisation = table.text_column("plan"), table.organisation_column()
    for number in range(3):
        plan.names.intern(f"plan-{number}")
    plan.array[:users] = random.integers(0, 3, users)
    for village in range(VILLAGES):
        organisation.names.intern(
            f"p{village % 8}/c{village // 8 % 20}/d{village // 160 % 20}/t{village // 3200}/v{village}"
        )
    organisation.array[:users] = random.integers(0, VILLAGES, users)
    table.purpose_column("marketing.sms").array[:users] = NOW_MS << 16 | random.integers(0, 3, users)
    return table


def arrow(table: ProfileTable) -> Callable[[], int]:
    """Return what counts `audience(0)` and consent by Arrow's kernels, over the same profiles as an Arrow table."""
    import pyarrow
    import pyarrow.compute as pc

    users = table.count
    columns: dict[str, Any] = {
        "age": table.numbers["age"].array[:users],
        "plan": pyarrow.DictionaryArray.from_arrays(table.texts["plan"].array[:users], table.texts["plan"].names.texts),
        "sms": table.purposes["marketing.sms"].array[:users] & 3,
    }
    organisation = table.organisation_column()
    columns["organisation"] = pyarrow.DictionaryArray.from_arrays(organisation.array[:users], organisation.names.texts)
    for tag in table.tags.texts:
        column, bit = table.tag_place(tag)
        columns[tag] = (column.array[:users] & np.uint64(bit)) != 0
    made = pyarrow.table(columns)

    def count() -> int:
        place = made["organisation"].combine_chunks()
        below = pc.starts_with(place.dictionary, "p3/")
        mask = pc.and_(made["member"], pc.take(below, place.indices))
        plan = pc.cast(made["plan"], pyarrow.string())
        mask = pc.and_(
            mask, pc.or_(pc.or_(made["film"], made["sport"]), pc.is_in(plan, pyarrow.array(["plan-1", "plan-2"])))
        )
        mask = pc.and_(mask, pc.and_(pc.greater_equal(made["age"], 18), pc.less(made["age"], 75)))
        mask = pc.and_(mask, pc.invert(pc.or_(pc.equal(plan, "plan-0"), made["suppressed"])))
        return int(pc.sum(pc.and_(mask, pc.equal(made["sms"], 1))).as_py())

    return count


def clocked_ms(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000
