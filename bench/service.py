"""End to end through HTTP: one event per request, open loop, from the intended send time to the gateway's hand-off.

The service runs as in production (journal, caps, ledger, claims, address book, dispatcher) with 10,000 fences; a
compiled generator beside it keeps the rate whatever the answers do. One event in twenty makes an offer, every offer to
another user, so that nothing is capped. Latencies count from the instant a request was due.
"""

from __future__ import annotations

import base64
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson

from bench.loadgen import MARK, command
from engine.deliver.addressbook import AddressBook
from engine.metrics import read_exposition

OFFER_EVERY = 20
OFFERS = 20_000
RATES = (2_000, 4_000)
FENCES = 10_000
USERS = 200_000
CONNECTIONS = 64
WARM_UP_S = 5

POLICY = """
time_zone: UTC
quiet_hours: {{from: "{begin:02}:00", to: "{end:02}:00"}}
assumed_consent: [location, usage, marketing.sms]
caps: [{{at_most: 2, rolling: 24 h}}, {{at_most: 6, rolling: 7 days}}]
signature: 中国联通
opt_out_text: 拒收请回复R
"""
SCENARIO = """
id: national/bench-offer
name: one offer
goal: touchpoints
mode: live
trigger: {usage: {app: com.bench.offer, action: open}}
offer:
  benefit: {id: bench, name: 测试权益, class: video, partner: bench}
  channels: [sms]
  text: 追剧不用愁流量！开通视频会员月卡，每月仅19元。
"""


def run(smoke: bool = False) -> list[dict[str, Any]]:
    rows = []
    for rate in (200,) if smoke else RATES:
        rows += measure(rate, offers=20 if smoke else OFFERS, fences=100 if smoke else FENCES)
    return rows


