"""`opportune message preview`: a scenario's text as it is sent, how it is counted and what it costs (rules O1, O2)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.panel import Panel
from rich.text import Text

from engine.cli.content import FencesOption, ScenariosOption, inspect_folders, print_faults
from engine.console.terminal import Terminal
from engine.definitions import Content, Scenario
from engine.errors import OpportuneError
from engine.settings import load_settings

if TYPE_CHECKING:
    from engine.deliver.contract import Capabilities

SAMPLE_CODE = "XXXXXXXXXXXX"
_SAMPLE_MS = 1_767_326_400_000
_SAMPLE_KEY = b"only the length of a sample link matters"

message_app = typer.Typer(help="Messages: how a text looks and is counted.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(message_app, name="message")


@dataclass(frozen=True, slots=True)
class Preview:
    """One message as a user gets it.

    forced_by  the characters that make it UCS-2, each once; "" for GSM-7 and for channels other than SMS
    """

    scenario: str
    channel: str
    text: str
    refused: str  # the reason it could not be written, or ""
    detail: dict[str, Any]
    encoding: str
    units: int
    segments: int
    forced_by: str
    message_cost_fen: int
    benefit_cost_fen: int


@message_app.callback()
def _group() -> None:
    """Keep `preview` a command of its own, as long as it is the only one."""


@message_app.command("preview")
def preview(
    scenario: Annotated[str, typer.Argument(help="id of the scenario")],
    attribute: Annotated[
        list[str] | None,
        typer.Option("--attribute", "-a", help="an attribute of the user, name=value; may be repeated"),
    ] = None,
    user: Annotated[
        str | None, typer.Option("--user", help="fill in what is known of this user; --attribute goes before it")
    ] = None,
    fence: Annotated[
        str | None,
        typer.Option(help="id of the fence; default the one of the trigger that the user is in, else its first"),
    ] = None,
    channel: Annotated[
        str | None, typer.Option(help="default the first of the scenario, with --user the first agreed to")
    ] = None,
    gateway: Annotated[
        str | None, typer.Option(help="a declared gateway: with its signature and opt-out text, counted as it counts")
    ] = None,
    code: Annotated[str, typer.Option(help="what stands for {code}")] = SAMPLE_CODE,
    geofences: FencesOption = None,
    scenarios: ScenariosOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
    url: Annotated[
        str | None, typer.Option(help="of the service that knows the user; default from the settings")
    ] = None,
    state: Annotated[Path | None, typer.Option(help="state folder that knows the user, where no service runs")] = None,
) -> None:
    """Show a text as it is sent: signature, opt-out text and claim link, encoding, segments, cost. Sends nothing."""
    inspection = inspect_folders(geofences, scenarios)
    if inspection.content is None:
        print_faults(inspection.errors)
        raise typer.Exit(1)
    values: dict[str, float | str] = dict(_pair(one) for one in attribute or ())
    capabilities, served = _gateway(gateway) if gateway else (None, channel)
    if channel not in (None, served):
        raise OpportuneError(f"gateway {gateway} serves {served}, not {channel}")
    now: dict[str, Any] | None = None
    if user is not None:
        from engine.cli.explain import ask_explainer

        answer = ask_explainer(user=user, scenario=scenario, url=url, state=state)
        found = of_user(inspection.content, scenario, answer)
        values, fence, served = found.attributes | values, fence or found.fence, served or found.channel
        now = next(iter(answer["now"]), None)
    made = make_preview(
        inspection.content, scenario, values, fence=fence, channel=served, code=code, capabilities=capabilities
    )
    if as_json:
        print(json.dumps(asdict(made), ensure_ascii=False, indent=2))
    else:
        _show(made)
        if now is not None:
            print(f"for {user} as of now, with the content in force: {now['outcome']} / {now['reason']}")
    if made.refused:
        raise typer.Exit(1)


class OfUser(NamedTuple):
    """What a message to one user is written from. fence: of the trigger's, which the user is in; None: in none."""

    attributes: dict[str, float | str]
    fence: str | None
    channel: str | None


def of_user(content: Content, scenario_id: str, answer: dict[str, Any]) -> OfUser:
    """Take from an explainer's answer what the engine would write with; raise OpportuneError for a stranger."""
    profile = answer["profile"]
    if profile is None:
        raise OpportuneError(f"nothing is known of {answer['user']}: neither a profile nor a consent came")
    scenario = next((one for one in content.scenarios if one.id == scenario_id), None)
    if scenario is None:
        return OfUser(profile["attributes"], None, None)  # whoever writes says so
    inside = {one["fence"] for one in answer["presence"] if one["state"] in ("INSIDE", "EXITING")}
    channels = scenario.offer.channels
    if scenario.offer.offer_class != "service":
        said = {purpose: one["granted"] for purpose, one in profile["consent"].items()}
        assumed = content.policy.assumed_consent
        purposes = {channel: f"marketing.{channel}" for channel in channels}
        channels = tuple(one for one in channels if said.get(purposes[one], purposes[one] in assumed))
    return OfUser(
        profile["attributes"],
        next((one for one in scenario.places if one in inside), None),
        channels[0] if channels else None,
    )


