"""`opportune serve`: the embedded service until SIGTERM; `opportune pause` and `opportune explain` talk to it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import httpx
import orjson
import structlog
import typer
import uvloop

from engine.cli._saying import say
from engine.errors import OpportuneError
from engine.settings import Settings, load_settings, slips_of_variables

if TYPE_CHECKING:
    from engine.deliver.addressbook import AddressBook

log = structlog.get_logger("opportune.serve")


def register(app: typer.Typer) -> None:
    app.command()(serve)
    app.command()(pause)
    app.command()(warm)


def serve(
    geofences: Annotated[Path | None, typer.Option(help="folder of fences")] = None,
    scenarios: Annotated[Path | None, typer.Option(help="folder of scenarios")] = None,
    state: Annotated[Path | None, typer.Option(help="journal, ledger, checkpoints, addresses")] = None,
    host: Annotated[str | None, typer.Option()] = None,
    port: Annotated[int | None, typer.Option(help="0: any free port")] = None,
    clock: Annotated[
        str, typer.Option(help="log: time of arrival; events: time of the events (recorded feeds)")
    ] = "log",
    cluster: Annotated[bool, typer.Option("--cluster", help="put events into Kafka instead; workers decide")] = False,
) -> None:
    """Take events over HTTP, decide, hand offers to gateways, until SIGTERM or Ctrl-C."""
    load = partial(load_settings, geofences=geofences, scenarios=scenarios, state=state, host=host, port=port)
    settings = load()
    if clock not in ("log", "events"):
        raise typer.BadParameter("log or events", param_hint="--clock")
    for slip in slips_of_variables(os.environ):
        log.warning("a variable has no effect", variable=slip.path, hint=slip.hint)
    if cluster:
        uvloop.run(_front(settings))
        return
    from engine.console.access import check_binding
    from engine.deliver.addressbook import open_address_book
    from engine.runtime.warm import warm_aloud

    # What can be wrong is told before the kernels take their time.
    check_binding(settings.host, settings.api_key, settings.api_keys)
    addresses = open_address_book(settings)
    # Before there is a loop that would keep signals for later: whoever stops a start that compiles need not wait.
    warm_aloud()
    uvloop.run(_serve(settings, addresses, clock, load))


async def _serve(settings: Settings, addresses: AddressBook, clock: str, load: Callable[[], Settings]) -> None:
    from engine.console.host import Host
    from engine.console.rerouting import reroute_on_hangup

    host = Host(settings, addresses, clock=clock)
    await host.start()
    # Not before: a start that replays for long may be killed at any instant, as after a crash.
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    reroute_on_hangup(host.dispatcher, settings, load)
    say(f"opportune listens on http://{settings.host}:{host.port}, state in {settings.state}")
    await stop.wait()
    say("draining ...")
    await host.stop()


async def _front(settings: Settings) -> None:
    from engine.console.cluster_front import ClusterFront

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    front = ClusterFront(settings)
    await front.start()
    where = f"http://{settings.host}:{front.port}"
    say(f"opportune listens on {where}, events go to kafka at {settings.cluster.kafka}")
    await stop.wait()
    say("draining ...")
    await front.stop()


def pause(
    scenario: Annotated[str | None, typer.Argument(help="id of the scenario to pause")] = None,
    everything: Annotated[bool, typer.Option("--all", help="pause all scenarios")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="let it go on")] = False,
    url: Annotated[str | None, typer.Option(help="of the service; default from the settings")] = None,
) -> None:
    """Stop new messages of one scenario or of all within a second (or resume them)."""
    if (scenario is None) == (not everything):
        raise typer.BadParameter("name one scenario, or give --all")
    body = {"scenario": "*" if everything else scenario, "paused": not resume}
    call_service("POST", "/v1/pause", url=url, json=body)
    print(f"{'resumed' if resume else 'paused'}: {'all scenarios' if everything else scenario}")


def warm() -> None:
    """Compile the hot path now, so that no later start has to (images, read-only workers)."""
    from engine.runtime.warm import warm_aloud

    warm_aloud()
    print("the hot path is compiled")


class NotRunning(OpportuneError):
    """No service answers at the address."""


def call_service(method: str, path: str, *, url: str | None = None, **more: Any) -> dict[str, Any]:
    """Call the running service and return its JSON; raise OpportuneError saying what to do."""
    settings = load_settings()
    base = service_url(settings, url)
    headers = {"User-Agent": "opportune command line"}
    if settings.api_key:
        headers["Authorization"] = f"Bearer {settings.api_key}"
    try:
        answer = httpx.request(method, f"{base}{path}", headers=headers, timeout=10.0, trust_env=False, **more)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise NotRunning(f"no service answers at {base} ({type(error).__name__}); start it: opportune serve") from None
    if answer.is_error:
        raise OpportuneError(_refusal(answer) or f"{base}{path} answered {answer.status_code}: {answer.text[:300]}")
    try:
        told: dict[str, Any] = orjson.loads(answer.content) if answer.content else {}
    except orjson.JSONDecodeError:
        raise OpportuneError(f"{base} is no service of opportune: it answered {path} with something else") from None
    return told


def service_url(settings: Settings, url: str | None) -> str:
    """Return where a service is called: the address as given, HTTP where it names no scheme, or the settings'."""
    if url is None:
        return f"http://{settings.host}:{settings.port}"
    return (url if "://" in url else f"http://{url}").rstrip("/")


def _refusal(answer: httpx.Response) -> str | None:
    """Return the sentence in which a service of ours says what it refuses; None where it is another's answer."""
    try:
        told = answer.json()
    except ValueError:
        return None
    if not isinstance(told, dict) or not isinstance(told.get("detail"), str):
        return None
    if answer.status_code == HTTPStatus.UNAUTHORIZED:
        return "the service asks for its key, and this one is missing or wrong; set OPPORTUNE_API_KEY"
    return str(told["detail"])
