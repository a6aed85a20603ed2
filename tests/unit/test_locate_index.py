"""The fence index by example (rules L2, L4, L5, L7)."""

from __future__ import annotations

import math

import numpy as np
import pytest

from engine.definitions import Fence
from engine.distance_kernel import point_distance_m
from engine.geometry_kernel import covers, signed_distance_m
from engine.locate import FenceIndex, compile_fences
from engine.locate.kernel import FULL, locate_one
from engine.model import HIT, Confidence, EventType
from tests.locate_worlds import cell_set, cell_table, circle, corridor, pings, polygon, square

LON, LAT = 1_164_000_000, 399_000_000
NO_CELLS = cell_table()
HALF_TURN = 1_800_000_000


def hits_of(
    fences: list[Fence], lon_e7: int, lat_e7: int, accuracy_m: float = 20.0, cells=NO_CELLS, cell: int = -1
) -> list:
    index = FenceIndex.build(fences, cells)
    _, hits = index.locate(pings([(lon_e7, lat_e7)], accuracy_m, cell))
    return [
        (
            index.fences[hit["fence"]].id,
            Confidence(hit["confidence"]).name,
            bool(hit["inside"]),
            distance_of(index, hit, lon_e7, lat_e7),
        )
        for hit in hits
    ]


def distance_of(index: FenceIndex, hit: np.void, lon_e7: int, lat_e7: int) -> float:
    """The hit's distance, or where confidence did not turn on it, measured as presence does."""
    if math.isnan(hit["distance_m"]):
        assert hit["inside"]
        return signed_distance_m(index.arrays, int(hit["fence"]), lon_e7, lat_e7)
    return float(hit["distance_m"])


def ids(hits: list) -> list[str]:
    return [hit[0] for hit in hits]


# --- boundaries ---------------------------------------------------------------------------------------------

HOLLOW = polygon(
    "a/hollow",
    [[(0, 0), (100, 0), (100, 100), (0, 100)], [(40, 40), (40, 60), (60, 60), (60, 40)]],
    [[(200, 0), (300, 50), (200, 100)]],
)


@pytest.mark.parametrize(
    ("point", "inside"),
    [
        ((0, 0), True), ((50, 0), True), ((100, 100), True), ((50, 20), True),  # corner, edge, corner, interior
        ((50, 50), False), ((40, 50), True), ((60, 60), True), ((50, 41), False),  # hole, its edge, its corner
        ((-1, 0), False), ((101, 50), False), ((50, 101), False),
        ((250, 25), True), ((250, 24), False), ((300, 50), True), ((301, 50), False),  # a slanted edge, the apex
    ],
)  # fmt: skip
def test_corners_edges_and_the_edges_of_holes_are_inside(point: tuple[int, int], inside: bool) -> None:
    arrays = compile_fences([HOLLOW])
    assert covers(arrays, 0, *point) is inside
    assert (signed_distance_m(arrays, 0, *point) >= 0) is inside
    assert (ids(hits_of([HOLLOW], *point, 1_000.0)) == ["a/hollow"]) is inside


def test_a_point_at_the_radius_is_inside_a_circle() -> None:
    # 10 units of latitude north; L5 says distance <= radius.
    exact_m = point_distance_m(LON, LAT + 10, LON, LAT)
    assert covers(compile_fences([circle("a/disc", LON, LAT, exact_m)]), 0, LON, LAT + 10)
    assert not covers(compile_fences([circle("a/disc", LON, LAT, math.nextafter(exact_m, 0))]), 0, LON, LAT + 10)


# --- confidence ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accuracy_m", "expected"),
    [(20.0, "HIGH"), (50.0, "HIGH"), (51.0, "MEDIUM"), (128.0, "MEDIUM"), (129.0, "LOW"), (3_000.0, "LOW")],
)
def test_a_point_half_way_inside_a_disc_is_judged_by_l7(accuracy_m: float, expected: str) -> None:
    # R = 100 m, s = 50 m; MEDIUM up to R / 0.78 = 128.2 m.
    ((_, confidence, inside, distance_m),) = hits_of([circle("a/disc", LON, LAT, 100.0)], LON, LAT + 4_503, accuracy_m)
    assert (confidence, inside) == (expected, True)
    assert distance_m == pytest.approx(50.0, abs=0.05)


def test_a_corridor_is_medium_up_to_its_buffer_over_045() -> None:
    road = corridor("a/road", [(LON - 100_000, LAT), (LON + 100_000, LAT)], 45.0)
    assert [hits_of([road], LON, LAT, a)[0][1] for a in (45.0, 46.0, 100.0, 101.0)] == [
        "HIGH",
        "MEDIUM",
        "MEDIUM",
        "LOW",
    ]


