"""Events per second through the decoder, beside msgspec and orjson on the same bytes in the same process.

The decoder also interns users, looks up cells and hashes ids; the peers stop at structs or dicts. Batches of 4,096
events, one event a record, unless the name says otherwise; `lines` is one record of 4,096 lines. `pipeline` is the mix
of bench/workload.py. Best of several rounds over all batches, users known; `first_round` adds them. Times are those of
the processor, so that neighbours on the machine matter less. The result hash is over every row; user, instant and
place of each are compared with what msgspec read.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Iterator, Sequence
from time import thread_time
from typing import Any

import msgspec
import numpy as np
import orjson

from bench import workload
from bench.peer import Event
from engine.decode.decoder import Decoder
from engine.decode.users import UserTable
from engine.definitions import CellTable
from engine.model import Block
from engine.settings import FeedTable, default_feeds

BATCH = 4096
ROUNDS = 5


def run(smoke: bool = False) -> list[dict[str, Any]]:
    """Measure every workload; a smoke run is small and its figures mean nothing."""
    count = 16_384 if smoke else 409_600
    cells = workload.make_cells()
    random = np.random.default_rng(7)
    few, many = (2_000, 10_000) if smoke else (200_000, 1_000_000)
    pings = joined(few, ping_lines(random.integers(0, few, count).tolist()))
    zipf = joined(many, ping_lines(workload.zipf_users(random, many, count).tolist()))
    usage = joined(few, usage_lines(random.integers(0, few, count).tolist()))
    content = workload.make_content(1_000, 8)
    figures = measure("decode.ping.200000", pings, pings.blocks(BATCH), cells)
    figures += measure("decode.ping.1000000", zipf, zipf.blocks(BATCH), cells)
    figures += measure("decode.usage", usage, usage.blocks(BATCH), cells)
    for users in (few, many):
        mix = workload.realistic(users, count, content)
        figures += measure(f"decode.pipeline.{users}", mix, mix.blocks(BATCH), content.cells)
    figures += measure("decode.lines", pings, lines_blocks(pings), cells)
    figures += measure("decode.batch_64", pings, pings.blocks(64)[: count // 256], cells)
    figures.append(one_event(pings, cells))
    figures.append(profiles(2_000 if smoke else 20_000, cells))
    return figures


def measure(name: str, made: workload.Workload, blocks: Sequence[Block], cells: CellTable) -> list[dict[str, Any]]:
    """Decode all blocks several times, and the same bytes with the peers; compare what was read."""
    decoder = Decoder(FeedTable(default_feeds()), cells, UserTable())
    first_s = seconds(lambda: decode_away(decoder, blocks), 1)
    best_s = seconds(lambda: decode_away(decoder, blocks))
    rows = decode_all(decoder, blocks)
    lines = [block.data for block in blocks]
    peer = msgspec.json.Decoder(Event)
    peer_s = seconds(lambda: exhaust(peer.decode_lines(one) for one in lines))
    orjson_s = seconds(lambda: exhaust([orjson.loads(line) for line in one.splitlines()] for one in lines), 2)
    structs = [event for one in lines for event in peer.decode_lines(one)]
    check(decoder, rows, structs)
    rate, peer_rate = len(rows) / best_s, len(rows) / peer_s
    digest = hashlib.blake2b(rows.tobytes(), digest_size=8).hexdigest()
    size = round(sum(map(len, lines)) / len(rows))
    return [
        {
            "name": f"{name}.events_per_s",
            "value": rate,
            "unit": "events/s",
            "peer": f"msgspec decode_lines at {peer_rate:,.0f}/s",
            "ratio": rate / peer_rate,
            "first_round": round(len(rows) / first_s),
            "orjson": round(len(rows) / orjson_s),
            "bytes_per_event": size,
            "users": decoder.users.live,
            "hash": digest,
        }
    ]


def decode_away(decoder: Decoder, blocks: Sequence[Block]) -> None:
    exhaust(decoder.decode(block, 0) for block in blocks)


def exhaust(results: Iterator[object]) -> None:
    """Take one result after the other and keep none, as a pipeline does."""
    for _ in results:
        pass


def decode_all(decoder: Decoder, blocks: Sequence[Block]) -> np.ndarray:
    rows = []
    for block in blocks:
        decoded = decoder.decode(block, 0)
        assert not decoded.dead
        rows.append(decoded.events)
    return np.concatenate(rows)


def seconds(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Time the best round, without the collector: it would charge the peers for all that is alive here."""
    best = float("inf")
    gc.disable()
    for _ in range(rounds):
        started = thread_time()
        work()
        best = min(best, thread_time() - started)
    gc.enable()
    return best


