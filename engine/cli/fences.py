"""Commands about geofences: list them, make them from other formats or from addresses."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.progress import track
from rich.table import Table

from engine.cli.content import FencesOption, ScenariosOption, inspect_folders, print_faults, print_table
from engine.console.terminal import Terminal
from engine.content.faults import Faults, did_you_mean
from engine.content.files import ReadLimits, read_bytes
from engine.content.importing import ImportChoices, Imported, collection_bytes, import_drafts
from engine.content.readers import READERS

T = TypeVar("T")


class Format(StrEnum):
    KML = "kml"
    WKT = "wkt"
    CSV = "csv"
    OWNTRACKS = "owntracks"
    GEOJSON = "geojson"


class DatumName(StrEnum):
    WGS84 = "wgs84"
    GCJ02 = "gcj02"
    BD09 = "bd09"


OutOption = Annotated[Path, typer.Option("--out", help="file to write, usually geofences/NAME.geojson")]
OwnerOption = Annotated[str, typer.Option(help="owner of fences that bring no id: national or a province")]
KindOption = Annotated[str | None, typer.Option(help="kind of fences that bring none")]
TagsOption = Annotated[list[str] | None, typer.Option("--tag", help="tag for every fence; may be repeated")]
RadiusOption = Annotated[float | None, typer.Option(help="radius of points that bring none, metres", min=1)]
ZoneOption = Annotated[str | None, typer.Option(help="IANA zone of the opening hours")]
PartialOption = Annotated[bool, typer.Option("--skip-bad", help="write the sound ones though others are not")]
ForceOption = Annotated[bool, typer.Option("--force", help="overwrite the file")]

fences_app = typer.Typer(help="List geofences, or make them from other formats.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands of this file to the application."""
    app.add_typer(fences_app, name="fences")


@fences_app.command("list")
def list_fences(
    geofences: FencesOption = None,
    scenarios: ScenariosOption = None,
    kind: Annotated[str | None, typer.Option(help="only this kind")] = None,
) -> None:
    """List every fence with its shape, place and hours."""
    inspection = inspect_folders(geofences, scenarios)
    if inspection.content is None:
        print_faults(inspection.faults)
        raise typer.Exit(1)
    kinds = {fence.kind for fence in inspection.content.fences}
    if kind is not None and kind not in kinds:
        raise typer.BadParameter(f"no fence has the kind {kind!r}; {did_you_mean(kind, kinds)}", param_hint="--kind")
    table = Table("id", "name", "kind", "shape", "lon", "lat", "hours", "tags")
    for fence in inspection.content.fences:
        if kind in (None, fence.kind):
            tags = ", ".join(sorted(fence.tags))
            spot = (f"{fence.lon:.5f}", f"{fence.lat:.5f}")
            table.add_row(fence.id, fence.name, fence.kind, fence.shape.value, *spot, fence.opening_hours or "", tags)
    print_table(table)


@fences_app.command("import")
def import_fences(
    source: Annotated[Path, typer.Argument(help="the file to read", exists=True, dir_okay=False)],
    out: OutOption,
    file_format: Annotated[Format, typer.Option("--format", help="what the file is")],
    owner: OwnerOption = "national",
    kind: KindOption = None,
    tags: TagsOption = None,
    radius_m: RadiusOption = None,
    buffer_m: Annotated[float | None, typer.Option(help="half width of lines that bring none, metres", min=1)] = None,
    datum: Annotated[DatumName, typer.Option(help="of the coordinates; Chinese maps use gcj02 or bd09")] = (
        DatumName.WGS84
    ),
    time_zone: ZoneOption = None,
    id_property: Annotated[str | None, typer.Option(help="the source's field for the id")] = None,
    name_property: Annotated[str, typer.Option(help="the source's field for the name")] = "name",
    kind_property: Annotated[str | None, typer.Option(help="the source's field for the kind")] = None,
    repair: Annotated[bool, typer.Option("--repair", help="mend outlines that cross themselves")] = False,
    skip_bad: PartialOption = False,
    force: ForceOption = False,
) -> None:
    """Make a geofence file from KML, WKT, CSV, OwnTracks waypoints or any GeoJSON; exit status 1 where any is bad."""
    faults = Faults()
    limits = ReadLimits()
    data = read_bytes(source, source.name, limits.geojson_bytes, faults)
    choices = ImportChoices(
        owner=owner,
        kind=kind,
        tags=tuple(tags or ()),
        radius_m=radius_m,
        buffer_m=buffer_m,
        datum=datum.value,
        time_zone=time_zone,
        id_property=id_property,
        name_property=name_property,
        kind_property=kind_property,
        repair=repair,
    )
    drafts = list(READERS[file_format.value](data, source.name, faults)) if data is not None else []
    imported = import_drafts(_shown(drafts, "Checking places"), choices, source.name, faults, limits)
    _finish(imported, faults, out, f"Imported from {source.name}", skip_bad, force)


