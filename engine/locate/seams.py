"""Bring the parts of a multipolygon together across the antimeridian (L4, RFC 7946 section 3.1.9)."""

from __future__ import annotations

import numpy as np
import shapely

from engine.distance_kernel import EARTH_TURN_E7

Parts = tuple[tuple[np.ndarray, ...], ...]


def unwrap_parts(parts: Parts) -> Parts:
    """Shift parts by whole turns so that together they are narrow, and join those that touch at the cut.

    Without the join a seam in the middle of a fence would count as its boundary in the signed distance.
    """
    if len(parts) == 1:
        return parts
    west = np.array([part[0][:, 0].min() for part in parts])
    east = np.array([part[0][:, 0].max() for part in parts])
    if east.max() - west.min() <= EARTH_TURN_E7 // 2:
        return parts
    start = west % EARTH_TURN_E7
    order = np.argsort(start, kind="stable")
    reach = np.maximum.accumulate((start + east - west)[order])
    gap = np.append(start[order][1:], start[order][0] + EARTH_TURN_E7) - reach
    after = (int(np.argmax(gap)) + 1) % len(parts)
    turns = np.where(start < start[order][after], start + EARTH_TURN_E7, start) - west
    shifted = tuple(
        tuple(ring + np.array([turn, 0]) for ring in part) for part, turn in zip(parts, turns.tolist(), strict=True)
    )
    return joined(shifted)


def joined(parts: Parts) -> Parts:
    """Union touching parts; where the union is not exact on the e7 lattice, leave them as they are."""
    union = shapely.union_all([shapely.Polygon(part[0], part[1:]) for part in parts])
    polygons = [one for one in shapely.get_parts(union) if one.geom_type == "Polygon"]
    if len(polygons) == len(parts):
        return parts
    if not np.array_equal(shapely.get_coordinates(union), np.rint(shapely.get_coordinates(union))):
        return parts
    return tuple(
        tuple(
            np.rint(np.asarray(ring.coords)[:-1, :2]).astype(np.int64)
            for ring in (polygon.exterior, *polygon.interiors)
        )
        for polygon in polygons
    )
