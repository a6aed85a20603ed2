"""One owner for what two processes must not have at once."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO

from engine.errors import StoreUnavailable


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