@fences_app.command("geocode")
def geocode_addresses(
    addresses: Annotated[Path, typer.Argument(help="one address, or name<TAB>address, a line", exists=True)],
    out: OutOption,
    kind: KindOption = None,
    radius_m: RadiusOption = 100,
    owner: OwnerOption = "national",
    tags: TagsOption = None,
    time_zone: ZoneOption = None,
    provider: Annotated[str, typer.Option(help="a geocoder of geopy: nominatim, photon, baiduv3, ...")] = "nominatim",
    domain: Annotated[str | None, typer.Option(help="your own server, e.g. http://localhost:8088")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="OPPORTUNE_GEOCODER_KEY", help="where one is needed")] = None,
    pause_s: Annotated[float, typer.Option(help="between two questions, seconds", min=0)] = 1.0,
    skip_bad: PartialOption = False,
    force: ForceOption = False,
) -> None:
    """Make circles from a list of addresses by a geocoding service; exit status 1 where any is not found."""
    # geopy brings a web client with it; only this command needs them.
    from engine.content.geocoding import Provider, geocode, read_addresses

    faults = Faults()
    service = Provider(name=provider, domain=domain, api_key=api_key, pause_s=pause_s)
    data = read_bytes(addresses, addresses.name, ReadLimits().yaml_bytes * 16, faults)
    asked = read_addresses(data.decode("utf-8-sig", "replace")) if data is not None else []
    choices = ImportChoices(owner, kind, tuple(tags or ()), radius_m=radius_m, datum=service.datum, time_zone=time_zone)
    try:
        drafts = list(geocode(_shown(asked, "Asking for places"), service, addresses.name, faults))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    imported = import_drafts(drafts, choices, addresses.name, faults)
    _finish(imported, faults, out, f"Places found by {provider}", skip_bad, force)


def _shown(items: list[T], words: str) -> Iterable[T]:
    """Show a progress bar on a terminal while these are worked through."""
    console = Terminal(is_error=True)
    return track(items, words, console=console, disable=not console.is_terminal or len(items) < 2)


def _finish(imported: Imported, faults: Faults, out: Path, note: str, skip_bad: bool, force: bool) -> None:
    """Report and write; nothing is written where anything is bad, unless that was asked for."""
    print_faults(faults.all())
    if faults.error_count and not skip_bad:
        print("Nothing was written; --skip-bad writes the sound ones.")
        raise typer.Exit(1)
    if not imported.features:
        print("No place was found; nothing was written.")
        raise typer.Exit(1)
    if out.exists() and not force:
        print(f"{out} exists; --force overwrites it.")
        raise typer.Exit(1)
    out.write_bytes(collection_bytes(imported.features, note))
    mended = f", {imported.repaired} of them mended" if imported.repaired else ""
    count = len(imported.features)
    print(f"Wrote {count} fence{'' if count == 1 else 's'} to {out}{mended}. Now run: opportune check")
    if faults.error_count:
        raise typer.Exit(1)
