"""Rule I2: addresses live encrypted in a store of their own, the key elsewhere, and `forget` leaves no trace."""

from __future__ import annotations

import sqlite3
import stat
from pathlib import Path

import pytest

from engine.deliver.addressbook import AddressBook, key_path, load_key, open_address_book
from engine.errors import SettingsError, StoreCorrupt
from engine.settings import Settings

KEY = bytes(range(32))
NUMBER = "12012345678"


def files_hold(folder: Path, text: str) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def test_an_address_is_found_by_user_and_channel_and_the_user_by_address(tmp_path: Path) -> None:
    book = AddressBook(tmp_path / "addresses.db", KEY)
    assert book.put([("u1", "sms", NUMBER), ("u1", "app", "token-1"), ("u2", "sms", "12000000002")]) == 3
    assert book.lookup("u1", "sms") == NUMBER
    assert book.lookup("u1", "app") == "token-1"
    assert book.lookup("u3", "sms") is None
    assert book.lookup("u2", "app") is None
    assert book.user_of("sms", NUMBER) == "u1"
    assert book.user_of("app", NUMBER) is None


def test_a_new_address_replaces_the_old_one(tmp_path: Path) -> None:
    book = AddressBook(tmp_path / "addresses.db", KEY)
    book.put([("u1", "sms", NUMBER)])
    book.put([("u1", "sms", "12099999999")])
    assert book.lookup("u1", "sms") == "12099999999"
    assert book.user_of("sms", NUMBER) is None
    assert book.count() == 1


def test_neither_user_nor_address_stands_in_any_file(tmp_path: Path) -> None:
    book = AddressBook(tmp_path / "addresses.db", KEY)
    book.put([("user-of-test", "sms", NUMBER)])
    assert files_hold(tmp_path, NUMBER) == []
    assert files_hold(tmp_path, "user-of-test") == []
    assert stat.S_IMODE((tmp_path / "addresses.db").stat().st_mode) == 0o600


def test_forget_removes_every_address_and_what_the_file_kept_of_it(tmp_path: Path) -> None:
    book = AddressBook(tmp_path / "addresses.db", KEY)
    book.put([("u1", "sms", NUMBER), ("u1", "app", "token"), ("u2", "sms", "12000000002")])
    sealed = [row[0] for row in book._connection.execute("SELECT sealed FROM entries")]
    assert book.forget("u1") == 2
    assert book.forget("u1") == 0
    assert book.lookup("u1", "sms") is None
    assert book.lookup("u2", "sms") == "12000000002"
    kept = [row[0] for row in book._connection.execute("SELECT sealed FROM entries")]
    book.close()
    whole = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert [one in whole for one in sealed].count(True) == len(kept) == 1


def test_another_key_is_refused_at_once(tmp_path: Path) -> None:
    AddressBook(tmp_path / "addresses.db", KEY).close()
    with pytest.raises(StoreCorrupt, match="another key"):
        AddressBook(tmp_path / "addresses.db", bytes(32))


def test_a_row_moved_to_another_user_is_noticed(tmp_path: Path) -> None:
    book = AddressBook(tmp_path / "addresses.db", KEY)
    book.put([("u1", "sms", NUMBER), ("u2", "sms", "12000000002")])
    book.close()
    with sqlite3.connect(tmp_path / "addresses.db") as raw:
        (first, second) = raw.execute("SELECT user_key, sealed FROM entries").fetchall()
        raw.execute("UPDATE entries SET sealed = ? WHERE user_key = ?", (second[1], first[0]))
        raw.commit()
    raw.close()
    book = AddressBook(tmp_path / "addresses.db", KEY)
    answers = []
    for user in ("u1", "u2"):
        try:
            answers.append(book.lookup(user, "sms"))
        except StoreCorrupt:
            answers.append("noticed")
    assert "noticed" in answers


def test_a_file_that_is_no_database_is_corrupt(tmp_path: Path) -> None:
    (tmp_path / "addresses.db").write_bytes(b"x" * 5000)
    with pytest.raises(StoreCorrupt):
        AddressBook(tmp_path / "addresses.db", KEY)


def test_the_key_is_made_once_outside_the_state_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    state, environment = tmp_path / "state", {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    book = open_address_book(Settings(state=state), environment)
    book.put([("u1", "sms", NUMBER)])
    book.close()
    path = key_path(environment)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.is_relative_to(state)
    assert open_address_book(Settings(state=state), environment).lookup("u1", "sms") == NUMBER
    path.chmod(0o644)
    with pytest.raises(SettingsError, match="chmod 600"):
        load_key(state, environment)
    path.unlink()
    with pytest.raises(SettingsError, match="missing"):
        load_key(state, environment)


def test_a_key_in_the_state_folder_or_of_the_wrong_length_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="state folder"):
        load_key(tmp_path, {"OPPORTUNE_ADDRESS_KEY_FILE": str(tmp_path / "key")})
    for text in ("short", "AAAA", "!" * 44):
        with pytest.raises(SettingsError, match="32 bytes"):
            load_key(tmp_path, {"OPPORTUNE_ADDRESS_KEY": text})
    given = {"OPPORTUNE_ADDRESS_KEY": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}
    assert load_key(tmp_path, given) == KEY
