"""Compile every kernel once, by running a small made-up day through the whole pipeline."""

from __future__ import annotations

import hashlib
import sys
import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from engine.clock import monotonic_s
from engine.definitions import (
    AppTable,
    CellTable,
    Content,
    Fence,
    FieldTest,
    OfferDefinition,
    PatternTrigger,
    Policy,
    PresenceTrigger,
    Scenario,
    Shape,
    UsageTrigger,
    While,
)
from engine.effects import Effects
from engine.kernels import CACHE, compile_lock, warm_mark
from engine.ledger.codes import CodeStore
from engine.ledger.codes_import import import_codes
from engine.ledger.embedded import EmbeddedLedger
from engine.model import Block, Mode, RecordKind
from engine.pipeline import Pipeline
from engine.runtime.cluster.batch_kernel import partitions_of, read_batch
from engine.settings import FeedSettings, Settings, default_feeds

_DAY_MS = 1_767_330_000_000
_LATER_MS = _DAY_MS + 90_000_000


def warm_aloud() -> None:
    """Compile the kernels, saying so where it takes time, or load them, so that the first event need not wait."""
    if _is_warm():
        _run_a_day()
        return
    print("First start: compiling the hot path, once, for one to three minutes ...", file=sys.stderr, flush=True)
    done = threading.Event()
    teller = threading.Thread(target=_tell, args=(done,), daemon=True)
    teller.start()
    try:
        seconds = warm()
    finally:
        done.set()
        teller.join()
    print(f"compiled in {seconds:.0f} s, kept in {CACHE}", file=sys.stderr, flush=True)


def _tell(done: threading.Event) -> None:
    """Give a sign of life while the compiler works."""
    seconds = 0
    while not done.wait(10.0):
        seconds += 10
        print(f"  still compiling, {seconds} s ...", file=sys.stderr, flush=True)


def warm() -> float:
    """Compile under the lock that lets one process at a time do so; return the seconds it took."""
    started = monotonic_s()
    with compile_lock():
        if not _is_warm():
            _run_a_day()
            warm_mark().touch()
            _mark_of_this_copy().touch()
    return monotonic_s() - started


def _is_warm() -> bool:
    return warm_mark().exists() and _mark_of_this_copy().exists()


def _mark_of_this_copy() -> Path:
    """The file that says that the kernels of this folder were compiled.

    Numba keeps code by the path of its source: another copy of the same sources would compile for minutes, unsaid.
    """
    folder = hashlib.sha256(str(Path(__file__).resolve().parent.parent).encode()).hexdigest()[:12]
    return warm_mark().with_name(f"{warm_mark().name}-{folder}")


def _run_a_day() -> None:
    content = _content()
    feeds = {**default_feeds(), "gcj": FeedSettings(datum="gcj02", reorder_s=2), "dpi": FeedSettings(reorder_s=2)}
    with tempfile.TemporaryDirectory(prefix="opportune-warm-") as folder:
        ledger = EmbeddedLedger(Path(folder) / "ledger.db", fsync="never")
        pipeline = Pipeline(content, Settings(feeds=feeds), ledger, id_key=b"warming the kernels")
        lines = list(_lines())
        for number, line in enumerate(lines):
            effects = pipeline.process(_block([line], number))
            ledger.commit(number, effects.now_ms)
        pipeline.process(_block([b"\n".join(lines)], len(lines)))
        pipeline.process(_block([b""], len(lines) + 1, RecordKind.TICK, _LATER_MS))
        arrays, objects = pipeline.snapshot()
        pipeline.restore({name: array.copy() for name, array in arrays.items()}, objects)
        pipeline.activate(_edited(content), Effects(0))
        # Enough users that every table grows, and one that leaves.
        crowd = [
            b'{"type":"ping","user":"crowd%d","lon":116.4,"lat":39.9,"at":%d}\n'
            b'{"type":"usage","feed":"dpi","user":"crowd%d","app":"x","at":%d}' % (n, _LATER_MS, n, _LATER_MS)
            for n in range(3000)
        ]
        pipeline.process(_block([b"\n".join(crowd)], len(lines) + 2))
        # What waits to be sorted goes on before it can make a table grow.
        pipeline.process(_block([b""], len(lines) + 3, RecordKind.TICK, _LATER_MS + 10_000))
        pipeline.forget("crowd7")
        everybody = np.arange(pipeline.users.count)
        pipeline.presence.reset_users(everybody)
        pipeline.behavior.reset_users(everybody)
        ledger.close()
        _import_codes(Path(folder))
    _read_a_record_batch()


def _read_a_record_batch() -> None:
    """One record without key, value and headers, as Kafka writes it."""
    data = np.frombuffer(b"\x0c\0\0\0\x01\x01\0", np.uint8)
    name = np.zeros(14, np.uint8)
    start, end, position, append_ms = (np.zeros(1, np.int64) for _ in range(4))
    head, kind = np.zeros(7, np.int64), np.zeros(1, np.uint8)
    assert read_batch(data, 0, len(data), 1, head, name, 0, start, end, position, append_ms, kind) == 1
    partitions_of(data, start, end, 2, position)


def _import_codes(folder: Path) -> None:
    """Two files: the second meets a pool that holds codes already, and one of them again."""
    store = CodeStore(folder / "codes.db")
    for name, text in (("a.csv", "A1\nA2\n"), ("b.csv", "A2\nA3\n")):
        (folder / name).write_text(text)
        import_codes(store, "warm", folder / name)
    store.close()


