"""A small world for tests of the whole pipeline: content, a ledger in memory, blocks from events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from engine.definitions import (
    Cap,
    CellTable,
    Content,
    Fence,
    FieldTest,
    HasTag,
    Limits,
    OfferDefinition,
    Policy,
    PresenceTrigger,
    QuietHours,
    Reentry,
    Scenario,
    Shape,
    UsageTrigger,
)
from engine.effects import Effects
from engine.model import Block, Mode, RecordKind, ReserveAnswer, ReserveRequest, Scope
from engine.pipeline import Pipeline
from engine.runtime.backtest import ShadowLedger
from engine.settings import Settings

NOON_MS = 1_767_326_400_000  # 2026-01-02 12:00 in Beijing
KEY = b"a key for the tests' offer ids"


class MemoryLedger(ShadowLedger):
    """Caps and stock in memory and nothing else: what the pipeline needs of a ledger; keeps what was granted."""

    def __init__(self) -> None:
        super().__init__(endless_codes=False)
        self.grants: list[Any] = []

    def reserve(self, requests: Sequence[ReserveRequest]) -> list[ReserveAnswer]:
        return self.stock.reserve(requests, self.caps, self.grants)


def circle(name: str, lon: float, lat: float, radius_m: float, **more: Any) -> Fence:
    centre = np.array([[round(lon * 1e7), round(lat * 1e7)]], np.int64)
    return Fence(f"national/{name}", name, "mall", Shape.CIRCLE, ((centre,),), radius_m, state_hash=name, **more)


def offer(**more: Any) -> OfferDefinition:
    given = {"benefit": "national/film", "benefit_class": "entertainment", "partner": "wanda", "channels": ("sms",)}
    return OfferDefinition(**{**given, "offer_class": "marketing", "text": "您好，观影券一张。", **more})


def scenario(name: str, trigger: Any, **more: Any) -> Scenario:
    return Scenario(
        **{"id": f"national/{name}", "name": name, "mode": Mode.LIVE, "trigger": trigger, "offer": offer(), **more}
    )


def small_content(version: str = "v1", **more: Any) -> Content:
    """Three fences (two nested), a cell-set fence, and a scenario of every kind."""
    fences = (
        circle("cinema", 116.4, 39.9, 60),
        circle("mall", 116.4, 39.9, 200),
        Fence("national/metro", "metro", "station", Shape.CELLS, cells=("460-01-1-1",), state_hash="metro"),
        circle("park", 116.41, 39.9, 150, enter_delay_s=120.0, exit_delay_s=300.0),
    )
    names = tuple(fence.id for fence in fences)
    scenarios = (
        scenario("arrive", PresenceTrigger("enter", names[:2]), priority=2.0, holdout_percent=20.0),
        scenario("leave", PresenceTrigger("exit", (names[1],)), audience=HasTag("member")),
        scenario("linger", PresenceTrigger("dwell", (names[1], names[3]), 300), reentry=Reentry("cooldown", 3_600_000)),
        scenario(
            "metro",
            PresenceTrigger("enter", (names[2],)),
            quiet_hours=QuietHours(0, 13 * 60, "hold"),
            offer=offer(deadline_s=86_400),
        ),
        scenario(
            "shop",
            UsageTrigger(
                (FieldTest("category", "==", "ecommerce"), FieldTest("props.amount_fen", "range", (1000, None)))
            ),
            limits=Limits(caps=(Cap(Scope.SCENARIO, 1, "day"),), hourly_limit=20),
        ),
        scenario("watch", UsageTrigger((FieldTest("app", "==", "iqiyi"),)), mode=Mode.SHADOW),
    )
    cells = CellTable(
        ("460-01-1-1", "460-01-1-2"),
        np.array([1_164_000_000, 1_164_100_000], np.int32),
        np.array([399_000_000, 399_000_000], np.int32),
        np.array([500.0, 500.0]),
        np.zeros(2, bool),
    )
    given = {"fences": fences, "cells": cells, "scenarios": scenarios, "policy": small_policy()}
    return Content(version=version, **{**given, **more})


def small_policy(**more: Any) -> Policy:
    given = {"caps": (Cap(Scope.ALL, 2, "rolling", 86_400_000),), "assumed_consent": frozenset({"location", "usage"})}
    return Policy(**{**given, **more})


def make_pipeline(content: Content | None = None, settings: Settings | None = None) -> Pipeline:
    return Pipeline(content or small_content(), settings or Settings(), MemoryLedger(), id_key=KEY)


def block_of(
    values: Sequence[bytes | dict[str, Any]],
    *,
    position: int = 0,
    append_ms: Sequence[int] | int = -1,
    kinds: Sequence[int] | int = RecordKind.EVENTS,
) -> Block:
    """Make a block of one record per value; dicts become JSON."""
    payloads = [value if isinstance(value, bytes) else orjson.dumps(value) for value in values]
    length = np.array([len(payload) for payload in payloads], np.int64)
    end = np.cumsum(length)
    count = len(payloads)
    return Block(
        b"".join(payloads),
        end - length,
        end,
        np.arange(position, position + count, dtype=np.int64),
        np.broadcast_to(np.asarray(append_ms, np.int64), count).copy(),
        np.broadcast_to(np.asarray(kinds, np.uint8), count).copy(),
    )


def block_between(records: Sequence[tuple[Any, int, int]], first: int, last: int) -> Block:
    """Make a block of records first:last of a log: value, append time and kind of each."""
    values, append_ms, kinds = zip(*records[first:last], strict=True)
    return block_of(values, position=first, append_ms=append_ms, kinds=kinds)


def restarted(pipeline: Pipeline) -> Pipeline:
    """Take a snapshot through JSON and bytes into a new pipeline, as a checkpoint would."""
    arrays, objects = pipeline.snapshot()
    fresh, caps = make_pipeline(pipeline.content, pipeline.settings), pipeline.ledger.caps
    fresh.ledger.caps.restore({name: array.copy() for name, array in caps.arrays().items()}, caps.objects())
    fresh.restore({name: array.copy() for name, array in arrays.items()}, orjson.loads(orjson.dumps(objects)))
    return fresh


def ping(user: str, at_ms: int, lon: float, lat: float, **more: Any) -> dict[str, Any]:
    event = {"type": "ping", "feed": "app", "user": user, "lon": lon, "lat": lat, "accuracy_m": 10, "method": "gps"}
    return {**event, "at": at_ms, **more}


def usage(user: str, at_ms: int, **more: Any) -> dict[str, Any]:
    return {"type": "usage", "feed": "dpi", "user": user, "at": at_ms, "action": "open", **more}


def consent(user: str, at_ms: int, purpose: str = "marketing.sms", granted: bool = True) -> dict[str, Any]:
    return {"type": "consent", "user": user, "at": at_ms, "purpose": purpose, "granted": granted}


def profile(user: str, at_ms: int, **more: Any) -> dict[str, Any]:
    return {"type": "profile", "user": user, "at": at_ms, **more}


def told(pipeline: Pipeline, effects: Effects) -> list[bytes]:
    """Everything a block brought about, as bytes that can be compared."""
    from engine.decide.records import encode

    lines = list(pipeline.transition_lines(effects))
    lines += [encode(decision) for decision in effects.decisions]
    lines += [repr(offer).encode() for offer in effects.offers]
    lines += [f"{letter.reason} {letter.detail} {letter.position} {letter.item}".encode() for letter in effects.dead]
    lines += [f"{change}".encode() for change in effects.consents]
    lines += [f"{one}".encode() for one in effects.redemptions]
    return lines
