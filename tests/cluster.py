"""A cluster of real processes for the tests: content, worker, dispatcher, a gateway that counts, events by key."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
import orjson
from aiokafka import AIOKafkaProducer

from engine import metrics
from engine.deliver.addressbook import open_address_book
from engine.runtime.cluster.outputs import read_records
from engine.settings import Settings
from tests.integration.test_crash import SECRET, Receiver

ROOT = Path(__file__).resolve().parents[1]
SCENARIO = """
id: national/shopping
name: shopping
goal: raise_revenue
mode: live
trigger: {usage: {category: shopping, action: [browse]}}
offer:
  benefit: shopping-plan-voucher
  channels: [sms]
  text: 您正在网购，{benefit_name}送给您。
limits: {caps: [{at_most: 2, rolling: 24 h}]}
"""
LINGER = """
id: national/linger
name: linger
goal: raise_revenue
mode: live
trigger: {dwell: {kind: stop, for: 5 s}}
offer:
  benefit: shopping-plan-voucher
  channels: [sms]
  text: 您在{fence_name}，{benefit_name}送给您。
"""
STOP = """{"type": "FeatureCollection", "datum": "wgs84", "features": [{"type": "Feature",
 "properties": {"id": "beijing/stop", "name": "车站", "kind": "stop", "radius_m": 100},
 "geometry": {"type": "Point", "coordinates": [116.41, 39.91]}}]}
"""
POLICY = """
time_zone: UTC
caps: [{at_most: 3, rolling: 24 h}]
quiet_hours: {from: "%02d:00", to: "%02d:01"}
assumed_consent: [location, usage, marketing.sms]
claim_domains: [quan.example.cn]
signature: 中国联通
opt_out_text: 拒收请回复R
"""


def write_content(folder: Path, *, linger: bool = False) -> Path:
    """Content with one usage scenario, and one that waits on request; the quiet hour is the one furthest from now."""
    scenarios = folder / "scenarios"
    (scenarios / "national").mkdir(parents=True)
    (folder / "geofences").mkdir()
    (folder / "geofences" / "one.geojson").write_bytes((ROOT / "geofences" / "beijing-cinemas.geojson").read_bytes())
    hour = (time.gmtime().tm_hour + 12) % 24
    (scenarios / "policy.yaml").write_text(POLICY % (hour, hour))
    (scenarios / "national" / "shopping.yaml").write_text(SCENARIO)
    if linger:
        (scenarios / "national" / "linger.yaml").write_text(LINGER)
        (folder / "geofences" / "stop.geojson").write_text(STOP)
    benefits = scenarios / "benefits"
    benefits.mkdir()
    (benefits / "national.yaml").write_bytes((ROOT / "scenarios" / "benefits" / "national.yaml").read_bytes())
    return folder


def browse(user: int, number: int, at_ms: int) -> bytes:
    return orjson.dumps(
        {
            "type": "usage",
            "feed": "dpi",
            "id": f"e{number}",
            "user": f"user-{user}",
            "at": at_ms,
            "category": "shopping",
            "action": "browse",
        }
    )


class Cluster:
    """One deployment; its commands are processes of their own."""

    def __init__(self, folder: Path, kafka: str, redis: str, *, partitions: int = 2, **more: str) -> None:
        self.folder = folder
        self.kafka = kafka
        self.partitions = partitions
        self.prefix = f"t{os.getpid()}-{time.monotonic_ns()}."
        self.receiver = Receiver()
        self.environment = {
            **os.environ,
            "OPPORTUNE_STATE": str(folder / "state"),
            "OPPORTUNE_CHECKPOINT_INTERVAL_S": "2",
            "OPPORTUNE_CLUSTER__KAFKA": kafka,
            "OPPORTUNE_CLUSTER__REDIS": redis,
            "OPPORTUNE_CLUSTER__PARTITIONS": str(partitions),
            "OPPORTUNE_CLUSTER__PREFIX": self.prefix,
            "OPPORTUNE_CLUSTER__CHECKPOINTS": str(folder / "checkpoints"),
            "OPPORTUNE_CLUSTER__SESSION_TIMEOUT_S": "6",
            "OPPORTUNE_GATEWAYS__SMS__KIND": "webhook",
            "OPPORTUNE_GATEWAYS__SMS__URL": self.receiver.url,
            "OPPORTUNE_GATEWAYS__SMS__SECRET": SECRET,
            "OPPORTUNE_GATEWAYS__SMS__ALLOW_HTTP": "true",
            "OPPORTUNE_GATEWAYS__SMS__WINDOW": "32",
            "OPPORTUNE_GATEWAYS__SMS__ALLOW_NETWORKS": '["127.0.0.0/8"]',
            **more,
        }
        self._processes: list[subprocess.Popen[str]] = []

    def give_addresses(self, users: int) -> None:
        book = open_address_book(Settings(state=self.folder / "state"))
        book.put([(f"user-{user}", "sms", f"1380000{user:04d}") for user in range(users)])
        book.close()

    def run(self, *arguments: str, status: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "engine.cli", *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def start(self, command: str, **more: str) -> Part:
        part = Part(command, self.environment | more, self.folder / f"{command}.log")
        self._processes.append(part.process)
        return part

    def produce(self, keys: Iterable[str], values: Iterable[bytes]) -> None:
        async def send() -> None:
            producer = AIOKafkaProducer(bootstrap_servers=self.kafka, linger_ms=5)
            await producer.start()
            topic = f"{self.prefix}events"
            waiting = [
                await producer.send(topic, value, key=key.encode()) for key, value in zip(keys, values, strict=True)
            ]
            await asyncio.gather(*waiting)
            await producer.stop()

        asyncio.run(send())

    def records(self, role: str) -> dict[int, list[Any]]:
        """Everything in a topic, by partition."""
        partitions = range(self.partitions if role in ("events", "offers", "decisions", "reservations") else 1)

        async def read() -> dict[int, list[Any]]:
            topic = f"{self.prefix}{role}"
            return {partition: await read_records(self.kafka, topic, partition) for partition in partitions}

        return asyncio.run(read())

    def values(self, role: str) -> list[bytes]:
        return [record.value for records in self.records(role).values() for record in records]

    def close(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self.receiver.close()


class Part:
    """A worker or a dispatcher."""

    def __init__(self, command: str, environment: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "engine.cli", command],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=out,
                text=True,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert "health and metrics on" in line, f"did not start: {line!r}\n{log.read_text()[-3000:]}"
        self.url = line.split()[-1]

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        end_s = time.monotonic() + timeout_s
        while True:
            answer = httpx.get(f"{self.url}/readyz", trust_env=False)
            if answer.status_code == 200:
                return
            assert time.monotonic() < end_s, f"not ready: {answer.text}\n{self.log.read_text()[-3000:]}"
            time.sleep(0.1)

    def metric(self, name: str) -> dict[tuple[str, ...], float]:
        """A metric's values by labels; {} where the process does not answer."""
        try:
            text = httpx.get(f"{self.url}/metrics", trust_env=False, timeout=5.0).text
        except httpx.HTTPError:
            return {}
        return metrics.read_exposition(text).get(name, {})

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    @property
    def resident_bytes(self) -> int:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))

    def stop(self) -> None:
        """Drain within the 25 s of F24."""
        started_s = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(timeout=40)
        assert status == 0, self.log.read_text()[-3000:]
        assert time.monotonic() - started_s < 25
