"""Forget a user (rule I2): every store of the deployment, while the service is stopped.

Order matters for a crash in between: the state without the user is written before the old one goes, and the journal
is blanked only when no state needs to be rebuilt from it. Doing it again after a crash finishes it.
"""

from __future__ import annotations

from dataclasses import dataclass

import orjson

from engine.changes import Change
from engine.decode.envelopes import Ignored, unwrap
from engine.decode.split import split
from engine.deliver.addressbook import AddressBook
from engine.errors import EventError
from engine.ledger.audit import forgotten_name
from engine.runtime import checkpoint
from engine.runtime.id_key import load_id_key
from engine.runtime.service import Service
from engine.settings import Settings


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What was found and removed."""

    addresses: int
    had_state: bool
    journal_records: int


def forget(settings: Settings, book: AddressBook, user: str, *, by: str = "local") -> Forgotten:
    """Remove every trace of `user`; raises StoreUnavailable while another process writes the journal.

    by  who asked for it, for the audit log, which names the user by a keyed hash
    """
    service = Service(settings)
    try:
        had_state = service.pipeline.forget(user)
        name = forgotten_name(load_id_key(settings.state / "offer-id.key"), user)
        service.ledger.forget(user, Change(-1, service.pipeline.now_ms, by, "forget", name, None, None))
        folder = settings.state / "checkpoints"
        old = set(folder.glob("*.checkpoint")) if folder.is_dir() else set()
        written = checkpoint.write(folder, service.snapshot_checkpoint())
        for path in old - {written}:
            path.unlink(missing_ok=True)
        records = service.journal.rewrite(lambda payload: blanked(payload, user))
        return Forgotten(book.forget(user), had_state, records)
    finally:
        service.stop()


def blanked(payload: bytes, user: str) -> bytes:
    """Return the payload with this user's events overwritten, its length and the other events unchanged.

    A line becomes spaces, which is no event; an element of an array becomes `{}`, a dead letter if it is ever read.
    """
    if user.encode() not in payload and b"\\" not in payload:
        return payload
    edited: bytearray | None = None
    for start, end in split(payload):
        if _user_of(payload[start:end]) == user:
            edited = bytearray(payload) if edited is None else edited
            alone = _stands_alone(payload, start, end)
            edited[start:end] = (b"" if alone else b"{}").ljust(end - start)
    return payload if edited is None else bytes(edited)


def _user_of(event: bytes) -> object:
    try:
        document = orjson.loads(event)
        fields = unwrap(document) if isinstance(document, dict) else None
    except (orjson.JSONDecodeError, EventError):
        return None
    return None if fields is None or isinstance(fields, Ignored) else fields.get("user")


def _stands_alone(payload: bytes, start: int, end: int) -> bool:
    """Whether the event is a line of its own and not an element of an array, which may span lines."""
    before, after = payload[:start].rstrip()[-1:], payload[end:].lstrip()[:1]
    return before not in (b"[", b",") and after not in (b",", b"]")
