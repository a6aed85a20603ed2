"""Recordings for backtests: what a service takes in, with other pseudonyms, for longer than its journal keeps it (I2).

A folder: `recording.json` says when, from where and until when it may be kept; `journal` holds the records with their
append times; `content` every version they name. It begins with the profiles and consents of the newest checkpoint,
as events, and goes on with the record behind it. Coordinates are kept: a backtest needs them. Users and persons are
keyed hashes; the key stays in the state folder while the recording goes on, and is deleted at its end.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import orjson

from engine.decide.profiles import GRANTED, KNOWN, ProfileTable
from engine.decode.envelopes import Ignored, unwrap
from engine.decode.split import split
from engine.decode.users import UserTable
from engine.errors import EventError, OpportuneError
from engine.model import RecordKind
from engine.runtime import checkpoint
from engine.runtime.journal import Journal
from engine.runtime.quarantine import Quarantine
from engine.runtime.source import JournalSource

VERSION = 1
MANIFEST = "recording.json"
_MOST_TEXT = 8
"""An inbound message longer than this is no opt-out; its text is nobody's business."""

Rename = Callable[[str], str]


class Recorder:
    """Copies a state folder's journal, as far as it is written, into a recording; again and again until the end.

    Another process may be writing the journal. Begun again after a crash it goes on behind what it has copied.
    """

    def __init__(self, state: Path, folder: Path, *, keep_days: int) -> None:
        if not (state / "journal").is_dir():
            raise OpportuneError(f"{state} holds no journal; name the folder that a service writes (--state)")
        self._state = state
        self._folder = folder
        self._key_path = state / "recordings" / f"{folder.name}.key"
        manifest = folder / MANIFEST
        self.records = self.events = 0
        if manifest.exists():
            self._told: dict[str, Any] = orjson.loads(manifest.read_bytes())
            if self._told.get("finished") or not self._key_path.exists():
                raise OpportuneError(f"{folder} is a finished recording; name another folder")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            self._told = {"v": VERSION, "through": -1, "keep_days": keep_days, "content": None, "finished": False}
            _new_key(self._key_path)
        self._rename = renaming(self._key_path.read_bytes())
        self._journal = Journal(folder / "journal", fsync="never")
        if self._told["through"] < 0:
            self._begin()
        self._source = JournalSource(state / "journal", after=self._told["through"])

    def _begin(self) -> None:
        """Write down what is known of users, or start with the first record where nothing was saved yet."""
        found = checkpoint.read_newest(self._state / "checkpoints").checkpoint
        if found is None:
            return
        self._keep_content(found.content_version)
        self._told["content"] = found.content_version
        for payload in snapshot_events(found, self._rename):
            self._append(payload, found.now_ms, RecordKind.EVENTS)
        self._told["through"] = found.position

    def copy(self) -> int:
        """Copy what was journaled since; return how many records."""
        before = self.records
        quarantine = Quarantine(self._state / "quarantine.jsonl")  # what took no part in decisions stays out
        while blocks := self._source.poll(4096):
            for whole in blocks:
                block = quarantine.without(whole)
                for row in range(len(block)):
                    payload = bytes(block.data[int(block.start[row]) : int(block.end[row])])
                    kind = int(block.kind[row])
                    if kind == RecordKind.CONTENT:
                        version = str(orjson.loads(payload)["version"])
                        self._keep_content(version)
                        self._told["content"] = self._told["content"] or version
                    elif kind == RecordKind.EVENTS:
                        payload = rekeyed(payload, self._rename)
                    self._append(payload, int(block.append_ms[row]), kind)
                self._told["through"] = int(block.position[-1])
            self._write_manifest()
        return self.records - before

    def finish(self) -> None:
        """End the recording: nobody can tell any more who was who."""
        self._journal.sync()
        self._told["finished"] = True
        self._write_manifest()
        self._journal.close()
        self._source.close()
        self._key_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Stop for now; a recorder of the same folders goes on."""
        self._write_manifest()
        self._journal.close()
        self._source.close()

    def _append(self, payload: bytes, append_ms: int, kind: int) -> None:
        self._journal.append(payload, wall_ms=append_ms, kind=kind)
        self.records += 1
        self._told.setdefault("from", append_ms)
        self._told["until"] = append_ms

    def _keep_content(self, version: str) -> None:
        target = self._folder / "content" / version
        if not target.exists():
            shutil.copytree(self._state / "content" / version, target)

    def _write_manifest(self) -> None:
        new = self._folder / f"{MANIFEST}.new"
        new.write_bytes(orjson.dumps(self._told, option=orjson.OPT_INDENT_2))
        os.replace(new, self._folder / MANIFEST)


def _new_key(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(secrets.token_bytes(32))


def renaming(key: bytes) -> Rename:
    """Return what gives every user of a recording another pseudonym."""
    return lambda user: "r" + blake2b(user.encode(), key=key, digest_size=10).hexdigest()


def rekeyed(payload: bytes, rename: Rename) -> bytes:
    """One line for every event of a record, with its users renamed; what cannot be read becomes an empty object."""
    return b"\n".join(_rekeyed_event(payload[start:end], rename) for start, end in split(payload))


def _rekeyed_event(event: bytes, rename: Rename) -> bytes:
    try:
        body = orjson.loads(event)
        plain = unwrap(body) if isinstance(body, dict) else Ignored
    except (orjson.JSONDecodeError, EventError):
        return b"{}"
    if not isinstance(plain, dict) or not isinstance(plain.get("user"), str):
        return b"{}"
    plain = dict(plain)
    for name in ("user", "person", "id"):  # ids of events are often made of the user's
        if isinstance(plain.get(name), str):
            plain[name] = rename(plain[name])
    if plain.get("type") == "inbound-message" and len(str(plain.get("text", ""))) > _MOST_TEXT:
        plain["text"] = "-"
    props = plain.get("props")
    if plain.get("category") == "inbound" and isinstance(props, dict) and len(str(props.get("text", ""))) > _MOST_TEXT:
        plain["props"] = props | {"text": "-"}
    return orjson.dumps(plain)


def snapshot_events(saved: checkpoint.Checkpoint, rename: Rename) -> Iterator[bytes]:
    """Tell as events what a checkpoint knows of users: profiles, dynamic tags left out, and consents (A1, A2)."""

    def part(stage: str) -> dict[str, Any]:
        prefix = f"{stage}."
        return {name[len(prefix) :]: one for name, one in saved.arrays.items() if name.startswith(prefix)}

    users = UserTable.from_arrays(part("users"))
    profiles = ProfileTable()
    profiles.restore(part("profiles"), saved.objects["pipeline"]["profiles"])
    for slot in range(min(users.count, profiles.count)):
        user = users.id_of(slot)
        if not user or users.slot_of(user, intern=False) != slot:
            continue
        name = rename(user)
        if profiles.is_known(slot):
            told = {"type": "profile", "user": name, "at": saved.now_ms, **_profile(profiles, slot, rename)}
            yield orjson.dumps(told)
        for purpose, column in profiles.purposes.items():
            packed = int(column.view[slot])
            if packed & 3:
                yield orjson.dumps(
                    {
                        "type": "consent",
                        "user": name,
                        "at": packed >> 16,
                        "purpose": purpose,
                        "granted": packed & 3 == GRANTED,
                    }
                )


def _profile(profiles: ProfileTable, slot: int, rename: Rename) -> dict[str, Any]:
    tags = []
    for row, word in enumerate(profiles.tag_words):
        held = int(word.view[slot])
        while held:
            bit = held & -held
            held ^= bit
            tags.append(profiles.tags.texts[row * 64 + bit.bit_length() - 1])
    numbers = {name: value for name, one in profiles.numbers.items() if (value := one.view[slot]) == value}
    texts = {name: text for name, one in profiles.texts.items() if (text := one.get(slot)) is not None}
    told: dict[str, Any] = {"tags": tags, "attributes": numbers | texts}
    told["dnd"] = bool(profiles.flags.view[slot] & ~KNOWN & 2)
    for field, column in (
        ("organisation", profiles.organisation),
        ("person", profiles.person),
        ("time_zone", profiles.zone),
        ("province", profiles.province),
    ):
        text = column.get(slot) if column is not None else None
        if text is not None:
            told[field] = rename(text) if field == "person" else text
    return told


def read_manifest(folder: Path) -> dict[str, Any]:
    """Say what a recording is; raises OpportuneError where the folder is none."""
    try:
        told: dict[str, Any] = orjson.loads((folder / MANIFEST).read_bytes())
    except (OSError, orjson.JSONDecodeError):
        raise OpportuneError(
            f"{folder} is no recording: it holds no {MANIFEST}; make one with opportune record"
        ) from None
    if told.get("v") != VERSION:
        raise OpportuneError(f"{folder} is a recording of version {told.get('v')}; this program reads {VERSION}")
    return told