def measure(rate: int, *, offers: int, fences: int, importing: Path | None = None) -> list[dict[str, Any]]:
    """Run one rate in a fresh service; raise where an offer was lost or doubled.

    importing  a table of users to import meanwhile
    """
    with tempfile.TemporaryDirectory(prefix="opportune-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        key = secrets.token_bytes(32)
        environment = {**os.environ, "OPPORTUNE_ADDRESS_KEY": base64.b64encode(key).decode()}
        write_content(folder, fences)
        warm_up = rate * WARM_UP_S // OFFER_EVERY
        lines = make_lines((offers + warm_up) * OFFER_EVERY)
        (folder / "lines").write_bytes(b"".join(lines))
        book = AddressBook(folder / "state" / "addresses.db", key)
        book.put((f"o{number}", "sms", str(number)) for number in range(0, len(lines), OFFER_EVERY))
        book.close()
        arguments = [folder / "state", folder / "geofences", folder / "scenarios", folder / "times"]
        service = subprocess.Popen(
            [sys.executable, "-m", "bench.service_host", *map(str, arguments)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert service.stdout is not None
            port = int(service.stdout.readline() or "0")
            if not port:
                raise RuntimeError("the service did not start; see above")
            expected_profiles = len(range(0, len(lines), OFFER_EVERY))
            register(port, range(0, len(lines), OFFER_EVERY))
            importer = None if importing is None else subprocess.Popen(
                [sys.executable, "-m", "engine.cli", "profiles", "import", str(importing)]
                + ["--url", f"http://127.0.0.1:{port}"],
                stdout=subprocess.DEVNULL,
            )  # fmt: skip
            before = cpu_seconds(port)
            begin = time.perf_counter()
            report = orjson.loads(
                subprocess.run(
                    [*command(folder), "127.0.0.1", str(port), str(rate), str(CONNECTIONS), str(folder / "lines"),
                     str(folder / "acks")],
                    check=True, stdout=subprocess.PIPE,
                ).stdout
            )  # fmt: skip
            cores = (cpu_seconds(port) - before) / (time.perf_counter() - begin)
            time.sleep(1.0)
            imported = profiles_seen(port) - expected_profiles
            if importer is not None:
                importer.terminate()
                importer.wait(30)
        finally:
            service.send_signal(signal.SIGTERM)
            service.wait(60)
        times = np.fromfile(folder / "times", np.int64).reshape(-1, 2)
        acks = np.fromfile(folder / "acks", np.int64)
    numbers, handed_ns = times[:, 0], times[:, 1]
    expected = np.arange(0, len(lines), OFFER_EVERY)
    if not np.array_equal(np.sort(numbers), expected):
        raise AssertionError(f"{len(numbers)} offers were handed over, {len(np.unique(numbers))} different; expected "
                             f"{len(expected)}; refused requests: {report['refused']}")  # fmt: skip
    after = numbers >= warm_up * OFFER_EVERY
    handed_ms = (handed_ns - report["t0_ns"] - numbers * 1e9 / rate)[after] / 1e6
    acked_ms = acks[warm_up * OFFER_EVERY :] / 1e3
    more = {
        "offers": int(after.sum()),
        "generator": report["generator"],
        "generator_worst_late_ms": report["worst_late_us"] / 1000,
        "fences": fences,
        "fsync": "interval",
    }
    if importing is not None:
        more["rows_imported"] = imported
    rows = [
        {"name": f"service.{rate}.p{label}_ms", "value": float(np.percentile(handed_ms, share)), "unit": "ms", **more}
        for label, share in (("50", 50), ("99", 99), ("99_9", 99.9))
    ]
    rows.append({"name": f"service.{rate}.ack_p99_ms", "value": float(np.percentile(acked_ms, 99)), "unit": "ms"})
    rows.append({"name": f"service.{rate}.cores", "value": cores, "unit": "cores"})
    return rows


def make_lines(count: int, seed: int = 5) -> list[bytes]:
    """Events of many users; every twentieth opens the app that the scenario waits for, each time another user."""
    random = np.random.default_rng(seed)
    users = random.integers(0, USERS, count).tolist()
    lon = (116.2 + 0.4 * random.random(count)).tolist()
    lat = (39.8 + 0.3 * random.random(count)).tolist()
    sort = random.random(count).tolist()
    lines = []
    for number in range(count):
        if number % OFFER_EVERY == 0:
            body = b'"usage","feed":"dpi","id":"b%d","user":"o%d","at":%s,"app":"com.bench.offer","action":"open"' % (
                number, number, MARK,
            )  # fmt: skip
        elif sort[number] < 0.26:
            body = b'"usage","feed":"dpi","user":"u%d","at":%s,"app":"com.tencent.mm","category":"social"' % (
                users[number], MARK,
            )  # fmt: skip
        else:
            body = b'"ping","feed":"app","user":"u%d","at":%s,"lon":%.6f,"lat":%.6f,"accuracy_m":15,"method":"gps"' % (
                users[number], MARK, lon[number], lat[number],
            )  # fmt: skip
        lines.append(b'{"v":1,"type":' + body + b"}\n")
    return lines


def write_content(folder: Path, fences: int, seed: int = 6) -> None:
    """Write fences, one scenario and a policy whose quiet hours are far from now."""
    random = np.random.default_rng(seed)
    features = [
        {
            "type": "Feature",
            "properties": {"id": f"beijing/f{number}", "name": f"f{number}", "kind": "shop", "radius_m": 60},
            "geometry": {"type": "Point", "coordinates": [round(lon, 6), round(lat, 6)]},
        }
        for number, (lon, lat) in enumerate(
            zip(
                (116.2 + 0.4 * random.random(fences)).tolist(),
                (39.8 + 0.3 * random.random(fences)).tolist(),
                strict=True,
            )
        )
    ]
    for part in ("geofences", "scenarios/national"):
        (folder / part).mkdir(parents=True)
    size = 2_000
    for first in range(0, fences, size):
        collection = {"type": "FeatureCollection", "features": features[first : first + size]}
        (folder / "geofences" / f"bench-{first}.geojson").write_bytes(orjson.dumps(collection))
    (folder / "scenarios" / "national" / "bench-offer.yaml").write_text(SCENARIO)
    begin = (time.gmtime().tm_hour + 11) % 24
    (folder / "scenarios" / "policy.yaml").write_text(POLICY.format(begin=begin, end=(begin + 1) % 24))


def register(port: int, numbers: range) -> None:
    """Make the users known, so that the engine may decide about them, and wait until it is."""
    at_ms = time.time_ns() // 1_000_000
    lines = [b'{"v":1,"type":"profile","user":"o%d","at":%d,"tags":["bench"]}' % (one, at_ms) for one in numbers]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
        for first in range(0, len(lines), 5_000):
            client.post("/v1/events", content=b"\n".join(lines[first : first + 5_000])).raise_for_status()
        while True:
            samples = read_exposition(client.get("/metrics").text)
            if samples.get("opportune_events_total", {}).get(("profile",), 0) >= len(lines):
                return
            time.sleep(0.1)


def profiles_seen(port: int) -> int:
    samples = read_exposition(httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text)
    return int(samples.get("opportune_events_total", {}).get(("profile",), 0))


def cpu_seconds(port: int) -> float:
    samples = read_exposition(httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text)
    return samples["process_cpu_seconds_total"][()]
