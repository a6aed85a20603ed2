"""The commands of a cluster: worker, dispatch, content push and content pause (docs/cluster.md)."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from engine.cli._saying import say
from engine.console.callbacks import Handle
from engine.errors import OpportuneError
from engine.settings import Settings, load_settings

_DRAIN_S = 20.0
"""How long a worker may take to save what it has; it is killed at 30 s by whoever runs it (F24)."""

content_app = typer.Typer(help="Content and pauses of a cluster, for every worker.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.command()(worker)
    app.command()(dispatch)
    app.command()(rekey)
    app.add_typer(content_app, name="content")


def worker() -> None:
    """Decide events from Kafka with Redis as the ledger, until SIGTERM or Ctrl-C."""
    settings = load_settings()
    uvloop.run(_worker(settings))


def dispatch() -> None:
    """Hand offers of a cluster to gateways, each at most once, until SIGTERM or Ctrl-C."""
    settings = load_settings()
    uvloop.run(_dispatch(settings))


def rekey(
    partitions: Annotated[int, typer.Option(help="of the new deployment", min=1, max=4096)],
    prefix: Annotated[str, typer.Option(help="of the new deployment's topics; another one than now")],
    redis: Annotated[str, typer.Option(help="an empty database for the new deployment")],
    checkpoints: Annotated[Path, typer.Option(help="a folder for the new deployment's checkpoints")],
    users: Annotated[Path | None, typer.Option(help="CSV: id now, new id; for users that get one", exists=True)] = None,
) -> None:
    """Copy a stopped deployment into one with another number of partitions, or with other user ids."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from engine.console.terminal import Terminal
    from engine.runtime.cluster.rekey import read_users
    from engine.runtime.cluster.rekey import rekey as copy

    settings = load_settings()
    new = settings.cluster.model_copy(
        update={"partitions": partitions, "prefix": prefix, "redis": redis, "checkpoints": checkpoints, "topics": {}}
    )
    console = Terminal(is_error=True)
    columns = (TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        tasks = {name: bar.add_task(name, total=None) for name in ("profiles", "events", "redis")}
        told = copy(
            settings, new, read_users(users), lambda what, done, of: bar.update(tasks[what], completed=done, total=of)
        )
    print(
        f"copied: {told.records} records with {told.events} events, what is known of users in {told.profiles}, "
        f"{told.offers} offers\nstart the new deployment with\n"
        f"  OPPORTUNE_CLUSTER__PARTITIONS={partitions} OPPORTUNE_CLUSTER__PREFIX={prefix} "
        f"OPPORTUNE_CLUSTER__CHECKPOINTS={checkpoints} and OPPORTUNE_CLUSTER__REDIS as given"
    )


@content_app.command()
def push(folder: Annotated[Path, typer.Argument(help="holds geofences/ and scenarios/")]) -> None:
    """Check a content folder and make it live in every partition."""
    from engine.content import load_content
    from engine.runtime.cluster.control import push_content
    from engine.runtime.cluster.topics import ensure_topics

    settings = load_settings()
    load_content(folder / "geofences", folder / "scenarios")  # what is wrong here is told before Kafka is asked
    ensure_topics(settings.cluster)
    content = push_content(settings, folder)
    print(f"live: content {content.version}, {len(content.fences)} fences, {len(content.scenarios)} scenarios")


@content_app.command()
def pause(
    scenario: Annotated[str | None, typer.Argument(help="id of the scenario to pause")] = None,
    everything: Annotated[bool, typer.Option("--all", help="pause all scenarios")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="let it go on")] = False,
) -> None:
    """Stop new messages of one scenario or of all over the whole cluster (or resume them)."""
    from engine.runtime.cluster import control

    if (scenario is None) == (not everything):
        raise typer.BadParameter("name one scenario, or give --all")
    control.pause(load_settings(), scenario or "*", not resume)
    print(f"{'resumed' if resume else 'paused'}: {scenario or 'all scenarios'}")


async def _worker(settings: Settings) -> None:
    from engine.runtime.cluster.worker import Worker
    from engine.runtime.warm import warm_aloud

    stop = _stop_event()
    warm_aloud()
    stopping = threading.Event()
    work = Worker(settings, stopping)
    thread = threading.Thread(target=_guarded(work.run), name="opportune-engine", daemon=True)
    thread.start()

    async def drain() -> None:
        stopping.set()
        await asyncio.to_thread(thread.join, _DRAIN_S)

    await _serve(settings, "worker", work.why_not_ready, stop, lambda: thread.is_alive(), drain)
    if work.failure is not None:
        raise OpportuneError(f"the worker stopped: {work.failure}")


async def _dispatch(settings: Settings) -> None:
    from engine.console.rerouting import reroute_on_hangup
    from engine.deliver.addressbook import open_address_book
    from engine.runtime.cluster.dispatch import DispatchHost

    stop = _stop_event()
    host = DispatchHost(settings, open_address_book(settings))
    await host.start()
    reroute_on_hangup(host.dispatcher, settings, load_settings)
    await _serve(
        settings, "dispatch", host.why_not_ready, stop, lambda: host.failure is None, host.stop, host.on_callback
    )
    if host.failure is not None:
        raise OpportuneError(f"the dispatcher stopped: {host.failure}")


async def _serve(
    settings: Settings,
    name: str,
    why_not_ready: Callable[[], str],
    stop: asyncio.Event,
    is_alive: Callable[[], bool],
    drain: Callable[[], Awaitable[None]],
    on_callback: Handle | None = None,
) -> None:
    """Answer until told to stop, or until the work ended by itself; then, not ready any more, until it is drained."""
    from engine.console.health import health_app
    from engine.console.server import HttpServer

    server = HttpServer(
        health_app(lambda: "shutting down" if stop.is_set() else why_not_ready(), on_callback),
        settings.host,
        settings.cluster.health_port,
    )
    await server.start()
    say(f"opportune {name}: health and metrics on http://{settings.host}:{server.port}")
    while not stop.is_set() and is_alive():
        try:
            async with asyncio.timeout(0.2):
                await stop.wait()
        except TimeoutError:
            continue
    stop.set()
    say("draining ...")
    await drain()
    await server.stop()


def _stop_event() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


def _guarded(run: Callable[[], None]) -> Callable[[], None]:
    """The failure is kept by whoever runs; a traceback is for faults of ours."""
    import structlog

    def guarded() -> None:
        try:
            run()
        except OpportuneError as error:
            structlog.get_logger("opportune.worker").error("the worker stopped", error=str(error))
        except Exception:
            structlog.get_logger("opportune.worker").exception("the worker stopped")

    return guarded
