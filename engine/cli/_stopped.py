"""The engine of a state folder that no service has open, for commands that read it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import OpportuneError
from engine.settings import load_settings

if TYPE_CHECKING:
    from engine.runtime.service import Service


@contextlib.contextmanager
def stopped_service(state: Path) -> Iterator[Service]:
    """Open the state folder as of its last record; raises OpportuneError where there is none or it is in use."""
    settings = load_settings(state=state)
    if not (settings.state / "ledger.db").exists():
        raise OpportuneError(f"{settings.state} holds no state; name the folder that a service wrote")
    from engine.runtime.service import Service

    service = Service(settings)
    try:
        yield service
    finally:
        service.stop()
