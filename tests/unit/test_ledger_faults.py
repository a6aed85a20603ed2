"""The embedded ledger when the world fails: full disks, damage, power loss, strangers' files (C4, D7, F22)."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from engine.errors import SettingsError, StoreCorrupt, StoreUnavailable
from engine.ledger.embedded import EmbeddedLedger
from engine.model import Offer, Option, ReserveRequest, Rule, Scope

T0 = 1_700_000_000_000


def offer_id(number: int) -> str:
    return f"{T0:012x}{number:020x}"


def offer(number: int, text: str = "hello") -> Offer:
    return Offer(offer_id(number), "a/s", "u1", "sms", text, "b", "marketing", T0 + 60_000, T0)


def ask(number: int, *rules: Rule) -> ReserveRequest:
    return ReserveRequest("u1", "u1", T0, (Option(offer_id(number), "a/s", "sms", "c", "p", rules),))


def open_ledger(path: Path, **options) -> EmbeddedLedger:
    return EmbeddedLedger(path / "ledger.db", assumed_consent=frozenset({"marketing.sms"}), **options)


def limit_pages(ledger: EmbeddedLedger, pages: int) -> None:
    """A disk that is full as far as SQLite can tell: the file may not grow beyond so many pages."""
    ledger._database._writer.execute(f"PRAGMA max_page_count = {pages}")


def test_a_commit_on_a_full_disk_stores_nothing_and_can_be_repeated(tmp_path):
    """F22: no half-written row; the same commit goes through once there is room."""
    ledger = open_ledger(tmp_path)
    ledger.reserve([ask(1)])
    limit_pages(ledger, 1)
    offers = [offer(number, "x" * 3000) for number in range(60)]
    with pytest.raises(StoreUnavailable, match="full"):
        ledger.commit(5, T0, offers=offers)
    assert ledger.position() == -1
    assert ledger.outbox(100) == []
    limit_pages(ledger, 1 << 30)
    ledger.commit(5, T0, offers=offers)
    assert len(ledger.outbox(100)) == 60
    assert ledger.counts()["reservations"] == 1, "what was reserved waited for the commit"
    ledger.close()


def test_a_claim_store_that_cannot_answer_means_no_send(tmp_path):
    """C4, D7."""
    ledger = open_ledger(tmp_path)
    ledger.commit(1, T0, offers=[offer(1)])
    ledger._database._writer.execute("PRAGMA query_only = 1")
    assert ledger.claim([(offer_id(1), "d1"), (offer_id(2), "d2")], T0) == ["unavailable", "unavailable"]
    ledger._database._writer.execute("PRAGMA query_only = 0")
    assert ledger.claim([(offer_id(1), "d1")], T0) == ["claimed"]
    ledger.close()


def test_a_damaged_file_is_corruption_with_its_name(tmp_path):
    (tmp_path / "ledger.db").write_bytes(b"this is not a database" * 500)
    with pytest.raises(StoreCorrupt, match=r"ledger\.db"):
        open_ledger(tmp_path)


def test_a_file_of_another_version_is_refused(tmp_path):
    open_ledger(tmp_path).close()
    connection = sqlite3.connect(tmp_path / "ledger.db")
    connection.execute("PRAGMA user_version = 7")
    connection.close()
    with pytest.raises(StoreCorrupt, match="version 7"):
        open_ledger(tmp_path)


def test_a_file_that_lacks_a_later_column_gets_it(tmp_path):
    open_ledger(tmp_path).close()
    connection = sqlite3.connect(tmp_path / "ledger.db")
    connection.execute("ALTER TABLE links DROP COLUMN amount_fen")
    connection.close()
    ledger = open_ledger(tmp_path)
    ledger.commit(1, T0, offers=[offer(1)])
    ledger.claim([(offer_id(1), "d1")], T0)
    assert ledger.redeem_link(offer_id(1), T0, "till", "body", 1990)[0].amount_fen == 1990
    ledger.close()


def crashed(path: Path, **options) -> None:
    """An owner that went down with a claimed and a queued offer, without closing."""
    ledger = open_ledger(path, **options)
    ledger.commit(10, T0, offers=[offer(1), offer(2)])
    ledger.claim([(offer_id(1), offer_id(1) + "/sms/1")], T0)
    ledger._database.close()


def test_after_a_kill_what_was_queued_is_still_sent(tmp_path):
    """kill -9 loses nothing that SQLite wrote: the operating system has it."""
    crashed(tmp_path, boot_id="monday")
    ledger = open_ledger(tmp_path, boot_id="monday")
    assert not ledger.lost_power
    assert [one.offer_id for one in ledger.outbox(10)] == [offer_id(2)]
    ledger.close()


def test_after_a_power_loss_nothing_that_may_have_gone_out_goes_again(tmp_path):
    """D7: claims of the last moments may be lost, so what is queued, and what replay queues again, is UNKNOWN."""
    crashed(tmp_path, boot_id="monday")
    ledger = open_ledger(tmp_path, boot_id="tuesday")
    assert ledger.lost_power
    ledger.distrust_through(20)
    assert ledger.outbox(10) == []
    ledger.commit(20, T0, offers=[offer(3)])
    assert ledger.outbox(10) == []
    for number in (1, 2, 3):
        assert ledger.dispatches(offer_id(number))[-1]["state"] == "unknown"
        assert ledger.claim([(offer_id(number), "again")], T0) == ["already"]
    ledger.commit(21, T0, offers=[offer(4)])
    assert [one.offer_id for one in ledger.outbox(10)] == [offer_id(4)]
    ledger.close()


def test_a_start_that_fails_after_a_power_loss_does_not_make_the_next_one_trust(tmp_path):
    """D7: a damaged file, mended by hand, and a second start on the same day: the claims are still lost."""
    crashed(tmp_path, boot_id="monday")
    open_ledger(tmp_path, boot_id="tuesday").close()  # came to nothing before it knew how far to distrust
    ledger = open_ledger(tmp_path, boot_id="tuesday")
    assert ledger.lost_power
    ledger.distrust_through(20)
    ledger.commit(20, T0, offers=[offer(3)])
    assert ledger.outbox(10) == []
    ledger.close()
    again = open_ledger(tmp_path, boot_id="tuesday")
    assert not again.lost_power
    again.close()


@pytest.mark.parametrize("fsync", ["always", "interval"])
def test_a_reboot_after_a_clean_close_or_under_always_is_no_loss(tmp_path, fsync):
    if fsync == "always":
        crashed(tmp_path, boot_id="monday", fsync=fsync)
    else:
        open_ledger(tmp_path, boot_id="monday").close()
    ledger = open_ledger(tmp_path, boot_id="tuesday", fsync=fsync)
    assert not ledger.lost_power
    ledger.close()


def test_memory_stays_within_its_budget(tmp_path):
    """DESIGN: at most about 40 bytes a user with one grant, once the replay horizon has passed."""
    ledger = open_ledger(tmp_path, fsync="never")
    count, span_ms = 60_000, 90 * 24 * 3_600_000
    for first in range(0, count, 1000):
        ledger.reserve(
            [
                ReserveRequest(
                    f"u{number}",
                    f"u{number}",
                    T0,
                    (Option(offer_id(number), "a/s", "sms", "c", "p", (Rule(Scope.ALL, T0 - span_ms, 1, "cap:all"),)),),
                )
                for number in range(first, first + 1000)
            ]
        )
    later_ms = T0 + 80 * 3_600_000
    ledger.reserve([ReserveRequest("x", "x", later_ms, ())])
    assert ledger.caps.count == count
    minutes = ledger.caps.arrays()["caps.minutes"].nbytes
    assert (ledger.caps.nbytes - minutes) / count <= 50
    ledger.close()


def test_statements_keep_to_what_old_sqlite_knows():
    """`->>` came with SQLite 3.38 and RETURNING with 3.35; Debian 11 and Ubuntu 20.04 and 22.04 have less."""
    engine = Path(__file__).resolve().parents[2] / "engine"
    newer = ("->>", " RETURNING ", ") STRICT", "unhex(", " IS NOT DISTINCT ", "UPDATE FROM", " iif(")
    for path in engine.rglob("*.py"):
        code = "\n".join(line for line in path.read_text().splitlines() if '"""' not in line)
        assert not [word for word in newer if word in code], path


def test_a_sqlite_that_is_too_old_is_said_at_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr("sqlite3.sqlite_version_info", (3, 30, 1))
    with pytest.raises(SettingsError, match=r"ledger\.db: needs SQLite 3\.31 or newer, this Python has"):
        open_ledger(tmp_path)
