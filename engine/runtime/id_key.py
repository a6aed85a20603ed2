"""The deployment's secret key: offer ids are made with it, claim links signed (D4)."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from engine.errors import SettingsError, StoreCorrupt, StoreUnavailable

KEY_BYTES = 32


def load_id_key(path: Path, *, may_make: bool = True) -> bytes:
    """Read the deployment's key, making one at the first start; whole or not at all.

    may_make  False where ids were made with it already: with another one what was granted would be granted again
    Raises StoreCorrupt where it is missing or cut short, SettingsError where others may read it.
    """
    try:
        if not path.exists():
            if not may_make:
                raise StoreCorrupt(
                    f"{path} is missing, and what was granted has ids made with it: with a new key it would be "
                    "granted again. Restore the file from a copy"
                )
            _make(path)
        key, mode = path.read_bytes(), path.stat().st_mode
    except OSError as error:
        raise StoreUnavailable(f"the key {path} cannot be read or made: {error.strerror}") from None
    if len(key) != KEY_BYTES:
        raise StoreCorrupt(f"{path} holds {len(key)} bytes and not {KEY_BYTES}; restore it from a copy")
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise SettingsError(f"others may read the key {path}, with which claim links are signed; run: chmod 600 {path}")
    return key


def _make(path: Path) -> None:
    """Make the file whole; of several workers that start at once the first one's counts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secrets.token_bytes(KEY_BYTES))
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(new, path)
    except FileExistsError:
        pass
    finally:
        new.unlink()