def check(decoder: Decoder, rows: np.ndarray, structs: list[Event]) -> None:
    """Compare user, instant and coordinates of every row with the peer's."""
    assert len(rows) == len(structs)
    assert rows["at_ms"].tolist() == [one.at for one in structs]
    ids = {slot: decoder.users.id_of(slot) for slot in np.unique(rows["user"]).tolist()}
    assert [ids[slot] for slot in rows["user"].tolist()] == [one.user for one in structs]
    placed = np.array([one.lon is not None for one in structs])
    lon_e7 = [round(one.lon * 1e7) for one in structs if one.lon is not None]
    assert rows["lon_e7"][placed].tolist() == lon_e7


def one_event(made: workload.Workload, cells: CellTable) -> dict[str, Any]:
    """How long a block of one event takes, as the service sees when little happens."""
    decoder = Decoder(FeedTable(default_feeds()), cells, UserTable())
    blocks = made.blocks(1)[:4_000]
    decode_away(decoder, blocks)
    each_us = seconds(lambda: decode_away(decoder, blocks)) / len(blocks) * 1e6
    peer = msgspec.json.Decoder(Event)
    peer_us = seconds(lambda: exhaust(peer.decode_lines(block.data) for block in blocks)) / len(blocks) * 1e6
    return {
        "name": "decode.one_event_us",
        "value": each_us,
        "unit": "us",
        "peer": f"msgspec decode_lines in {peer_us:.2f} us",
        "ratio": peer_us / each_us,
    }


def profiles(users: int, cells: CellTable) -> dict[str, Any]:
    """Profile and consent events, which the typed reader reads."""
    made = joined(users, workload.profiles(users))
    blocks = made.blocks(BATCH)
    decoder = Decoder(FeedTable(default_feeds()), cells, UserTable())
    best_s = seconds(lambda: decode_away(decoder, blocks), 2)
    return {"name": "decode.profiles.events_per_s", "value": 2 * users / best_s, "unit": "events/s"}


def ping_lines(users: Sequence[int]) -> list[bytes]:
    """Pings of about 124 bytes, as phones send them."""
    random = np.random.default_rng(11)
    lon = 116.0 + random.random(len(users))
    lat = 39.5 + random.random(len(users))
    return [
        (
            f'{{"v":1,"type":"ping","user":"u{user * 2654435761 % (1 << 32):08x}","at":{workload.START_MS + row},'
            f'"lon":{x:.7f},"lat":{y:.7f},"accuracy_m":{5 + row % 50},"method":"gps"}}'
        ).encode()
        for row, (user, x, y) in enumerate(zip(users, lon.tolist(), lat.tolist(), strict=True))
    ]


def usage_lines(users: Sequence[int]) -> list[bytes]:
    """Usage events with Chinese app names and props."""
    apps = ("淘宝", "京东", "微信", "抖音", "王者荣耀", "爱奇艺")
    return [
        (
            f'{{"v":1,"type":"usage","feed":"dpi","id":"e{row}","user":"u{user * 2654435761 % (1 << 32):08x}",'
            f'"at":{workload.START_MS + row},"app":"{apps[row % 6]}","category":"ecommerce","action":"open",'
            f'"props":{{"bytes":{row * 37 % 9973},"host":"m.example.com"}}}}'
        ).encode()
        for row, user in enumerate(users)
    ]


def joined(users: int, lines: Sequence[bytes]) -> workload.Workload:
    length = np.fromiter(map(len, lines), np.int64, len(lines))
    end = np.cumsum(length + 1) - 1
    return workload.Workload(b"\n".join(lines) + b"\n", end - length, end, users)


def lines_blocks(made: workload.Workload) -> list[Block]:
    """The same bytes with all lines of a batch in one record."""
    return [
        Block(
            block.data,
            block.start[:1].copy(),
            block.end[-1:].copy(),
            block.position[:1].copy(),
            block.append_ms[:1].copy(),
            block.kind[:1].copy(),
        )
        for block in made.blocks(BATCH)
    ]
