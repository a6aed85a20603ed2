"""`opportune backtest`: what content would have done with recorded events (docs/backtest.md)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from engine.console.terminal import Terminal
from engine.errors import OpportuneError
from engine.settings import load_settings


def register(app: typer.Typer) -> None:
    app.command()(backtest)


def backtest(
    events: Annotated[
        list[Path],
        typer.Option(
            help="recorded events: NDJSON or JSON arrays, plain or .gz; or one folder of a recording", exists=True
        ),
    ],
    more: Annotated[
        list[Path] | None, typer.Argument(help="more files of events, as a pattern leaves them", exists=True)
    ] = None,
    content: Annotated[
        Path | None, typer.Option(help="folder with scenarios/ and geofences/; without it those of the settings")
    ] = None,
    against: Annotated[Path | None, typer.Option(help="a second such folder, to compare with the first")] = None,
    html: Annotated[Path | None, typer.Option(help="write one self-contained page here")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of tables")] = False,
) -> None:
    """Run recorded events through content with limits, stock and holdout of its own; nothing is stored or sent."""
    from engine.console.backtest_page import write_page
    from engine.console.backtest_report import build_report
    from engine.console.backtest_tables import print_report
    from engine.runtime.backtest import Tally, run
    from engine.runtime.file_source import FileSource
    from engine.runtime.source import JournalSource
    from engine.runtime.warm import warm_aloud

    events = [*events, *(more or ())]
    settings = load_settings()
    folders = [content] if against is None else [content, against]
    recording = events[0] if len(events) == 1 and events[0].is_dir() else None
    loaded = [_load(folder, settings, recording) for folder in folders]

    def read_events() -> Any:
        return FileSource(events) if recording is None else JournalSource(recording / "journal")

    sources = [read_events()]
    if recording is None and sources[0].holds_no_event():
        raise _unread(events)
    if html is not None:
        # Told now, not after the run.
        html.open("ab").close()
    warm_aloud()
    console = Terminal(is_error=True)
    tallies: list[tuple[str, Tally]] = []
    for (name, one, load_content), label in zip(loaded, ("before", "after"), strict=False):
        source = sources.pop() if sources else read_events()
        with _progress(console, name, getattr(source, "total_bytes", 0)) as progress:
            tally = run(
                source,
                one,
                settings,
                id_key=b"opportune-backtest",
                endless_codes=True,
                load_content=load_content,
                progress=progress,
            )
        if not tally.events:
            raise _unread(events)
        tallies.append((name if len(loaded) == 1 else f"{label} ({name})", tally))
    report = build_report(tallies, [path.name for path in events])
    if html is not None:
        write_page(html, report, [tally.content for _, tally in tallies])
        console.print(f"page written to {html}")
    if as_json:
        print(orjson.dumps(report, option=orjson.OPT_INDENT_2).decode())
    else:
        print_report(Terminal(), report)


def _unread(events: list[Path]) -> OpportuneError:
    return OpportuneError(
        f"no event in {', '.join(map(str, events))} could be read; opportune replay --dead-letters - tells why"
    )


def _load(folder: Path | None, settings: Any, recording: Path | None) -> tuple[str, Any, Any]:
    """A name, the checked content, and what loads content records: those of a recording where nothing else is named.

    Fences are the settings' where the folder has none of its own.
    """
    from engine.content import load_content
    from engine.runtime.archive import ContentArchive
    from engine.runtime.recording import read_manifest

    if folder is None and recording is not None:
        archive = ContentArchive(recording / "content")
        return "as recorded", archive.load(str(read_manifest(recording)["content"])), archive.load_record
    if folder is None:
        return "content", load_content(settings.geofences, settings.scenarios), None
    scenarios, geofences = folder / "scenarios", folder / "geofences"
    if not scenarios.is_dir():
        raise OpportuneError(f"{folder} holds no folder scenarios/; name the folder above it")
    return folder.resolve().name, load_content(geofences if geofences.is_dir() else settings.geofences, scenarios), None


@contextlib.contextmanager
def _progress(console: Terminal, name: str, total: int) -> Iterator[Any]:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[told]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(name, total=max(total, 1), told="")

        def advance(done: int, tally: Any) -> None:
            progress.update(task, completed=done, told=f"{tally.events:,} events, {tally.candidates:,} candidates")

        yield advance
