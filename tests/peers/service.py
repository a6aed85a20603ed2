"""`opportune serve` as a process of its own over content of a test, its gateways those of the test."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import orjson

from engine.deliver.addressbook import open_address_book
from engine.settings import Settings
from tests.peers.receiver import SECRET, signed

ROOT = Path(__file__).resolve().parents[2]
POLICY = """
time_zone: UTC
caps: [{at_most: 50, rolling: 24 h}]
quiet_hours: {from: "%02d:00", to: "%02d:01"}
assumed_consent: [location, usage, marketing.sms, marketing.app]
signature: 测试
opt_out_text: 拒收请回复R
"""
FENCES = (
    '{"type":"FeatureCollection","features":[{"type":"Feature",'
    '"geometry":{"type":"Point","coordinates":[116.4,39.9]},'
    '"properties":{"id":"national/mall","name":"商场","kind":"mall","radius_m":100,"time_zone":"UTC"}}]}'
)


def scenario(name: str, trigger: str, text: str, more: str = "") -> str:
    """A live scenario that says `text` by SMS, as often as it is triggered. `more`: further fields of the offer."""
    return f"""
id: national/{name}
name: {name}
mode: live
goal: touchpoints
trigger: {trigger}
offer:
  benefit: {{id: voucher, name: 代金券, class: living, partner: shop}}
  channels: [sms]
  text: {text}
  {more}
reentry: every
"""


def webhook_gateways(url: str, **sms: str) -> dict[str, str]:
    """Settings of one webhook for sms and one for app; `sms`: further settings of the former."""
    common = {
        "KIND": "webhook",
        "URL": url,
        "SECRET": SECRET,
        "ALLOW_HTTP": "true",
        "ALLOW_NETWORKS": '["127.0.0.0/8"]',
    }
    return {
        f"OPPORTUNE_GATEWAYS__{channel}__{field}": value
        for channel, more in (("SMS", sms), ("APP", {}))
        for field, value in {**common, **more}.items()
    }


class ServiceProcess:
    """A service in a folder; it can be killed and started again there.

    settings  environment of the process, gateways included
    around    a command that the service is started by, such as one that gives it a disk of its own
    """

    def __init__(
        self, folder: Path, scenarios: Sequence[str], settings: Mapping[str, str], *, around: Sequence[str] = ()
    ) -> None:
        self.folder = folder
        self.state = folder / "state"
        content, places = folder / "scenarios", folder / "geofences"
        for one in (content, places, self.state):
            one.mkdir(parents=True, exist_ok=True)
        (places / "places.geojson").write_text(FENCES)
        hour = (time.gmtime().tm_hour + 12) % 24
        (content / "policy.yaml").write_text(POLICY % (hour, hour))
        for text in scenarios:
            (content / f"{text.split('/')[1].split()[0]}.yaml").write_text(text)
        self.environment = {
            **os.environ,
            "OPPORTUNE_STATE": str(self.state),
            "OPPORTUNE_SCENARIOS": str(content),
            "OPPORTUNE_GEOFENCES": str(places),
            **settings,
        }
        self._around = list(around)
        self.log = folder / "service.log"

    def give_addresses(self, users: int, channels: Sequence[str] = ("sms", "app")) -> None:
        book = open_address_book(Settings(state=self.state))
        book.put((f"u{user}", channel, number_of(user)) for user in range(users) for channel in channels)
        book.close()

    def start(self) -> ServiceProcess:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self._around, sys.executable, "-m", "engine.cli", "serve", "--port", "0"],
                cwd=ROOT,
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://\S+?:\d+", line)
        if found is None:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
            raise AssertionError(f"the service did not start: {line!r}\n{self.log_text()[-3000:]}")
        self.client = httpx.Client(base_url=found[0], trust_env=False, timeout=10)
        return self

    def log_text(self) -> str:
        return self.log.read_text()

    # --- what is told -----------------------------------------------------------------------------------------------

    def post(self, events: Sequence[Mapping[str, Any]]) -> httpx.Response:
        return self.client.post("/v1/events", content=b"\n".join(map(orjson.dumps, events)))

    def shop(self, users: Sequence[int]) -> None:
        """Let users open a shopping app."""
        answer = self.post([usage(user, "ecommerce", "open") for user in users])
        assert answer.status_code == 202, answer.text

    def call_back(self, channel: str, kind: str, data: Mapping[str, Any]) -> httpx.Response:
        """Report as the receiver of a webhook does."""
        identity = f"{kind}-{time.monotonic_ns()}"
        return self.client.post(f"/v1/callbacks/{channel}", **signed({"type": kind, "data": data}, identity))

    def until(self, holds: Callable[[], bool], within_s: float = 15.0) -> None:
        end_s = time.monotonic() + within_s
        while not holds():
            assert time.monotonic() < end_s, f"it did not happen in {within_s} s\n{self.log_text()[-1500:]}"
            time.sleep(0.01)

    # --- what is stored ---------------------------------------------------------------------------------------------

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Read the ledger beside the service."""
        path = self.state / "ledger.db"
        if path.is_relative_to("/proc"):  # on a disk that only the service sees: SQLite would follow the link out of it
            for one in self.state.glob("ledger.db*"):
                shutil.copy(one, self.folder)
            path = self.folder / path.name
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)
        try:
            return connection.execute(query, values).fetchall()
        finally:
            connection.close()

    def states(self) -> dict[str, str]:
        """The newest state of each dispatch."""
        query = "SELECT dispatch_id, state FROM dispatches WHERE applied = 1 ORDER BY offer_id, seq"
        return {str(name): str(state) for name, state in self.rows(query)}

    def offers(self) -> dict[str, str]:
        """Whose each offer is, of all that were granted."""
        return {key.hex(): user for key, user in self.rows("SELECT offer_id, user FROM offers")}

    # --- its end ----------------------------------------------------------------------------------------------------

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait_ended(self, within_s: float) -> None:
        assert self.process.wait(timeout=within_s) == 0, self.log_text()[-3000:]
        self._close()

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._close()

    def _close(self) -> None:
        self.client.close()
        assert self.process.stdout is not None
        self.process.stdout.close()


def number_of(user: int) -> str:
    return f"1390000{user:04d}"


def usage(user: int, category: str, action: str) -> dict[str, Any]:
    now_ns = time.time_ns()
    return {
        "type": "usage",
        "feed": "dpi",
        "user": f"u{user}",
        "id": f"{user}-{time.monotonic_ns()}",
        "at": now_ns // 1_000_000,
        "app": "shop",
        "category": category,
        "action": action,
    }
