"""The state folder: that it is there and whole, and has one owner where two processes must not be at once."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO

from engine.errors import StoreCorrupt, StoreUnavailable


def own(lock: Path, refusal: str) -> IO[str]:
    """Take a lock file until the handle is closed; raise StoreUnavailable, with `refusal` where another has it."""
    try:
        handle = lock.open("a+")
    except OSError as error:
        raise StoreUnavailable(f"{lock} cannot be written: {error.strerror}; use a state folder that may be") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        raise StoreUnavailable(refusal) from None
    return handle


def make_state(state: Path) -> None:
    """Make the state folder where it is not there, for its owner alone; raise StoreUnavailable where that cannot be."""
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise StoreUnavailable(
            f"the state folder {state} cannot be made: {error.strerror}; name one that may be written (--state)"
        ) from None


def sync_folder(folder: Path) -> None:
    """Make names that came or went in a folder durable; OSError where the disk refuses."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def refuse_lost_ledger(state: Path) -> None:
    """Refuse a journal whose ledger is gone: what was sent would be sent again."""
    # SQLite takes an empty file for a new database.
    if any((state / name).exists() and (state / name).stat().st_size for name in ("ledger.db", "ledger.db-wal")):
        return
    if any(path.stat().st_size for path in (state / "journal").glob("*.log")):
        raise StoreCorrupt(
            f"{state / 'ledger.db'} is missing or empty and the journal beside it is not: what was sent would be sent "
            "again. Restore it from a copy, or move the whole state folder away and begin anew"
        )