def test_a_fine_fix_that_touches_from_outside_is_low_and_a_coarse_one_is_no_hit() -> None:
    disc = circle("a/disc", LON, LAT, 100.0)
    outside = (LON, LAT + 12_600)  # 140 m from the centre
    ((_, confidence, inside, distance_m),) = hits_of([disc], *outside, 50.0)
    assert (confidence, inside) == ("LOW", False)
    assert distance_m == pytest.approx(-40.0, abs=0.1)
    assert hits_of([disc], *outside, 39.0) == []
    assert hits_of([disc], *outside, 61.0) == []
    assert hits_of([disc], *outside, 5_000.0) == []


def test_r_is_the_root_of_the_area_over_pi_and_holes_count() -> None:
    arrays = compile_fences([square("a/block", 0, 0, 10_000), polygon(
        "a/ring",
        [
            [(-10_000, -10_000), (10_000, -10_000), (10_000, 10_000), (-10_000, 10_000)],
            [(-5_000, -5_000), (5_000, -5_000), (5_000, 5_000), (-5_000, 5_000)],
        ],
    )])  # fmt: skip
    area = (20_000 * 0.01113195) * (20_000 * 0.01105743)
    assert arrays.row["characteristic_m"] == pytest.approx(
        [math.sqrt(area / math.pi), math.sqrt(0.75 * area / math.pi)], rel=1e-4
    )


# --- many fences --------------------------------------------------------------------------------------------


def test_forty_nested_fences_are_all_found_in_order_of_id() -> None:
    fences = [square(f"a/{i:02d}", LON, LAT, 1_000 * (40 - i) + 500) for i in range(40)]
    assert ids(hits_of(fences, LON, LAT, 5.0)) == [f"a/{i:02d}" for i in range(40)]
    assert ids(hits_of(fences, LON + 20_600, LAT, 1_000.0)) == [f"a/{i:02d}" for i in range(20)]


def test_only_undropped_pings_are_located() -> None:
    index = FenceIndex.build([square("a/block", LON, LAT, 5_000)], NO_CELLS)
    events = pings([(LON, LAT)] * 4)
    events["drop"][1] = 2
    events["type"][2] = EventType.USAGE
    hit_start, hits = index.locate(events)
    assert hit_start.tolist() == [0, 1, 1, 1, 2]
    assert hits["fence"].tolist() == [0, 0]


def test_an_empty_set_an_empty_batch_and_a_batch_that_outgrows_the_buffer_all_work() -> None:
    empty = FenceIndex.build([], NO_CELLS)
    assert [len(part) for part in empty.locate(pings([(LON, LAT)]))] == [2, 0]
    index = FenceIndex.build([square(f"a/{i}", LON, LAT, 5_000) for i in range(10)], NO_CELLS)
    assert [len(part) for part in index.locate(pings(np.zeros((0, 2))))] == [1, 0]
    hit_start, hits = index.locate(pings([(LON, LAT)] * 5_000))
    assert (np.diff(hit_start) == 10).all()
    assert hits["fence"].tolist() == list(range(10)) * 5_000


def test_one_fix_can_be_located_inside_another_kernel() -> None:
    index = FenceIndex.build([square(f"a/{i}", LON, LAT, 5_000) for i in range(3)], NO_CELLS)
    hits = np.zeros(4, HIT)
    assert locate_one(index.index, LON, LAT, 20.0, -1, hits, 1) == 3
    assert hits["fence"].tolist() == [0, 0, 1, 2]
    assert locate_one(index.index, LON, LAT, 20.0, -1, hits, 2) == FULL


def test_two_fences_of_one_id_and_unknown_cells_are_refused() -> None:
    with pytest.raises(ValueError, match="a/x"):
        FenceIndex.build([square("a/x", 0, 0, 5), square("a/x", 9, 9, 5)], NO_CELLS)
    with pytest.raises(ValueError, match="nowhere"):
        FenceIndex.build([cell_set("a/x", "nowhere")], NO_CELLS)


# --- cells --------------------------------------------------------------------------------------------------


def test_a_member_cell_is_high_wherever_the_tower_stands() -> None:
    # L2: judged by id alone.
    cells = cell_table("c1", "c2")
    mall = cell_set("a/mall", "c2")
    assert hits_of([mall], LON, LAT, 1_000.0, cells, 1) == [("a/mall", "HIGH", True, math.inf)]
    assert hits_of([mall], LON, LAT, 1_000.0, cells, 0) == []
    assert hits_of([mall], LON, LAT, 5.0, cells) == []


