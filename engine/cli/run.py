"""`opportune run`: the service, the demo content and a simulated city that feeds it, in one terminal."""

from __future__ import annotations

import asyncio
import base64
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, NoReturn
from zoneinfo import ZoneInfo

import httpx
import typer
from rich.live import Live
from rich.text import Text

from engine.city import City
from engine.city.feeder import Feeder
from engine.clock import monotonic_s
from engine.console import live_view
from engine.console.readings import Reader, Readings
from engine.console.terminal import Terminal
from engine.content import load_content
from engine.definitions import Content, PatternTrigger, PresenceTrigger
from engine.deliver.addressbook import open_address_book
from engine.errors import OpportuneError
from engine.settings import Settings, load_settings

READY = "opportune listens on "
LINE_EVERY_S = 5.0
POLL_EVERY_S = 0.5
LEAST_S = 10.0
_OVERHEAD_S = 8.0


def register(app: typer.Typer) -> None:
    app.command()(run)


def run(
    seconds: Annotated[float, typer.Option(min=LEAST_S, help="about how long the whole run lasts")] = 90.0,
    people: Annotated[int, typer.Option(min=20, max=20_000, help="inhabitants of the simulated city")] = 3_000,
    seed: Annotated[int, typer.Option(min=0, help="the same seed gives the same city")] = 1,
    port: Annotated[int | None, typer.Option(help="default: the settings' port, or a free one")] = None,
    state: Annotated[Path | None, typer.Option(help="folder to keep; default: a temporary one")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="leave the service running after the summary")] = False,
) -> None:
    """Watch a simulated city day: events in over HTTP, offers out of a sandbox gateway; ends with a summary."""
    _end_in_order()
    with _folder(state) as folder:
        settings = load_settings(state=folder, port=_port(port), api_key=None)
        console = Terminal()
        content = load_content(settings.geofences, settings.scenarios)
        console.print(
            f"{len(content.fences)} geofences and {len(content.scenarios)} scenarios; "
            f"a day of {people:,} people in about {seconds:.0f} s. State: {folder}",
            soft_wrap=True,
        )
        environment = dict(os.environ)
        if state is None:
            # A throw-away state gets a throw-away key; nothing of the demo stays behind.
            environment["OPPORTUNE_ADDRESS_KEY"] = base64.b64encode(secrets.token_bytes(32)).decode()
        with _Service(settings, environment) as service:
            city = City(content, people=people, seed=seed)
            book = open_address_book(settings, environment)
            book.put(city.addresses())
            book.close()
            url = service.wait_ready()
            asyncio.run(_watch(console, service, url, content, city, seconds, seed))
            if keep:
                console.print(f"\nThe service goes on at {url} (try {url}/metrics); Ctrl-C ends it.")
                service.wait()


def _end_in_order() -> None:
    """Let SIGTERM and a closed terminal unwind like Ctrl-C: the service has a session of its own and would stay."""

    def leave(number: int, _: object) -> NoReturn:
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, leave)


async def _watch(
    console: Terminal, service: _Service, url: str, content: Content, city: City, seconds: float, seed: int
) -> None:
    """Feed and show until the day is over, then sum up."""
    lasts_s = max(LEAST_S / 2, seconds - _OVERHEAD_S)
    async with httpx.AsyncClient(base_url=url, timeout=30.0, trust_env=False) as client:
        feeder = Feeder(city, client)
        reader = Reader(client, feeder.posted_ms, prompt_in(content))
        begin_s = monotonic_s()
        await feeder.register()
        while (await reader.poll()).events < feeder.sent:
            service.check()
            await asyncio.sleep(0.1)
        lasts_s -= min(monotonic_s() - begin_s, lasts_s / 2)
        feeder.pace(lasts_s)
        feeding = asyncio.create_task(feeder.run())
        view = _View(console, url, feeder, monotonic_s() + lasts_s)
        try:
            with view:
                while not feeding.done():
                    view.show(await reader.poll())
                    service.check()
                    await asyncio.wait([feeding], timeout=POLL_EVERY_S)
                await feeding
                while (await reader.poll()).events + reader.readings.dead_letters < feeder.sent:
                    service.check()
                    view.show(reader.readings)
                    await asyncio.sleep(0.1)
                await asyncio.sleep(0.3)  # the last offers reach the gateway
                await reader.poll()
        except httpx.HTTPError as error:
            service.check()
            raise OpportuneError(f"the service does not answer ({type(error).__name__}); see {service.log}") from None
        finally:
            feeding.cancel()
        elapsed_s = monotonic_s() - begin_s
    for part in live_view.summary(reader.readings, seconds=elapsed_s, people=len(city.people), seed=seed):
        console.print(part, soft_wrap=isinstance(part, Text))


