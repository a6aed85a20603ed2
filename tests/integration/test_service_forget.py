"""Rule I2, FAULTS A15: after `forget` no file of the state holds the user or the address, and nobody else is harmed."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from engine.console.forgetting import blanked, forget
from engine.deliver.addressbook import AddressBook
from engine.errors import StoreUnavailable
from engine.runtime.service import Service
from engine.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
KEY = bytes(range(32))
GONE, STAYS = "user-to-forget-4711", "user-who-stays-0815"
NUMBERS = {GONE: "12011112222", STAYS: "12033334444"}
AT_MS = 1_795_140_000_000


def events(user: str) -> list[bytes]:
    who = {"v": 1, "user": user, "at": AT_MS}
    usage = {"type": "usage", "feed": "dpi", "app": "com.qiyi.video", "category": "video", "action": "play"}
    ping = {"type": "ping", "feed": "app", "lon": 116.404444, "lat": 39.912998, "accuracy_m": 8, "method": "gps"}
    consents = [{"type": "consent", "purpose": one, "granted": True} for one in ("location", "usage", "marketing.sms")]
    known = {"nickname": f"nickname of {user}"[::-1], "person": f"person of {user}"[::-1]}
    profile = {"type": "profile", "tags": ["coupon-lover"], "attributes": {"nickname": known["nickname"]}}
    rows = [{**profile, "person": known["person"]}, *consents, usage, ping]
    return [orjson.dumps({**who, "id": f"{user}-{number}", **row}) for number, row in enumerate(rows)]


def files_with(folder: Path, text: str) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state=tmp_path / "state", geofences=ROOT / "geofences", scenarios=ROOT / "scenarios")


@pytest.fixture
def lived_in(settings: Settings) -> Settings:
    """A state in which both users were seen, decided about and written down everywhere."""
    # In a process of its own: here a warning of the compiler would be an error.
    subprocess.run([sys.executable, "-c", "from engine.runtime.warm import warm; warm()"], cwd=ROOT, check=True)
    service = Service(settings, clock="events")
    both = events(GONE) + events(STAYS)
    payloads = [b"\n".join(both), b"[" + b",".join(events(GONE) + events(STAYS)) + b"]", events(GONE)[0]]
    service.journal.append_many(payloads, wall_ms=AT_MS)
    service.start(lambda offers: None)
    service.stop()
    book = AddressBook(settings.state / "addresses.db", KEY)
    book.put((user, "sms", number) for user, number in NUMBERS.items())
    book.close()
    assert files_with(settings.state, GONE), "the test must have something to find"
    assert any("checkpoint" in path for path in files_with(settings.state, GONE[::-1])), "texts of profiles too"
    assert not files_with(settings.state, NUMBERS[GONE])
    return settings


def test_no_file_holds_the_forgotten_user_and_the_other_keeps_everything(lived_in: Settings) -> None:
    book = AddressBook(lived_in.state / "addresses.db", KEY)
    done = forget(lived_in, book, GONE)
    assert (done.addresses, done.had_state, done.journal_records) == (1, True, 3)
    assert files_with(lived_in.state, GONE) == []
    assert files_with(lived_in.state, GONE[::-1]) == []
    assert book.lookup(GONE, "sms") is None
    assert book.lookup(STAYS, "sms") == NUMBERS[STAYS]
    book.close()
    service = Service(lived_in, clock="events")
    assert service.pipeline.users.slot_of(GONE, intern=False) == -1
    slot = service.pipeline.users.slot_of(STAYS, intern=False)
    assert service.pipeline.profiles.has_tag(slot, "coupon-lover", AT_MS)
    assert service.ledger.decisions(user=STAYS, from_ms=0, until_ms=2**60)
    assert service.ledger.decisions(user=GONE, from_ms=0, until_ms=2**60) == []
    service.stop()


def test_forgetting_again_or_somebody_unknown_finds_nothing(lived_in: Settings) -> None:
    book = AddressBook(lived_in.state / "addresses.db", KEY)
    forget(lived_in, book, GONE)
    again = forget(lived_in, book, GONE)
    assert (again.addresses, again.had_state, again.journal_records) == (0, False, 0)
    book.close()


def test_while_the_service_runs_it_is_refused(lived_in: Settings) -> None:
    service = Service(lived_in, clock="events")
    book = AddressBook(lived_in.state / "addresses.db", KEY)
    with pytest.raises(StoreUnavailable):
        forget(lived_in, book, GONE)
    assert book.lookup(GONE, "sms") == NUMBERS[GONE], "nothing was half done"
    book.close()
    service.stop()


def test_the_command_imports_addresses_and_forgets(lived_in: Settings, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "OPPORTUNE_ADDRESS_KEY": base64.b64encode(KEY).decode(),
        "OPPORTUNE_GEOFENCES": str(lived_in.geofences),
        "OPPORTUNE_SCENARIOS": str(lived_in.scenarios),
        "OPPORTUNE_STATE": str(lived_in.state),
    }

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        code = "from engine.cli import main; main()"
        return subprocess.run(
            [sys.executable, "-c", code, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True
        )

    table = tmp_path / "addresses.csv"
    table.write_text(f"user,channel,address\n{GONE},app,token-1\nx,sms,12a\n,sms,12012345678\n")
    imported = command("addresses", "import", str(table))
    assert imported.returncode == 1
    assert "1 address imported, 2 rows refused" in imported.stdout
    assert "line 3" in imported.stderr
    assert "12a" not in imported.stderr, "no address in a message"
    done = command("forget", "--user", GONE)
    assert done.returncode == 0, done.stderr
    assert "2 addresses, state" in done.stdout
    assert files_with(lived_in.state, GONE) == []
    told = command("audit", "list", "--what", "forget", "--user", GONE).stdout  # A14
    assert told.count("local,") == 1
    assert "local," not in command("audit", "list", "--what", "forget", "--user", STAYS).stdout
    assert "whole" in command("audit", "verify").stdout


def test_blanking_keeps_lengths_and_other_events() -> None:
    mine, other = b'{"user":"a","type":"ping"}', b'{"user":"ab","type":"ping"}'
    escaped = b'{"user":"\\u0061"}'
    lines = b"\n".join([other, mine, escaped, other])
    edited = blanked(lines, "a")
    assert len(edited) == len(lines)
    assert [line for line in edited.split(b"\n") if line.strip()] == [other, other]
    array = b"[" + other + b",\n" + mine + b"\n," + other + b"]"
    edited = blanked(array, "a")
    assert len(edited) == len(array)
    assert orjson.loads(edited) == [orjson.loads(other), {}, orjson.loads(other)]
    assert blanked(other, "a") is other
    track = b'{"type":"track","userId":"a","event":"x","timestamp":"2026-01-01T00:00:00Z"}'
    assert blanked(track, "a").strip() == b""
