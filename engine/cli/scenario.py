"""`opportune scenario templates | new | pack`: a new activity is a matter of filling in a form."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from engine.cli.content import FencesOption, ScenariosOption, print_faults, print_table
from engine.console.terminal import Terminal
from engine.content import inspect_content
from engine.errors import Fault, OpportuneError
from engine.settings import load_settings

scenario_app = typer.Typer(help="Scenarios from templates.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(scenario_app, name="scenario")


@scenario_app.command("templates")
def templates(
    name: Annotated[str | None, typer.Argument(help="show the parameters of this one")] = None,
) -> None:
    """List the activity templates, or the parameters of one."""
    from engine.content.activity import load_templates

    found = load_templates()
    if name is None:
        table = Table("template", "goal", "what it does")
        for one in found.values():
            table.add_row(one.id, one.goal, one.about)
    else:
        template = _template(found, name)
        table = Table("parameter", "type", "question", "default", "examples")
        for parameter in template.parameters:
            default = template.default_of(parameter)
            kind = "|".join(parameter.choices) or parameter.type
            shown = "" if default is None else _text(default)
            table.add_row(
                parameter.name, kind, parameter.question, shown, "; ".join(_text(one) for one in parameter.examples)
            )
    print_table(table)


@scenario_app.command("new")
def new(
    template: Annotated[str, typer.Option("--template", "-t", help="`opportune scenario templates` lists them")],
    given: Annotated[list[str] | None, typer.Option("--set", help="a parameter, name=value; may be repeated")] = None,
    ask: Annotated[
        bool | None, typer.Option("--ask/--no-ask", help="ask for what is not set; default: on a terminal")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="write over a file that is there")] = False,
    geofences: FencesOption = None,
    scenarios: ScenariosOption = None,
) -> None:
    """Make a scenario from a template, check it among the others, and write it. What is wrong is told, not written."""
    from engine.content.activity import load_templates, make_scenario, write_yaml

    settings = load_settings()
    fences, folder = geofences or settings.geofences, scenarios or settings.scenarios
    chosen = _template(load_templates(), template)
    values = dict(_pair(one) for one in given or ())
    if sys.stdin.isatty() if ask is None else ask:
        _ask(chosen, values)
    scenario = make_scenario(chosen, values)
    inside = f"{scenario['id']}.yaml"
    target = folder / inside
    if target.exists() and not force:
        raise OpportuneError(f"{target} is there already; give another id, or --force to write over it")
    text = write_yaml(scenario, f"Made from the template {chosen.id}: {chosen.about}.")
    faults = check_among(fences, folder, {inside: text})
    if any(fault.severity == "error" for fault in faults):
        print_faults(faults)
        raise typer.Exit(1)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    print_faults(faults)
    print(f"written to {target}, mode {scenario['mode']}")


@scenario_app.command("pack")
def pack(
    out: Annotated[Path, typer.Option("--out", help="folder of scenarios to make; must not be there, or be empty")],
    count: Annotated[int, typer.Option(min=1, max=100_000)] = 255,
    mode: Annotated[str, typer.Option(help="draft, shadow or live")] = "live",
    geofences: FencesOption = None,
    scenarios: ScenariosOption = None,
) -> None:
    """Make a whole folder of scenarios from all templates over your places and benefits; 255 is a country's (2017)."""
    from engine.content import load_content
    from engine.content.activity import load_templates, write_yaml
    from engine.content.pack import make_pack

    settings = load_settings()
    fences, folder = geofences or settings.geofences, scenarios or settings.scenarios
    if out.exists() and any(out.iterdir()):
        raise OpportuneError(f"{out} is not empty; a pack makes a folder of its own")
    content = load_content(fences, folder)
    out.mkdir(parents=True, exist_ok=True)
    if (folder / "policy.yaml").exists():
        shutil.copy(folder / "policy.yaml", out / "policy.yaml")
    if (folder / "benefits").is_dir():
        shutil.copytree(folder / "benefits", out / "benefits")
    found = load_templates()
    listed = {one.id for one in content.benefits if one.file.startswith(f"{folder.name}/benefits/")}
    content = _only(content, listed)
    for file, scenario in make_pack(list(found.values()), content, count, mode=mode):
        path = out / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(write_yaml(scenario, "Made by `opportune scenario pack`."), encoding="utf-8")
    inspection = inspect_content(fences, out)
    print_faults(inspection.faults)
    if inspection.content is None:
        raise typer.Exit(1)
    print(f"{count} scenarios from {len(found)} templates in {out}")


def check_among(geofences: Path, scenarios: Path, more: dict[str, str]) -> list[Fault]:
    """Check what the content would be with these files in it; list the faults of these files, warnings too."""
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / scenarios.name
        if scenarios.is_dir():
            shutil.copytree(scenarios, copy)
        for inside, text in more.items():
            path = copy / inside
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        faults = inspect_content(geofences, copy).faults
    own = {f"{scenarios.name}/{inside}" for inside in more}
    # Without the others' faults: those were there before. With what only a set can have, such as a ninth dwell span.
    return [fault for fault in faults if fault.file in own or fault.file == scenarios.name]


def _only(content: Any, benefits: set[str]) -> Any:
    """Leave only benefits of the catalogue: an inline one cannot be named by other scenarios."""
    from dataclasses import replace

    return replace(content, benefits=tuple(one for one in content.benefits if one.id in benefits))


def _ask(template: Any, values: dict[str, Any]) -> None:
    """Ask for what was not set, again where an answer does not fit; an empty answer takes the default."""
    from engine.content.activity import read_value

    console = Terminal(is_error=True)
    for parameter in template.parameters:
        if parameter.name in values:
            continue
        default = template.default_of(parameter)
        hint = f" ({', '.join(parameter.choices)})" if parameter.choices else ""
        while True:
            shown = "" if default is None else _text(default)
            answer = typer.prompt(f"{parameter.question}{hint}", default=shown, err=True)
            if answer == "" and parameter.optional:
                break
            try:
                read_value(parameter, answer)
            except ValueError as error:
                console.print(f"wanted: {error}", style="red", highlight=False)
                continue
            values[parameter.name] = answer
            break


def _template(found: dict[str, Any], name: str) -> Any:
    from engine.content.faults import did_you_mean

    if name not in found:
        raise OpportuneError(f"no template {name!r}; {did_you_mean(name, found)}")
    return found[name]


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise typer.BadParameter(f"{text!r} is not of the form name=value", param_hint="--set")
    return name, value


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
