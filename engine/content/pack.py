"""A pack of scenarios made from all templates over a content set: as many as a country runs, for scale or a start."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from engine.content.activity import Template, make_scenario, variations
from engine.definitions import Content, Stage
from engine.errors import OpportuneError

OWNERS = (
    "national",
    *("anhui", "beijing", "chongqing", "fujian", "gansu", "guangdong", "guangxi", "guizhou", "hainan", "hebei"),
    *("heilongjiang", "henan", "hubei", "hunan", "jiangsu", "jiangxi", "jilin", "liaoning", "neimenggu", "ningxia"),
    *("qinghai", "shaanxi", "shandong", "shanghai", "shanxi", "sichuan", "tianjin", "xinjiang", "xizang", "yunnan"),
)
"""The whole country and thirty provinces."""


def make_pack(
    templates: Sequence[Template], content: Content, count: int, *, mode: str = "live"
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (file below the scenarios folder, scenario), template after template, owners and examples taking turns.

    Places are kinds the content has, benefits those of its catalogue that run. The same content gives the same pack.
    Raise OpportuneError where the content has nothing to offer.
    """
    benefits = [one.id for one in content.benefits if one.stage is Stage.RUNNING]
    kinds = sorted({fence.kind for fence in content.fences})
    if not benefits:
        raise OpportuneError("a pack needs a benefit: put one into scenarios/benefits")
    if not kinds:
        raise OpportuneError("a pack needs a place: put one into geofences")
    turns = -(-count // len(templates))
    answers = [list(variations(template, turns)) for template in templates]
    for number in range(count):
        turn, at = divmod(number, len(templates))
        template, owner = templates[at], OWNERS[number % len(OWNERS)]
        name = f"{template.id}-{turn + 1:03d}"
        given = {**answers[at][turn], "id": f"{owner}/{name}", "name": f"{template.name} {turn + 1}", "mode": mode}
        given["benefit"] = benefits[number % len(benefits)]
        for parameter in template.parameters:
            if parameter.type == "kind" and given.get(parameter.name, parameter.default) not in kinds:
                given[parameter.name] = kinds[turn % len(kinds)]
        yield f"{owner}/{name}.yaml", make_scenario(template, given)
