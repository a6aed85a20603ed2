"""The address book: the only store that knows who is behind a user id (rule I2).

One SQLite file. A row holds an HMAC of the user id, an HMAC of the address and the pair itself under AES-GCM; neither
id nor address can be read or guessed from it without the key, which lives outside the state folder. Rows are bound
to their place by the associated text, so that swapping two of them is noticed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import sqlite3
import stat
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from engine.errors import SettingsError, StoreCorrupt, StoreUnavailable
from engine.settings import Settings

KEY_BYTES = 32
_NONCE_BYTES = 12
_CHUNK = 1_000
_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    user_key BLOB NOT NULL, channel TEXT NOT NULL, address_key BLOB NOT NULL, sealed BLOB NOT NULL,
    PRIMARY KEY (user_key, channel)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS entries_by_address ON entries (address_key);
CREATE TABLE IF NOT EXISTS proof (one INTEGER PRIMARY KEY CHECK (one = 1), sealed BLOB NOT NULL);
"""


class AddressBook:
    """Addresses by user and channel. Raises StoreUnavailable where SQLite cannot answer, StoreCorrupt for a wrong key.

    key        32 bytes (see `load_key`)
    randomness  where nonces come from
    """

    def __init__(self, path: Path, key: bytes, randomness: Callable[[int], bytes] = os.urandom) -> None:
        self._randomness = randomness
        self._cipher = AESGCM(_derived(key, b"seal"))
        self._hash_key = _derived(key, b"lookup")
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.touch(mode=0o600)
        except OSError as error:
            raise StoreUnavailable(
                f"the state folder {path.parent} cannot be made or written ({error.strerror}); name another"
            ) from None
        try:
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
            # Deleted rows are overwritten, and `forget` empties the write-ahead log.
            for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "secure_delete=ON"):
                self._connection.execute(f"PRAGMA {pragma}")
            self._connection.executescript(_SCHEMA)
            self._check_key()
        except sqlite3.DatabaseError as error:
            raise _store_error(error) from None

    def lookup(self, user_id: str, channel: str) -> str | None:
        user_key = self._hashed(b"user", user_id)
        row = self._query("SELECT sealed FROM entries WHERE user_key = ? AND channel = ?", (user_key, channel))
        return None if row is None else self._open(row[0], user_key, channel)[1]

    def user_of(self, channel: str, address: str) -> str | None:
        """Find whose address this is, for messages that come in."""
        address_key = self._hashed(b"address", f"{channel}\0{address}")
        row = self._query("SELECT sealed, user_key FROM entries WHERE address_key = ?", (address_key,))
        return None if row is None else self._open(row[0], row[1], channel)[0]

    def put(self, rows: Iterable[tuple[str, str, str]]) -> int:
        """Store (user id, channel, address) rows in chunks; a new address replaces the old one. Returns how many."""
        source, count = iter(rows), 0
        while chunk := [self._row(*row) for row in islice(source, _CHUNK)]:
            try:
                with self._connection:
                    self._connection.execute("BEGIN IMMEDIATE")
                    self._connection.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?)", chunk)
            except sqlite3.DatabaseError as error:
                raise _store_error(error) from None
            count += len(chunk)
        return count

    def forget(self, user_id: str) -> int:
        """Remove every address of a user, also from the write-ahead log; return how many there were."""
        try:
            removed = self._connection.execute(
                "DELETE FROM entries WHERE user_key = ?", (self._hashed(b"user", user_id),)
            ).rowcount
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.DatabaseError as error:
            raise _store_error(error) from None
        return removed

    def drop(self, user_id: str, channel: str) -> bool:
        """Remove one address, which its gateway says is gone; say whether there was one."""
        try:
            removed = self._connection.execute(
                "DELETE FROM entries WHERE user_key = ? AND channel = ?", (self._hashed(b"user", user_id), channel)
            ).rowcount
        except sqlite3.DatabaseError as error:
            raise _store_error(error) from None
        return removed > 0

    def count(self) -> int:
        row = self._query("SELECT count(*) FROM entries", ())
        assert row is not None
        return int(row[0])

    def close(self) -> None:
        self._connection.close()

    # --- inside -----------------------------------------------------------------------------------------------------

    def _row(self, user_id: str, channel: str, address: str) -> tuple[bytes, str, bytes, bytes]:
        user_key = self._hashed(b"user", user_id)
        nonce = self._randomness(_NONCE_BYTES)
        sealed = nonce + self._cipher.encrypt(nonce, orjson.dumps([user_id, address]), _bound(user_key, channel))
        return user_key, channel, self._hashed(b"address", f"{channel}\0{address}"), sealed

    def _open(self, sealed: bytes, user_key: bytes, channel: str) -> tuple[str, str]:
        try:
            pair = self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], _bound(user_key, channel))
        except InvalidTag:
            raise StoreCorrupt("an entry of the address book was changed or moved") from None
        user_id, address = orjson.loads(pair)
        return user_id, address

    def _hashed(self, what: bytes, text: str) -> bytes:
        return hmac.digest(self._hash_key, what + b"\0" + text.encode(), hashlib.sha256)[:20]

    def _query(self, sql: str, values: tuple[object, ...]) -> tuple[bytes, ...] | None:
        try:
            row: tuple[bytes, ...] | None = self._connection.execute(sql, values).fetchone()
        except sqlite3.DatabaseError as error:
            raise _store_error(error) from None
        return row

    def _check_key(self) -> None:
        row = self._query("SELECT sealed FROM proof", ())
        if row is None:
            nonce = self._randomness(_NONCE_BYTES)
            sealed = nonce + self._cipher.encrypt(nonce, b"address book", b"proof")
            self._connection.execute("INSERT INTO proof VALUES (1, ?)", (sealed,))
            return
        try:
            self._cipher.decrypt(row[0][:_NONCE_BYTES], row[0][_NONCE_BYTES:], b"proof")
        except InvalidTag:
            raise StoreCorrupt(
                "the address book was written with another key; give that one by OPPORTUNE_ADDRESS_KEY_FILE"
            ) from None


