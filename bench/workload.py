"""The workload of `pipeline`, `memory` and `growth`: a clustered city, its fences, scenarios, users, events.

Realistic mix: 70 % pings (40 % gps, 20 % wifi, 40 % cell), 30 % usage events; users drawn by Zipf 1.1, one event in
1,000 from a new one; 5 % of pings inside some fence; one event in 200 a candidate, one candidate in 10 an offer.
Worst mix: every ping crosses an edge of a fence that a scenario waits for, so every event is a candidate.
Everything comes from one seed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from engine.definitions import (
    Cap,
    CellTable,
    Content,
    Fence,
    FieldTest,
    HasTag,
    Limits,
    OfferDefinition,
    PatternTrigger,
    Policy,
    PresenceTrigger,
    QuietHours,
    Reentry,
    Scenario,
    Shape,
    UsageTrigger,
    While,
)
from engine.model import Block, Mode, Scope

START_MS = 1_767_330_000_000  # 2026-01-02 05:00 UTC, 13:00 in Beijing
CITY_LON, CITY_LAT, CITY_DEG = 116.4, 39.9, 0.25
M_PER_DEG_LAT, M_PER_DEG_LON = 111_000.0, 85_000.0
CELLS = 20_000
EVENTS_PER_S = 20_000  # of event time


def make_fences(
    count: int, *, seed: int = 1, spread_deg: float = CITY_DEG, radius_m: float = 60.0
) -> tuple[Fence, ...]:
    """Scatter fences around a few hundred centres; two circles to one octagon, tagged by tens."""
    random = np.random.default_rng(seed)
    centres = random.uniform(-spread_deg, spread_deg, (max(20, count // 40), 2))
    chosen = centres[random.integers(0, len(centres), count)]
    lon = CITY_LON + chosen[:, 0] + random.normal(0, 0.012, count)
    lat = CITY_LAT + chosen[:, 1] + random.normal(0, 0.010, count)
    radius = random.uniform(0.6, 1.4, count) * radius_m
    turn = np.arange(8) * np.pi / 4
    fences = []
    for row in range(count):
        centre = np.array([[round(lon[row] * 1e7), round(lat[row] * 1e7)]], np.int64)
        if row % 3:
            shape, parts = Shape.CIRCLE, (((centre),),)
        else:
            ring = np.stack(
                [
                    centre[0, 0] + np.rint(radius[row] / M_PER_DEG_LON * 1e7 * np.cos(turn)),
                    centre[0, 1] + np.rint(radius[row] / M_PER_DEG_LAT * 1e7 * np.sin(turn)),
                ],
                axis=1,
            ).astype(np.int64)
            shape, parts = Shape.POLYGON, ((ring,),)
        fences.append(
            Fence(
                id=f"national/f{row:06d}",
                name=f"场所{row}",
                kind="mall" if row % 2 else "cinema",
                shape=shape,
                parts=parts,
                radius_m=float(radius[row]) if shape is Shape.CIRCLE else 0.0,
                lon=float(lon[row]),
                lat=float(lat[row]),
                state_hash=f"{row}",
            )
        )
    return tuple(fences)


def make_cells(seed: int = 2, *, spread_deg: float = CITY_DEG) -> CellTable:
    random = np.random.default_rng(seed)
    side = int(np.sqrt(CELLS))
    step = 2 * spread_deg / side
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2) * step - spread_deg
    grid = grid + random.uniform(-0.3, 0.3, grid.shape) * step
    return CellTable(
        ids=tuple(f"460-01-{row // 1000 + 4000}-{row}" for row in range(len(grid))),
        lon_e7=np.rint((CITY_LON + grid[:, 0]) * 1e7).astype(np.int32),
        lat_e7=np.rint((CITY_LAT + grid[:, 1]) * 1e7).astype(np.int32),
        radius_m=np.full(len(grid), 800.0),
        indoor=np.zeros(len(grid), bool),
    )


def make_scenarios(
    count: int, fences: tuple[Fence, ...], *, audience: str | None = "tag:t0", every_edge: bool = False
) -> tuple[Scenario, ...]:
    """Scenarios that share out the fences and the apps, so that more of them do not mean more candidates.

    every_edge  half of them wait for every ENTER, half for every EXIT (the worst mix)
    """
    presence = count if every_edge else max(1, count * 2 // 3)
    made = []
    for row in range(count):
        offer = OfferDefinition(
            benefit=f"national/benefit-{row % 20}",
            benefit_class=("video", "travel", "living", "entertainment", "education", "health")[row % 6],
            partner=f"partner-{row % 31}",
            offer_class="marketing",
            channels=("sms",),
            text="您好，凭此短信可领取优惠券一张，详情请咨询营业厅。",
        )
        if row < presence:
            if every_edge:
                kind, mine = ("enter", "exit")[row % 2], tuple(fence.id for fence in fences[row // 2 :: presence // 2])
            else:
                kind, mine = ("enter", "enter", "dwell")[row % 3], tuple(fence.id for fence in fences[row::presence])
            trigger: PresenceTrigger | UsageTrigger = PresenceTrigger(kind, mine, 300 if kind == "dwell" else 0)
            if not mine:
                trigger = UsageTrigger((FieldTest("app", "==", f"spare{row}"),))
        else:
            trigger = UsageTrigger((FieldTest("app", "==", f"hot{row - presence}"), FieldTest("action", "==", "open")))
        made.append(
            Scenario(
                id=f"national/s{row:05d}",
                name=f"活动{row}",
                mode=Mode.LIVE,
                trigger=trigger,
                offer=offer,
                audience=HasTag(audience.removeprefix("tag:")) if audience else None,
                limits=Limits(caps=(Cap(Scope.SCENARIO, 2, "rolling", 86_400_000),)),
                reentry=Reentry("cooldown", 3_600_000),
                priority=1.0 + row % 7,
                holdout_percent=5.0,
            )
        )
    return tuple(made)


def make_content(
    fences: int = 10_000,
    scenarios: int = 255,
    *,
    audience: str | None = "tag:t0",
    spread_deg: float = CITY_DEG,
    every_edge: bool = False,
) -> Content:
    placed = make_fences(fences, spread_deg=spread_deg)
    return Content(
        version=f"bench-{fences}-{scenarios}",
        fences=placed,
        cells=make_cells(spread_deg=spread_deg),
        scenarios=make_scenarios(scenarios, placed, audience=audience, every_edge=every_edge),
        policy=Policy(
            caps=(Cap(Scope.ALL, 3, "rolling", 86_400_000), Cap(Scope.ALL, 10, "week")),
            quiet_hours=QuietHours(22 * 60, 7 * 60),
            assumed_consent=frozenset({"location", "usage"}),
            universal_holdout_percent=1.0,
        ),
    )


def with_patterns(content: Content) -> Content:
    """The same content with a third of its scenarios made patterns of all kinds, joined with presence and without.

    Pattern p is about the app `step<p>`; who opens it is said by `realistic(step_apps=...)`.
    """
    scenarios = list(content.scenarios)
    names = tuple(fence.id for fence in content.fences)
    rows = range(2, len(scenarios), 3)
    for number, row in enumerate(rows):
        opened, paid = (
            UsageTrigger((FieldTest("app", "==", f"step{number}"), FieldTest("action", "==", action)))
            for action in ("open", "pay")
        )
        either = UsageTrigger((FieldTest("app", "==", f"step{number}"),))
        mine = names[number :: len(rows)] or names[:1]

        def pattern(
            kind: str,
            *steps: UsageTrigger | PresenceTrigger,
            span_s: int,
            at_least: float = 1,
            field: str = "",
            number: int = number,
        ) -> PatternTrigger:
            name = f"{kind}{number}"
            return PatternTrigger(kind, steps, span_s * 1000, at_least, field, state_hash=name)

        trigger: UsageTrigger | PresenceTrigger | PatternTrigger
        besides = None
        match number % 7:
            case 0:
                trigger = pattern("count", opened, span_s=600, at_least=3)
            case 1:
                trigger = pattern("sum", either, span_s=600, at_least=4000, field="props.fen")
            case 2:
                trigger = pattern("distinct", either, span_s=600, at_least=2, field="action")
            case 3:
                trigger = pattern("sequence", opened, paid, span_s=300)
            case 4:
                trigger = pattern("absence", opened, paid, span_s=30)
            case 5:
                trigger, besides = either, While(inside=names)
            case _:
                trigger = PresenceTrigger("enter", mine)
                besides = While(pattern=pattern("count", either, span_s=1800))
        scenarios[row] = replace(scenarios[row], trigger=trigger, while_=besides)
    return replace(content, version=f"{content.version}-patterns", scenarios=tuple(scenarios))


@dataclass(slots=True)
class Workload:
    """Newline-joined JSON and where each event stands."""

    data: bytes
    start: np.ndarray
    end: np.ndarray
    users: int

    def blocks(self, events: int = 4096) -> list[Block]:
        """Cut into blocks of one event per record, in wire order, without append times (`--clock events`)."""
        cut = []
        for first in range(0, len(self.start), events):
            last = min(first + events, len(self.start))
            base, top = int(self.start[first]), int(self.end[last - 1])
            count = last - first
            cut.append(
                Block(
                    self.data[base : top + 1],
                    self.start[first:last] - base,
                    self.end[first:last] - base,
                    np.arange(first, last, dtype=np.int64),
                    np.full(count, -1, np.int64),
                    np.ones(count, np.uint8),
                )
            )
        return cut


def zipf_users(random: np.random.Generator, users: int, count: int, exponent: float = 1.1) -> np.ndarray:
    """Draw user numbers 0..users-1 with probability proportional to 1 / rank ** exponent, ranks shuffled."""
    weight = np.cumsum(1.0 / np.arange(1, users + 1) ** exponent)
    rank = np.searchsorted(weight, random.random(count) * weight[-1])
    return random.permutation(users)[rank]


def profiles(users: int, *, tagged_share: float = 0.34, start_ms: int = START_MS - 3_600_000) -> list[bytes]:
    """A profile and a consent for marketing for every user; one in three bears the tag scenarios ask for."""
    lines = []
    every = round(1 / tagged_share)
    for user in range(users):
        tags = '"t0","t1"' if user % every == 0 else '"t1"'
        lines.append(
            f'{{"type":"profile","feed":"app","user":"u{user:08d}","at":{start_ms},"tags":[{tags}],'
            f'"attributes":{{"age":{20 + user % 50},"plan":"p{user % 9}"}}}}'.encode()
        )
        lines.append(
            f'{{"type":"consent","feed":"app","user":"u{user:08d}","at":{start_ms},'
            '"purpose":"marketing.sms","granted":true,"source":"import"}'.encode()
        )
    return lines


def realistic(
    users: int,
    count: int,
    content: Content,
    *,
    seed: int = 3,
    hot_apps: int = 85,
    spread_deg: float = CITY_DEG,
    step_apps: int = 0,
    user: np.ndarray | None = None,
    first: int = 0,
    start_ms: int = START_MS,
    hot_share: float = 0.010,
) -> Workload:
    """The realistic mix; see the head of this module. The city is `spread_deg` wide to each side of its middle.

    user       of each event, instead of drawing them; first, start_ms  where numbers and times go on from
    hot_share  of usage events with an app that a scenario waits for
    step_apps  with patterns: one usage event in ten is a step, of the app `step<user % step_apps>`; half of them open
               it, half pay, with an amount
    """
    random = np.random.default_rng(seed)
    fences, cells = content.fences, content.cells
    if user is None:
        user = zipf_users(random, users, count)
        fresh = random.random(count) < 0.001
        user = np.where(fresh, users + np.arange(count), user)
    # Where a user is: beside a fence all day, inside one all day, or moving in and out of one.
    fence = (user * 2654435761) % len(fences)
    part = (user * 40503 >> 4) % 1000
    inside_all_day, mover = part < 42, (part >= 42) & (part < 60)
    is_usage = random.random(count) < 0.3
    inside = inside_all_day | (mover & (random.random(count) < 0.5))
    centre_lon = np.array([one.lon for one in fences])
    centre_lat = np.array([one.lat for one in fences])
    lon, lat = _outside(random, user, centre_lon, centre_lat, spread_deg)
    lon = np.where(inside, centre_lon[fence], np.where(mover, centre_lon[fence] + 250 / M_PER_DEG_LON, lon))
    lat = np.where(inside, centre_lat[fence], lat)
    lat = np.where(mover & ~inside, centre_lat[fence], lat)
    lon += random.normal(0, 4e-5, count)
    lat += random.normal(0, 4e-5, count)
    draw = random.random(count)
    method = np.where(draw < 0.4, 0, np.where(draw < 0.6, 1, 2))
    method = np.where(mover | inside_all_day, np.minimum(method, 1), method)
    side = int(np.sqrt(len(cells.ids)))
    step = 2 * spread_deg / side
    column = np.clip(((lon - CITY_LON + spread_deg) / step).astype(int), 0, side - 1)
    line = np.clip(((lat - CITY_LAT + spread_deg) / step).astype(int), 0, side - 1)
    cell = np.minimum(line * side + column, len(cells.ids) - 1)
    at = start_ms + (np.arange(count) * 1000) // EVENTS_PER_S
    hot = random.random(count) < hot_share
    app = random.integers(0, 5000, count)
    step = random.random(count) < (0.1 if step_apps else 0.0)
    return _join(
        users,
        [
            _step_line(n, u, t, step_apps, a)
            if usage and one
            else _usage_line(n, u, t, f"hot{a % hot_apps}" if h else f"app{a}")
            if usage
            else _ping_line(n, u, t, x, y, m, cells.ids[c])
            for n, u, t, usage, one, h, a, x, y, m, c in zip(
                range(first, first + count),
                user.tolist(),
                at.tolist(),
                is_usage.tolist(),
                step.tolist(),
                hot.tolist(),
                app.tolist(),
                lon.tolist(),
                lat.tolist(),
                method.tolist(),
                cell.tolist(),
                strict=True,
            )
        ],
    )


def worst(users: int, count: int, content: Content, *, seed: int = 4) -> Workload:
    """Every ping crosses an edge: users step in and out of their own fence at each of their pings."""
    random = np.random.default_rng(seed)
    order = np.arange(count)
    user = order % users
    visit = order // users
    fence = (user * 2654435761) % len(content.fences)
    away = visit % 2 == 0
    lon = np.array([one.lon for one in content.fences])[fence] + np.where(away, 2000 / M_PER_DEG_LON, 0.0)
    lat = np.array([one.lat for one in content.fences])[fence]
    lon = lon + random.normal(0, 1e-5, count)
    at = START_MS + visit * 60_000
    return _join(
        users,
        [
            _ping_line(n, u, t, x, y, 0, "")
            for n, u, t, x, y in zip(range(count), user.tolist(), at.tolist(), lon.tolist(), lat.tolist(), strict=True)
        ],
    )


def _outside(
    random: np.random.Generator, user: np.ndarray, centre_lon: np.ndarray, centre_lat: np.ndarray, spread_deg: float
) -> tuple[np.ndarray, np.ndarray]:
    """A fixed place per user, at least 260 m from every fence's centre."""
    from shapely import STRtree, points

    tree = STRtree(points(centre_lon * M_PER_DEG_LON, centre_lat * M_PER_DEG_LAT))
    pool_lon = CITY_LON + random.uniform(-spread_deg, spread_deg, 400_000)
    pool_lat = CITY_LAT + random.uniform(-spread_deg, spread_deg, 400_000)
    candidates = points(pool_lon * M_PER_DEG_LON, pool_lat * M_PER_DEG_LAT)
    near = tree.query(candidates, predicate="dwithin", distance=260.0)[0]
    free = np.setdiff1d(np.arange(len(candidates)), near)
    assert len(free) > 10_000, "the city is covered with fences; spread them"
    place = free[(user * 7919) % len(free)]
    return pool_lon[place].copy(), pool_lat[place].copy()


