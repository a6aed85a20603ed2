"""`opportune replay`: recorded events through the same pipeline, at full speed or paced."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Annotated, Any, NoReturn

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from engine.clock import monotonic_s
from engine.console.terminal import Terminal
from engine.errors import OpportuneError
from engine.model import Drop
from engine.settings import load_settings


def register(app: typer.Typer) -> None:
    app.command()(replay)


def replay(
    files: Annotated[
        list[Path] | None, typer.Argument(help="events: NDJSON or JSON arrays, plain or .gz", exists=True)
    ] = None,
    state: Annotated[
        Path | None, typer.Option(help="instead of files: the journal of a state folder, without what it set aside")
    ] = None,
    geofences: Annotated[Path | None, typer.Option(help="folder of fences")] = None,
    scenarios: Annotated[Path | None, typer.Option(help="folder of scenarios")] = None,
    transitions: Annotated[Path | None, typer.Option(help="write transitions here, one JSON object a line")] = None,
    decisions: Annotated[Path | None, typer.Option(help="write decisions here, one JSON object a line")] = None,
    dead_letters: Annotated[Path | None, typer.Option(help="write what could not be read here")] = None,
    speed: Annotated[float, typer.Option(help="times real time; 0: as fast as possible", min=0)] = 0.0,
    clock: Annotated[str, typer.Option(help="events: now is the largest event time so far")] = "events",
    id_key: Annotated[Path | None, typer.Option(help="key file of a deployment, to get its offer ids")] = None,
) -> None:
    """Replay recorded events: same fences, scenarios, caps and clockwork as live, nothing is sent."""
    if clock != "events":
        raise typer.BadParameter("files carry no append times; only `events` is possible", param_hint="--clock")
    if bool(files) == (state is not None):
        raise typer.BadParameter("name files of events, or a state folder with --state", param_hint="FILES / --state")
    from engine.content import load_content
    from engine.ledger.embedded import EmbeddedLedger
    from engine.pipeline import Pipeline
    from engine.runtime import collector
    from engine.runtime.archive import ContentArchive
    from engine.runtime.file_source import FileSource
    from engine.runtime.quarantine import Quarantine
    from engine.runtime.source import JournalSource
    from engine.runtime.warm import warm_aloud

    settings = load_settings(geofences=geofences, scenarios=scenarios)
    console = Terminal(is_error=True)
    tally: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="opportune-replay-") as folder, contextlib.ExitStack() as files_open:
        # What can be wrong with what was asked for is told first: the kernels take their time.
        outputs = _opened(files_open, (transitions, decisions, dead_letters), files or [])
        source: Any = FileSource(files or []) if state is None else JournalSource(_journal(state))
        if dead_letters is None and isinstance(source, FileSource) and source.holds_no_event():
            _tell_unread(console, files or [], state)
        content = load_content(settings.geofences, settings.scenarios)
        key = id_key.read_bytes() if id_key else b"opportune-replay"
        warm_aloud()
        ledger = EmbeddedLedger(
            Path(folder) / "ledger.db",
            assumed_consent=content.policy.assumed_consent,
            fsync="never",
            endless_codes=True,
        )
        pipeline = Pipeline(content, settings, ledger, id_key=key)
        out = _Outputs(pipeline, *outputs)
        collector.settle()
        # What the service set aside would stop it, and took no part in its decisions (F2).
        quarantine = Quarantine((state or Path(folder)) / "quarantine.jsonl")
        follows = state is not None and geofences is None and scenarios is None
        load_record = ContentArchive(state / "content").load_record if state is not None and follows else None
        started = monotonic_s()
        with _progress(console, getattr(source, "total_bytes", 0)) as advance:
            for block in _paced(source, pipeline, speed):
                effects = pipeline.process(quarantine.without(block), load_record)
                effects.dead = quarantine.named(effects.dead)
                ledger.commit(int(block.position[-1]), effects.now_ms)
                out.write(effects)
                _add(tally, effects)
                advance(getattr(source, "done_bytes", 0), tally)
        last = pipeline.finish()
        out.write(last)
        _add(tally, last)
        seconds = monotonic_s() - started
        ledger.close()
    _summary(console, tally, seconds)
    if not tally["events"]:
        _tell_unread(console, files or [], state)


def _tell_unread(console: Terminal, files: list[Path], state: Path | None) -> NoReturn:
    what = ", ".join(map(str, files)) if files else f"the journal of {state}"
    console.print(f"no event in {what} could be read; --dead-letters - tells what is wrong with each", soft_wrap=True)
    raise typer.Exit(1)


def _journal(state: Path) -> Path:
    if not (state / "journal").is_dir():
        raise OpportuneError(f"{state} holds no journal; name the folder that a service wrote")
    return state / "journal"


class _Outputs:
    """Where transitions, decisions and dead letters go; None: nowhere."""

    def __init__(
        self,
        pipeline: Any,
        transitions: IO[bytes] | None,
        decisions: IO[bytes] | None,
        dead_letters: IO[bytes] | None,
    ) -> None:
        self._pipeline = pipeline
        self._transitions, self._decisions, self._dead = transitions, decisions, dead_letters

    def write(self, effects: Any) -> None:
        if self._transitions is not None:
            self._transitions.writelines(self._pipeline.transition_lines(effects))
        self.write_decisions(effects.decisions)
        if self._dead is not None:
            import msgspec

            self._dead.writelines(msgspec.json.encode(letter) + b"\n" for letter in effects.dead)

    def write_decisions(self, decisions: list[Any]) -> None:
        from engine.decide.records import encode_lines

        if self._decisions is not None and decisions:
            self._decisions.write(encode_lines(decisions))


def _opened(stack: contextlib.ExitStack, asked: tuple[Path | None, ...], files: list[Path]) -> list[IO[bytes] | None]:
    """Open what is to be written; raise OpportuneError rather than empty a file that is to be read."""
    read = {path.resolve() for path in files}
    opened: list[IO[bytes] | None] = []
    for path in asked:
        if path is None:
            opened.append(None)
        elif str(path) == "-":
            opened.append(sys.stdout.buffer)
        elif path.resolve() in read:
            raise OpportuneError(f"{path} is to be read and written at once; name another file")
        else:
            read.add(path.resolve())
            opened.append(stack.enter_context(path.open("wb")))
    return opened


def _paced(source: Any, pipeline: Any, speed: float) -> Iterator[Any]:
    """Yield blocks; with a speed, none before its time."""
    first_ms: int | None = None
    started = monotonic_s()
    while blocks := source.poll(4096 if speed == 0 else 64):
        for block in blocks:
            yield block
            if speed:
                first_ms = pipeline.now_ms if first_ms is None else first_ms
                ahead_s = (pipeline.now_ms - first_ms) / 1000 / speed - (monotonic_s() - started)
                if ahead_s > 0:
                    time.sleep(ahead_s)


@contextlib.contextmanager
def _progress(console: Terminal, total: int) -> Iterator[Any]:
    columns = (
        TextColumn("replay"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[told]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("replay", total=max(total, 1), told="")

        def advance(done: int, tally: Counter[str]) -> None:
            told = f"{tally['events']:,} events, {tally['transitions']:,} transitions, {tally['offers']:,} offers"
            progress.update(task, completed=done, told=told)

        yield advance


def _add(tally: Counter[str], effects: Any) -> None:
    tally["events"] += effects.events
    tally["dead letters"] += len(effects.dead)
    tally["candidates"] += effects.candidates
    tally["offers"] += len(effects.offers)
    for batch in effects.transitions:
        tally["transitions"] += len(batch)
    for drop in Drop:
        if drop and effects.drops[drop]:
            tally[f"dropped: {drop.name.lower()}"] += int(effects.drops[drop])
    for decision in effects.decisions:
        # A record with a count ends a run whose first was counted.
        tally[f"decision: {decision.outcome} / {decision.reason}"] += max(1, decision.count - 1)
    for letter in effects.dead:
        tally[f"dead: {letter.reason.value}"] += 1


def _summary(console: Terminal, tally: Counter[str], seconds: float) -> None:
    table = Table(title=f"{tally['events']:,} events in {seconds:.1f} s, {tally['events'] / max(seconds, 1e-9):,.0f}/s")
    table.add_column("what")
    table.add_column("how many", justify="right")
    for what in ("transitions", "candidates", "offers", "dead letters"):
        table.add_row(what, f"{tally[what]:,}")
    for what, number in sorted(tally.items()):
        if ":" in what:
            table.add_row(what, f"{number:,}")
    console.print(table)
