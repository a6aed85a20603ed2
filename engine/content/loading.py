"""Load a content set whole, or say everything that is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.content.apps import APPS_FOLDER, load_apps
from engine.content.benefits import load_benefits
from engine.content.cells import load_cells
from engine.content.faults import Faults, Shown
from engine.content.fences import load_fences
from engine.content.files import ReadLimits
from engine.content.scenarios import load_policy, load_scenarios
from engine.content.versions import content_version, fence_summary
from engine.definitions import Content
from engine.errors import ContentError, Fault

# What may lie beside content without being content.
_BESIDE = frozenset({".md", ".txt", ".license"})


@dataclass(frozen=True, slots=True)
class Inspection:
    """What `check` found: the content where it is usable, and every fault, warnings too."""

    content: Content | None
    faults: tuple[Fault, ...]

    @property
    def errors(self) -> list[Fault]:
        return [fault for fault in self.faults if fault.severity == "error"]


def load_content(geofences: Path, scenarios: Path, limits: ReadLimits | None = None) -> Content:
    """Load fences, cells, scenarios and policy; raise ContentError with all faults where any stands in the way."""
    inspection = inspect_content(geofences, scenarios, limits)
    if inspection.content is None:
        raise ContentError(inspection.errors)
    return inspection.content


def inspect_content(geofences: Path, scenarios: Path, limits: ReadLimits | None = None) -> Inspection:
    """Load as `load_content` does, and return what was found instead of raising."""
    limits = limits or ReadLimits()
    faults = Faults()
    for folder, suffixes in ((geofences, (".geojson",)), (scenarios, (".yaml",))):
        _check_folder(folder, suffixes, faults)
    policy = load_policy(scenarios, limits, faults)
    cells = load_cells(geofences, limits, faults)
    fences = load_fences(geofences, policy.time_zone, cells, limits, faults)
    catalogue = load_benefits(scenarios, policy, limits, faults)
    apps = load_apps(scenarios, limits, faults)
    loaded = load_scenarios(scenarios, fences, policy, catalogue, limits, faults)
    benefits = catalogue.all_of(loaded, faults)
    if faults.error_count:
        return Inspection(None, tuple(faults.all()))
    version = content_version(fence_summary(fences), cells, loaded, policy, benefits, apps)
    content = Content(version, tuple(fences), cells, tuple(loaded), policy, benefits, apps)
    return Inspection(content, tuple(faults.all()))


def outdated(content: Content, now_ms: int) -> list[Fault]:
    """List, as warnings, the scenarios and fences that are over at `now_ms`: sound, and without effect."""
    hint = "it is over; move the date or remove it"
    scenarios = [
        Fault(one.file, "$.schedule.until", "a date that is past", "a date to come", hint, "warning")
        for one in content.scenarios
        if one.schedule.until_ms is not None and one.schedule.until_ms <= now_ms
    ]
    fences = [
        Fault("geofences", f"fence {one.id}", "a valid_until that is past", "a date to come", hint, "warning")
        for one in content.fences
        if one.valid_until_ms is not None and one.valid_until_ms <= now_ms
    ]
    benefits = [
        Fault(one.file, f"benefit {one.id}", "a validity that is past", "a date to come", hint, "warning")
        for one in content.benefits
        if one.valid_until_ms is not None and one.valid_until_ms <= now_ms
    ]
    return scenarios + fences + benefits


def _check_folder(folder: Path, suffixes: tuple[str, ...], faults: Faults) -> None:
    """Note a missing folder, and every file in it that would be passed over."""
    if not folder.is_dir():
        hint = f"looked for {folder.absolute()}"
        faults.add(folder.name, "$", Shown("no such folder"), "a folder of content", hint)
        return
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        is_leftover = any(part.startswith(".") for part in inside.parts) or path.name.endswith(("~", ".tmp"))
        if path.is_dir() or is_leftover or path.suffix in _BESIDE:
            continue
        tables = "cells" if ".geojson" in suffixes else APPS_FOLDER
        is_table = inside.parts[0] == tables and len(inside.parts) == 2
        if path.suffix in (".csv",) if is_table else path.suffix in suffixes:
            continue
        hint = "`opportune fences import` reads other formats" if ".geojson" in suffixes else ""
        expected = f"files ending in {' or '.join(suffixes)} and {tables}/*.csv"
        faults.add(f"{folder.name}/{inside.as_posix()}", "$", Shown("a file that would be ignored"), expected, hint)
