"""Tables of users into a running and a stopped service, and what is counted over them (A1, A2, FAULTS A13)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.test_service_live import Live

pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[2]
ROWS = 400


def table(path: Path, count: int = ROWS) -> Path:
    rows = []
    for number in range(count):
        kind, agreed = "member" if number % 2 else "guest", "yes" if number < 300 else "no"
        rows.append(f"i{number},{kind},{number % 80},p/c{number % 4},{agreed},1767326400000\n")
    path.write_text("user,tags,attribute.age,organisation,consent.marketing.app,consent_at\n" + "".join(rows))
    return path


def opportune(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    content = {"OPPORTUNE_GEOFENCES": str(folder / "geofences"), "OPPORTUNE_SCENARIOS": str(folder / "scenarios")}
    return subprocess.run(
        [sys.executable, "-m", "engine.cli", *arguments],
        cwd=ROOT,
        env={**os.environ, **content},
        capture_output=True,
        text=True,
        check=False,
    )


def counted(*arguments: str, folder: Path) -> dict:
    done = opportune("audience", "count", *arguments, "--json", folder=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_users_imported_into_a_running_service_are_counted_there_and_after_it_stopped(tmp_path):
    live = Live(tmp_path)
    live.start()
    try:
        url = str(live.client.base_url)
        file = table(tmp_path / "users.csv")
        for _ in range(2):
            done = opportune("profiles", "import", str(file), "--url", url, folder=tmp_path)
            assert (done.returncode, done.stdout) == (0, f"{ROWS:,} rows imported, 0 refused\n"), done.stderr
        assert counted("--url", url, folder=tmp_path)["profiles"] == ROWS
        told = counted(
            "{all: [member, {organisation: p/c1}, {attribute: age, below: 40}]}", "--url", url, folder=tmp_path
        )
        assert told["users"] == sum(n % 2 == 1 and n % 4 == 1 and n % 80 < 40 for n in range(ROWS))
        few = counted("{all: [{organisation: p/c1}, {attribute: age, is: 1}]}", "--url", url, folder=tmp_path)
        assert few["users"] == "<10"
        bad = opportune("audience", "count", "{attribute: age}", "--url", url, folder=tmp_path)
        assert (bad.returncode, "an attribute with a comparison" in bad.stderr) == (2, True)
    finally:
        live.terminate()
        live.wait_ended(40)
    state = ("--state", str(tmp_path / "state"))
    more = table(tmp_path / "more.csv", ROWS + 50)
    done = opportune("profiles", "import", str(more), *state, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    told = counted("national/shop", *state, folder=tmp_path)
    assert (told["profiles"], told["users"], told["reachable"]) == (ROWS + 50, ROWS + 50, {"sms": ROWS + 50})


def test_an_import_that_was_killed_is_finished_by_the_same_command(tmp_path):
    live = Live(tmp_path)
    live.start()
    url = str(live.client.base_url)
    file = table(tmp_path / "users.csv", 6000)
    importer = subprocess.Popen(
        [sys.executable, "-m", "engine.cli", "profiles", "import", str(file), "--url", url],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    live.until(lambda: 'opportune_events_total{type="profile"}' in live.client.get("/metrics").text, 30)
    importer.kill()
    importer.wait()
    importer.stdout.close()
    time.sleep(0.1)
    try:
        done = opportune("profiles", "import", str(file), "--url", url, folder=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("6,000 rows imported")
        assert counted("--url", url, folder=tmp_path)["profiles"] == 6000
    finally:
        live.terminate()
        live.wait_ended(40)
