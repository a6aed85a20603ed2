"""Content and pauses for a whole deployment: the control topic holds contents by version, the log says when they count.

A push writes the content under its version, then names the version in every partition of the events topic: activation
is a record at a position, so that a replay decides with what decided then (T2, L10).
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Protocol

import orjson
import structlog

from engine.content import load_content
from engine.definitions import Content
from engine.errors import StoreCorrupt, StoreUnavailable
from engine.ledger.redis.deployment import Deployment
from engine.model import RecordKind
from engine.runtime.archive import ContentArchive, content_record
from engine.runtime.cluster.bridge import Loop
from engine.runtime.cluster.outputs import Outputs, read_records
from engine.settings import ClusterSettings, Settings

log = structlog.get_logger("opportune.control")

_LIVE = b"live"
_FOLDERS = ("geofences", "scenarios")


def push_content(settings: Settings, folder: Path) -> Content:
    """Check the content of a folder and make it live everywhere; ContentError with all its faults."""
    content = load_content(folder / "geofences", folder / "scenarios")
    outputs = Outputs(settings.cluster)
    try:
        bundle = _pack(folder)
        outputs.send("control", [bundle], partition=0, keys=[f"content:{content.version}".encode()])
        outputs.flush()
        for partition in range(settings.cluster.partitions):
            outputs.send("events", [content_record(content)], partition=partition, kind=RecordKind.CONTENT)
        outputs.send("control", [content_record(content)], partition=0, keys=[_LIVE])
        outputs.flush()
    finally:
        outputs.close()
    return content


def pause(settings: Settings, scenario: str, paused: bool, by: str = "command line") -> None:
    """Pause or resume a scenario, or all with "*": in the claim store at once, in the log for what is decided (D8)."""
    deployment = Deployment(settings.cluster.redis, settings.tenant)
    try:
        outputs = Outputs(settings.cluster)
        try:
            tell_pause(settings.cluster, deployment, outputs, scenario, paused, by)
        finally:
            outputs.close()
    finally:
        deployment.close()


def tell_pause(
    cluster: ClusterSettings, deployment: Deployment, outputs: Outputs, scenario: str, paused: bool, by: str
) -> None:
    """Likewise with connections that are open. A pause holds before the log knows it, a resume once the log does."""
    if paused:
        deployment.pause(scenario, True)
    record = orjson.dumps({"pause": scenario, "paused": paused, "by": by})
    for partition in range(cluster.partitions):
        outputs.send("events", [record], partition=partition, kind=RecordKind.CONTROL)
    outputs.flush()
    if not paused:
        deployment.pause(scenario, False)


class Contents(Protocol):
    """Where contents come from: ControlTopic, or what stands for it."""

    def refresh(self) -> None: ...

    def load_live(self) -> Content: ...

    def load(self, version: str) -> Content: ...

    def load_record(self, payload: bytes) -> Content: ...

    def close(self) -> None: ...


class ControlTopic:
    """Contents by version, kept in a local archive; reads what is new when it is asked for something unknown."""

    def __init__(self, cluster: ClusterSettings, archive: ContentArchive) -> None:
        self.live: str | None = None
        self._cluster = cluster
        self._archive = archive
        self._loop = Loop("opportune-control")
        self._read_to = -1
        self._newest: Content | None = None
        self.refresh()

    def refresh(self) -> None:
        """Read what was pushed since."""
        found = self._loop.run(
            read_records(self._cluster.kafka, self._cluster.topic("control"), 0, self._read_to), 60.0
        )
        for record in found:
            self._read_to = record.offset
            key = record.key or b""
            if key.startswith(b"content:") and record.value:
                _unpack(record.value, self._archive.root / key.removeprefix(b"content:").decode())
            elif key == _LIVE and record.value:
                self.live = str(orjson.loads(record.value)["version"])

    def load_live(self) -> Content:
        """Load what is live; StoreUnavailable where nothing was ever pushed."""
        if self.live is None:
            self.refresh()
        if self.live is None:
            raise StoreUnavailable(
                f"topic {self._cluster.topic('control')} holds no content yet: opportune content push DIR"
            )
        return self.load(self.live)

    def load(self, version: str) -> Content:
        """Load a content, one object for all who ask: every partition has it, and compiling begins with the object."""
        if self._newest is None or self._newest.version != version:
            try:
                self._newest = self._archive.load(version)
            except StoreCorrupt:
                self.refresh()
                self._newest = self._archive.load(version)
        return self._newest

    def load_record(self, payload: bytes) -> Content:
        """Load what a content record names."""
        return self.load(str(orjson.loads(payload)["version"]))

    def close(self) -> None:
        self._loop.stop()


def _pack(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as bundle:
        for name in _FOLDERS:
            for path in sorted((folder / name).rglob("*")):
                if path.is_file() and not path.name.startswith("."):
                    bundle.add(path, arcname=str(path.relative_to(folder)), recursive=False)
    return buffer.getvalue()


def _unpack(bundle: bytes, target: Path) -> None:
    if target.is_dir():
        return
    partial = target.with_name(f".{target.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    for name in _FOLDERS:
        (partial / name).mkdir(exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(bundle), mode="r:gz") as files:
        files.extractall(partial, filter="data")
    partial.replace(target)
