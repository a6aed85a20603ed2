"""The service as the benchmark runs it: all of `opportune serve`, with a gateway that notes when it was handed what.

    python -m bench.service_host STATE GEOFENCES SCENARIOS TIMES_FILE

Prints its port once it is ready; at SIGTERM writes pairs (number in the address, CLOCK_MONOTONIC ns) to TIMES_FILE.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from array import array
from pathlib import Path

import structlog
import uvloop

from engine.console.host import Host
from engine.deliver.addressbook import open_address_book
from engine.deliver.contract import Capabilities, Dispatch, Sessionless, Submitted
from engine.runtime.warm import warm_aloud
from engine.settings import load_settings


class NotingGateway(Sessionless):
    """Accepts at once; the number in the address says which event the offer came from."""

    name = "noting-sms"
    channel = "sms"
    capabilities = Capabilities(window=256, messages_per_s=50_000.0, sms=True)

    def __init__(self) -> None:
        self.notes = array("q")

    async def submit(self, dispatch: Dispatch) -> Submitted:
        self.notes.extend((int(dispatch.address), time.perf_counter_ns()))
        return Submitted((dispatch.dispatch_id,))

    async def close(self, timeout_s: float = 5.0) -> None:
        return None


async def serve(state: Path, geofences: Path, scenarios: Path, times: Path) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    settings = load_settings(state=state, geofences=geofences, scenarios=scenarios, port=0)
    gateway = NotingGateway()
    host = Host(settings, open_address_book(settings), gateways=[gateway])
    await host.start()
    print(host.port, flush=True)
    await stop.wait()
    times.write_bytes(gateway.notes.tobytes())
    await host.stop()


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    os.environ.pop("OPPORTUNE_API_KEY", None)
    warm_aloud()
    uvloop.run(serve(*(Path(argument) for argument in sys.argv[1:5])))