def load_key(state: Path, environment: Mapping[str, str], *, may_generate: bool = True) -> bytes:
    """Return the key of the address book.

    First OPPORTUNE_ADDRESS_KEY (base64 of 32 bytes), then the file OPPORTUNE_ADDRESS_KEY_FILE, then
    `opportune/address.key` in the user's configuration folder. A missing file is made at the first start, readable by
    its owner only; where addresses exist already a missing key is an error, never a new key. Raises SettingsError.
    """
    given = environment.get("OPPORTUNE_ADDRESS_KEY")
    if given:
        return _decoded(given, "OPPORTUNE_ADDRESS_KEY")
    path = key_path(environment)
    if path.resolve().is_relative_to(state.resolve()):
        raise SettingsError(
            f"the address key {path} lies in the state folder, beside what it locks; "
            "put it elsewhere with OPPORTUNE_ADDRESS_KEY_FILE"
        )
    if not path.exists():
        if not may_generate or (state / "addresses.db").exists():
            raise SettingsError(f"the address key {path} is missing; without it the stored addresses cannot be read")
        _make_key(path)
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise SettingsError(f"others may read the address key {path}; run: chmod 600 {path}")
    return _decoded(path.read_text("latin-1"), str(path))


def _make_key(path: Path) -> None:
    """Make a key file that is whole or not there."""
    new = path.with_suffix(".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as handle:
            handle.write(base64.b64encode(os.urandom(KEY_BYTES)) + b"\n")
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(new, path)
    except OSError as error:
        raise SettingsError(
            f"the address key {path} cannot be made ({error.strerror}); name another place with "
            "OPPORTUNE_ADDRESS_KEY_FILE"
        ) from None


def key_path(environment: Mapping[str, str]) -> Path:
    given = environment.get("OPPORTUNE_ADDRESS_KEY_FILE")
    if given:
        return Path(given)
    configuration = environment.get("XDG_CONFIG_HOME")
    return (Path(configuration) if configuration else Path.home() / ".config") / "opportune" / "address.key"


def open_address_book(settings: Settings, environment: Mapping[str, str] = os.environ) -> AddressBook:
    """Open the deployment's address book, `addresses.db` in the state folder."""
    return AddressBook(settings.state / "addresses.db", load_key(settings.state, environment))


def _decoded(text: str, where: str) -> bytes:
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise SettingsError(f"{where} must hold {KEY_BYTES} bytes in base64, as `openssl rand -base64 32` makes them")
    return key


def _derived(key: bytes, purpose: bytes) -> bytes:
    return HKDF(SHA256(), KEY_BYTES, None, b"opportune address book 1 " + purpose).derive(key)


def _bound(user_key: bytes, channel: str) -> bytes:
    return user_key + b"\0" + channel.encode()


def _store_error(error: sqlite3.DatabaseError) -> StoreUnavailable | StoreCorrupt:
    if isinstance(error, sqlite3.OperationalError):
        return StoreUnavailable(f"the address book cannot answer: {error}")
    return StoreCorrupt(f"the address book is damaged: {error}")
