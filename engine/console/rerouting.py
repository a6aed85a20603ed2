"""Routing that changes while it runs: SIGHUP reads the settings again (docs/gateways.md)."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

import structlog

from engine.deliver.dispatcher import Dispatcher
from engine.deliver.gateways.build import rerouted
from engine.errors import SettingsError
from engine.settings import Settings

log = structlog.get_logger("opportune.deliver")


def reroute_on_hangup(dispatcher: Dispatcher, settings: Settings, load: Callable[[], Settings]) -> None:
    """Read the settings again at every SIGHUP and let their routes hold; what needs a restart is said, not done.

    load  reads the settings as at the start; what it raises leaves all as it is
    """

    def reload() -> None:
        try:
            found, later = rerouted(settings, load())
        except SettingsError as error:
            log.error("settings not read again; the old routes hold", error=str(error))
            return
        dispatcher.reroute(found)
        log.info("routes read again", gateways=sorted(found))
        if later:
            log.warning("gateways that need a restart to change", gateways=later)

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