def _ping_line(number: int, user: int, at_ms: int, lon: float, lat: float, method: int, cell: str) -> str:
    if method == 2:
        return (
            f'{{"type":"ping","feed":"app","id":"p{number}","user":"u{user:08d}","cell":"{cell}","method":"cell",'
            f'"at":{at_ms}}}'
        )
    how, accuracy = ("gps", 12) if method == 0 else ("wifi", 40)
    return (
        f'{{"type":"ping","feed":"app","id":"p{number}","user":"u{user:08d}","lon":{lon:.7f},"lat":{lat:.7f},'
        f'"accuracy_m":{accuracy},"method":"{how}","at":{at_ms}}}'
    )


def _usage_line(number: int, user: int, at_ms: int, app: str) -> str:
    return usage_line(number, f"u{user:08d}", at_ms, app)


def usage_line(number: int, user: str, at_ms: int, app: str) -> str:
    return (
        f'{{"type":"usage","feed":"dpi","id":"e{number}","user":"{user}","app":"{app}","category":"ecommerce",'
        f'"action":"open","at":{at_ms}}}'
    )


def _step_line(number: int, user: int, at_ms: int, step_apps: int, draw: int) -> str:
    action = "open" if draw % 2 else "pay"
    return (
        f'{{"type":"usage","feed":"dpi","id":"e{number}","user":"u{user:08d}","app":"step{user % step_apps}",'
        f'"category":"ecommerce","action":"{action}","props":{{"fen":{draw}}},"at":{at_ms}}}'
    )


def _join(users: int, lines: list[str]) -> Workload:
    length = np.fromiter((len(line) for line in lines), np.int64, len(lines))
    end = np.cumsum(length + 1) - 1
    return Workload("\n".join(lines).encode() + b"\n", end - length, end, users)