def test_either_evidence_serves_where_a_fence_has_a_shape_and_cells() -> None:
    cells = cell_table("c1", "c2")
    fences = [square("a/0", LON, LAT, 50_000), circle("a/1", LON, LAT, 300.0, cells=("c1",)), cell_set("a/2", "c1")]
    assert ids(hits_of(fences, LON, LAT, 100.0, cells)) == ["a/0", "a/1"]
    both = hits_of(fences, LON, LAT, 1_000.0, cells, 0)
    assert [hit[:3] for hit in both] == [("a/0", "LOW", True), ("a/1", "HIGH", True), ("a/2", "HIGH", True)]
    assert both[1][3] == math.inf
    assert ids(hits_of(fences, LON, LAT + 100_000, 1_000.0, cells, 0)) == ["a/1", "a/2"]
    assert hits_of(fences, LON, LAT, 1_000.0, cells, 1)[1][:3] == ("a/1", "LOW", True)


def test_a_tiling_fence_is_judged_by_the_point_alone() -> None:
    # L5: neither accuracy nor cells count, and a shared corner has one owner.
    cells = cell_table("c1")
    quarters = [
        square(f"a/{i}", LON + dx * 5_000, LAT + dy * 5_000, 5_000, tiling=True, cells=("c1",))
        for i, (dx, dy) in enumerate([(1, 1), (-1, 1), (-1, -1), (1, -1)])
    ]
    assert [hit[:3] for hit in hits_of(quarters, LON, LAT, 5_000.0, cells, 0)] == [("a/0", "HIGH", True)]
    assert ids(hits_of(quarters, LON - 5_000, LAT, 20.0)) == ["a/1"]
    assert ids(hits_of(quarters, LON - 1, LAT - 1, 50.0)) == ["a/2"]
    assert hits_of(quarters, LON, LAT + 10_001, 50.0) == []
    other_set = square("a/9", LON, LAT, 5_000, tiling=True, kind="district")
    assert ids(hits_of([*quarters, other_set], LON, LAT)) == ["a/0", "a/9"]


# --- antimeridian and poles ---------------------------------------------------------------------------------

FIJI = [[(HALF_TURN - 10_000_000, -180_000_000), (HALF_TURN + 10_000_000, -180_000_000),
         (HALF_TURN + 10_000_000, -160_000_000), (HALF_TURN - 10_000_000, -160_000_000)]]  # fmt: skip
FIJI_SPLIT = (
    [[(HALF_TURN - 10_000_000, -180_000_000), (HALF_TURN, -180_000_000), (HALF_TURN, -160_000_000),
      (HALF_TURN - 10_000_000, -160_000_000)]],
    [[(-HALF_TURN, -180_000_000), (-HALF_TURN + 10_000_000, -180_000_000), (-HALF_TURN + 10_000_000, -160_000_000),
      (-HALF_TURN, -160_000_000)]],
)  # fmt: skip


@pytest.mark.parametrize("fiji", [polygon("a/fiji", FIJI), polygon("a/fiji", *FIJI_SPLIT)], ids=["unwrapped", "split"])
def test_a_fence_over_the_antimeridian_has_no_seam(fiji: Fence) -> None:
    for lon_e7 in (HALF_TURN, -HALF_TURN, HALF_TURN - 1, 1 - HALF_TURN):
        ((_, confidence, inside, distance_m),) = hits_of([fiji], lon_e7, -170_000_000, 60.0)
        assert (confidence, inside) == ("HIGH", True)
        assert distance_m > 100_000
    assert hits_of([fiji], -HALF_TURN + 10_000_000, -170_000_000)[0][2]
    assert hits_of([fiji], -HALF_TURN + 10_000_001, -170_000_000)[0][1:3] == ("LOW", False)
    assert hits_of([fiji], 0, -170_000_000) == []


def test_a_disc_over_a_pole_is_entered_from_every_side() -> None:
    for pole in (1, -1):
        disc = circle("a/pole", 300_000_000, pole * 899_900_000, 5_000.0)
        for lon_e7 in range(-HALF_TURN, HALF_TURN + 1, 300_000_000):
            assert ids(hits_of([disc], lon_e7, pole * 899_950_000)) == ["a/pole"]
            assert hits_of([disc], lon_e7, pole * 898_000_000, 10.0) == []
        assert ids(hits_of([disc], 0, pole * 900_000_000)) == ["a/pole"]


def test_a_fence_around_the_globe_holds_both_names_of_its_seam() -> None:
    belt = polygon("a/belt", [[(-HALF_TURN, -10), (HALF_TURN, -10), (HALF_TURN, 10), (-HALF_TURN, 10)]])
    for lon_e7 in (-HALF_TURN, HALF_TURN, 0, 1_234_567_890):
        assert ids(hits_of([belt], lon_e7, 10, 1_000.0)) == ["a/belt"]
        assert hits_of([belt], lon_e7, 11, 1_000.0) == []


def test_points_off_the_globe_hit_nothing() -> None:
    belt = polygon("a/belt", [[(-HALF_TURN, -10), (HALF_TURN, -10), (HALF_TURN, 10), (-HALF_TURN, 10)]])
    assert hits_of([belt], 2_000_000_000, 0) == []
    assert hits_of([belt], 0, -2_000_000_000) == []