def prompt_in(content: Content) -> Callable[[str, int], bool]:
    """Tell messages that go out at once from those that a timer makes or that quiet hours may have held."""
    scenarios = {scenario.id: scenario for scenario in content.scenarios}
    zone = ZoneInfo(content.policy.time_zone)

    def is_prompt(scenario_id: str, trigger_ms: int) -> bool:
        scenario = scenarios[scenario_id]
        trigger = scenario.trigger
        if isinstance(trigger, PresenceTrigger | PatternTrigger) and trigger.kind in ("dwell", "absence"):
            return False
        local = datetime.fromtimestamp(trigger_ms / 1000, zone)
        minute = local.hour * 60 + local.minute
        hours = (content.policy.quiet_hours, scenario.quiet_hours)
        return not any(
            one is not None and (minute - one.start_minute) % 1440 < (one.end_minute - one.start_minute) % 1440
            for one in hours
        )

    return is_prompt


class _View:
    """A live picture on a terminal; else a line every few seconds with the newest message."""

    def __init__(self, console: Terminal, url: str, feeder: Feeder, ends_s: float) -> None:
        self._console, self._url, self._feeder, self._ends_s = console, url, feeder, ends_s
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self._next_line_s = monotonic_s()
        self._rate_at = (monotonic_s(), 0.0)
        self._rate = 0.0

    def __enter__(self) -> _View:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, readings: Readings) -> None:
        t = monotonic_s()
        before_s, before = self._rate_at
        if t - before_s >= 1.0:
            self._rate = (readings.events - before) / (t - before_s)
            self._rate_at = (t, readings.events)
        if self._live is not None:
            self._live.update(
                live_view.picture(
                    readings,
                    now_ms=self._feeder.now_ms,
                    speed=self._feeder.speed,
                    events_per_s=self._rate,
                    left_s=self._ends_s - t,
                    url=self._url,
                )
            )
        elif t >= self._next_line_s:
            self._next_line_s = t + LINE_EVERY_S
            print(live_view.line(readings, now_ms=self._feeder.now_ms, events_per_s=self._rate), flush=True)
            if readings.last_messages:
                print(live_view.message_line(readings.last_messages[-1]), flush=True)


class _Service:
    """`opportune serve --clock events` as a child; what it says goes to a file once it is ready."""

    def __init__(self, settings: Settings, environment: dict[str, str]) -> None:
        self.log = settings.state / "serve.log"
        command = [sys.executable, "-c", "from engine.cli import main; main()", "serve", "--clock", "events"]
        command += ["--state", str(settings.state), "--host", "127.0.0.1", "--port", str(settings.port)]
        command += ["--geofences", str(settings.geofences), "--scenarios", str(settings.scenarios)]
        environment.pop("OPPORTUNE_API_KEY", None)
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._ready = threading.Event()
        self._url: str | None = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> _Service:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._reader.join(5)

    def wait_ready(self) -> str:
        """Return the URL; compiling at the first start may take a minute or two."""
        self._ready.wait()
        if self._url is None:
            self._process.wait()
            raise OpportuneError(f"the service did not start:\n{_tail(self.log)}")
        return self._url

    def check(self) -> None:
        if self._process.poll() is not None:
            raise OpportuneError(f"the service ended by itself:\n{_tail(self.log)}")

    def wait(self) -> None:
        try:
            self._process.wait()
        except KeyboardInterrupt:
            print("stopping ...")

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self.log.open("w") as log:
            for line in self._process.stdout:
                log.write(line)
                log.flush()
                if line.startswith(READY):
                    self._url = line.removeprefix(READY).split(",")[0].strip()
                    self._ready.set()
                elif not self._ready.is_set() and line.lower().lstrip().startswith(
                    ("first start", "still compiling", "compiled")
                ):
                    print(line, end="", flush=True)
        self._ready.set()


@contextmanager
def _folder(state: Path | None) -> Iterator[Path]:
    if state is not None:
        state.mkdir(parents=True, exist_ok=True)
        yield state
        return
    with tempfile.TemporaryDirectory(prefix="opportune-run-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _port(wanted: int | None) -> int:
    """Return the port asked for; without one the settings' port if it is free, else 0 (any)."""
    if wanted is not None:
        return wanted
    usual = load_settings().port
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", usual))
        except OSError:
            return 0
    return usual


def _tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""