def make_preview(
    content: Content,
    scenario_id: str,
    attributes: Mapping[str, float | str],
    *,
    fence: str | None = None,
    channel: str | None = None,
    code: str = SAMPLE_CODE,
    capabilities: Capabilities | None = None,
) -> Preview:
    """Write the message of one scenario for a user with these attributes; raise OpportuneError for unknown names.

    capabilities  of the gateway it is to go through; None: of any that places the policy's texts as usual
    """
    from engine.claim_token import token_maker
    from engine.content.faults import did_you_mean
    from engine.decide.compose import Refusal, Sources, compose
    from engine.deliver.contract import Capabilities
    from engine.deliver.sms import count_segments, forces_ucs2
    from engine.model import CODE_MARK

    by_id = {one.id: one for one in content.scenarios}
    found = by_id.get(scenario_id)
    if found is None:
        raise OpportuneError(f"no scenario has the id {scenario_id!r}; {did_you_mean(scenario_id, by_id)}")
    offer, policy = found.offer, content.policy
    chosen = channel or offer.channels[0]
    if chosen not in offer.channels:
        raise OpportuneError(f"{scenario_id} goes out by {', '.join(offer.channels)}, not by {chosen}")
    terms = offer.terms[0] if offer.terms else None
    until_ms = terms.usable_until_ms(_SAMPLE_MS) if terms else None
    link = f"https://{policy.claim_domains[0]}/" if policy.claim_domains else ""
    sample = link + token_maker(_SAMPLE_KEY)(f"{_SAMPLE_MS:012x}{0:020x}", until_ms)
    written = compose(
        offer,
        Sources(
            attribute=attributes.get,
            fence_name=_fence_name(content, found, fence),
            benefit_name=offer.benefit_name,
            code=CODE_MARK,
            claim_url=sample if link else None,
        ),
    )
    costs = dict(policy.message_cost_fen)
    benefit_fen = terms.cost_fen if terms else 0
    if isinstance(written, Refusal):
        reason = written.reason.value
        return Preview(scenario_id, chosen, "", reason, written.detail, "", 0, 0, "", 0, benefit_fen)
    text = written.replace(CODE_MARK, code)
    if chosen != "sms":
        return Preview(
            scenario_id, chosen, text, "", {}, "utf-8", len(text.encode()), 1, "", costs.get(chosen, 0), benefit_fen
        )
    way = capabilities or Capabilities(sms=True)
    text = way.finish(text, policy.signature, policy.opt_out_text, is_service=offer.offer_class == "service")
    length = count_segments(text)
    segments = way.parts(text)
    cost_fen = costs.get(chosen, 0) * segments
    forced_by = forces_ucs2(text)
    return Preview(
        scenario_id,
        chosen,
        text,
        "",
        {},
        length.encoding,
        length.units,
        segments,
        forced_by,
        cost_fen,
        benefit_fen,
    )


def _gateway(name: str) -> tuple[Capabilities, str]:
    """Return what a declared gateway can do, and the channel it serves."""
    from engine.content.faults import did_you_mean
    from engine.deliver.gateways.build import GatewayMaker

    settings = load_settings()
    chosen = settings.gateways.get(name)
    if chosen is None:
        hint = did_you_mean(name, settings.gateways) or "opportune.toml declares none: the sandbox takes every offer"
        raise OpportuneError(f"no gateway is named {name!r}; {hint}")
    made = GatewayMaker(settings, now_ms=lambda: 0).make(name, chosen)
    return made.capabilities, made.channel


def _fence_name(content: Content, scenario: Scenario, fence: str | None) -> str | None:
    if fence is None and scenario.places:
        fence = scenario.places[0]
    if fence is None:
        return None
    for one in content.fences:
        if one.id == fence:
            return one.name
    raise OpportuneError(f"no fence has the id {fence!r}")


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise typer.BadParameter(f"{text!r} is not of the form name=value", param_hint="--attribute")
    return name, value


def _show(made: Preview) -> None:
    console = Terminal()
    if made.refused:
        console.print(f"refused: {made.refused} {made.detail}", style="bold red", highlight=False)
        return
    console.print(Panel(Text(made.text), title=Text(f"{made.scenario} by {made.channel}"), expand=False))
    if made.channel == "sms":
        names = {"gsm7": "GSM-7", "ucs2": "UCS-2"}
        console.print(
            f"{names[made.encoding]}, {made.units} units, {made.segments} segment{'s' * (made.segments > 1)}",
            highlight=False,
        )
        if made.forced_by:
            shown = made.forced_by[:20] + ("…" if len(made.forced_by) > 20 else "")
            console.print(f"not GSM-7 because of: {shown}", highlight=False)
    else:
        console.print(f"{made.units} bytes", highlight=False)
    fen = (made.message_cost_fen, made.benefit_cost_fen, made.message_cost_fen + made.benefit_cost_fen)
    message, benefit, together = map(_yuan, fen)
    console.print(f"cost: message {message}, benefit {benefit}, together {together}", highlight=False)


def _yuan(fen: int) -> str:
    return f"{fen // 100}.{fen % 100:02d} yuan"