def _content() -> Content:
    square = np.array([[0, 0], [20_000, 0], [20_000, 20_000], [0, 20_000]], np.int64) + [1_164_000_000, 399_000_000]
    line = square[:2] + 100_000
    fences = (
        Fence("warm/a", "a", "mall", Shape.POLYGON, ((square,),), state_hash="a", enter_delay_s=30.0),
        Fence("warm/b", "b", "mall", Shape.CIRCLE, ((square[:1],),), radius_m=150.0, state_hash="b", exit_delay_s=60.0),
        Fence("warm/c", "c", "road", Shape.CORRIDOR, ((line,),), buffer_m=50.0, state_hash="c"),
        Fence("warm/d", "d", "mall", Shape.CELLS, cells=("460-01-1-1",), state_hash="d"),
        Fence("warm/e", "e", "mall", Shape.POLYGON, ((square,),), state_hash="e", valid_until_ms=_DAY_MS + 400_000),
    )
    offer = OfferDefinition("warm/offer", "video", "partner", "marketing", ("sms",), "warm")
    names = tuple(fence.id for fence in fences)
    opened = UsageTrigger((FieldTest("app", "==", "x"),))
    scenarios = (
        Scenario("warm/enter", "", Mode.LIVE, PresenceTrigger("enter", names), offer),
        Scenario("warm/dwell", "", Mode.LIVE, PresenceTrigger("dwell", names, 120), offer),
        Scenario("warm/exit", "", Mode.LIVE, PresenceTrigger("exit", names), offer),
        Scenario("warm/usage", "", Mode.LIVE, opened, offer),
        Scenario("warm/inside", "", Mode.LIVE, opened, offer, while_=While(names, _pattern("count", opened))),
        *(
            Scenario(f"warm/{kind}", "", Mode.LIVE, _pattern(kind, *steps, field=field), offer)
            for kind, steps, field in (
                ("count", (PresenceTrigger("enter", names),), ""),
                ("sum", (opened,), "props.price"),
                ("distinct", (opened,), "app"),
                ("sequence", (PresenceTrigger("enter", names), opened), ""),
                ("absence", (opened, PresenceTrigger("exit", names)), ""),
            )
        ),
    )
    cells = CellTable(
        ("460-01-1-1",),
        np.array([1_164_000_000], np.int32),
        np.array([399_000_000], np.int32),
        np.array([500.0]),
        np.zeros(1, bool),
    )
    assumed = frozenset({"location", "usage", "marketing.sms"})
    apps = AppTable(("x",), ("warm",))
    return Content("warm", fences, cells, scenarios, Policy(assumed_consent=assumed), apps=apps)


def _edited(content: Content) -> Content:
    """The same with a fence that was drawn anew, and a cell more: what an activation takes leave of, and renumbers."""
    first, *others = content.fences
    cells = content.cells
    more = CellTable(
        ("460-01-1-0", *cells.ids),
        np.append(cells.lon_e7, cells.lon_e7),
        np.append(cells.lat_e7, cells.lat_e7),
        np.append(cells.radius_m, cells.radius_m),
        np.append(cells.indoor, cells.indoor),
    )
    return replace(content, fences=(replace(first, state_hash="drawn anew"), *others), cells=more)


def _pattern(kind: str, *steps: UsageTrigger | PresenceTrigger, field: str = "") -> PatternTrigger:
    return PatternTrigger(kind, steps, 300_000, 2, field, state_hash=f"{kind}{steps}")


def _lines() -> list[bytes]:
    """A user who walks in, stays, leaves, is seen by cells and opens an app."""
    lines = []
    for step in range(60):
        inside = 10 <= step < 40
        where: dict[str, Any] = (
            {"lon": 116.401, "lat": 39.901} if inside else {"lon": 116.43 + step * 1e-4, "lat": 39.93}
        )
        if step % 7 == 6:
            where = {"cell": "460-01-1-1"}
        feed = "gcj" if step % 5 == 4 else "app"
        ping = {"type": "ping", "feed": feed, "id": f"p{step}", "user": f"w{step % 2}", "at": _DAY_MS + step * 60_000}
        lines.append(orjson.dumps({**ping, **where, "accuracy_m": 10, "method": "gps"}))
        usage = {"type": "usage", "feed": "dpi", "user": f"w{step % 2}", "app": "x", "at": _DAY_MS + step * 60_000}
        lines.append(orjson.dumps({**usage, "props": {"price": 1.5}}))
        lines.append(orjson.dumps({**ping, **where, "id": "é", "at": "2026-01-02T05:04:05.5+08:00"}))
    lines.append(orjson.dumps({"type": "user-closed", "user": "w1", "at": _DAY_MS + 3_600_000}))
    for state in ("delivered", "failed"):
        receipt = {"type": "receipt", "user": "w0", "offer_id": "0" * 32, "state": state, "at": _DAY_MS}
        lines.append(orjson.dumps(receipt))
    lines.append(b"{broken")
    return lines


def _block(values: list[bytes], position: int, kind: RecordKind = RecordKind.EVENTS, append_ms: int = -1) -> Block:
    end = np.cumsum([len(value) for value in values]).astype(np.int64)
    start = end - np.array([len(value) for value in values], np.int64)
    count = len(values)
    return Block(
        b"".join(values),
        start,
        end,
        np.arange(position, position + count, dtype=np.int64),
        np.full(count, append_ms, np.int64),
        np.full(count, kind, np.uint8),
    )
