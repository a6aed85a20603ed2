"""A schema registry over HTTP (Confluent's API): schemas by id, each asked for once, as an id keeps its meaning."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import structlog

from engine.errors import SettingsError, StoreUnavailable

log = structlog.get_logger("opportune.registry")

_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0


class UnknownSchema(Exception):
    """The registry has no such schema, or it is one that cannot be read."""


@dataclass(frozen=True, slots=True)
class Schema:
    """One schema: `kind` is AVRO, PROTOBUF or JSON; Protobuf's `text` is a FileDescriptorProto in base64."""

    kind: str
    text: str
    references: tuple[tuple[str, Schema], ...] = ()


class SchemaRegistry:
    """Ask for schemas. While the registry does not answer, `schema` waits: events wait with it, none is lost.

    url         http://host:port[/path], with user:password@ where it asks for them
    is_stopped  ends the wait: StoreUnavailable
    """

    def __init__(self, url: str, *, is_stopped: Callable[[], bool] = lambda: False, timeout_s: float = 5.0) -> None:
        parsed = httpx.URL(url)
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise SettingsError(
                "the schema registry's address is not one: OPPORTUNE_CLUSTER__SCHEMA_REGISTRY=http://host"
            )
        self._where = f"{parsed.scheme}://{parsed.host}:{parsed.port or ''}".rstrip(":")
        auth = (parsed.username, parsed.password) if parsed.username else None
        self._http = httpx.Client(
            base_url=parsed.copy_with(username=None, password=None), auth=auth, timeout=timeout_s, trust_env=False
        )
        self._is_stopped = is_stopped
        self._known: dict[int, Schema | None] = {}
        self.calls = 0

    def schema(self, number: int) -> Schema:
        """Return the schema of this id; raise UnknownSchema where the registry has none."""
        if number not in self._known:
            self._known[number] = self._ask(f"/schemas/ids/{number}")
        found = self._known[number]
        if found is None:
            raise UnknownSchema(f"schema {number}")
        return found

    def close(self) -> None:
        self._http.close()

    def _ask(self, path: str) -> Schema | None:
        told = self._get(path)
        if told is None:
            return None
        kind = str(told.get("schemaType", "AVRO"))
        references = []
        for one in told.get("references", ()):
            found = self._ask(f"/subjects/{one['subject']}/versions/{one['version']}")
            if found is None:
                return None
            references.append((str(one["name"]), found))
        text = str(told["schema"])
        if kind == "PROTOBUF":
            serialized = self._get(
                path if path.startswith("/schemas") else f"/schemas/ids/{told['id']}", serialized=True
            )
            if serialized is None or not _is_base64(str(serialized["schema"])):
                log.error("the schema registry gives no serialized Protobuf (format=serialized)", registry=self._where)
                return None
            text = str(serialized["schema"])
        return Schema(kind, text, tuple(references))

    def _get(self, path: str, *, serialized: bool = False) -> dict[str, Any] | None:
        """Return the answer, None for 404; anything else is asked again."""
        pause_s = _PAUSE_S
        has_told = False
        while True:
            self.calls += 1
            try:
                answer = self._http.get(path, params={"format": "serialized"} if serialized else {})
                if answer.status_code == 404:
                    return None
                if answer.status_code in (401, 403):
                    raise SettingsError(f"the schema registry at {self._where} refuses us ({answer.status_code})")
                if answer.is_success:
                    told: dict[str, Any] = answer.json()
                    return told
                reason = str(answer.status_code)
            except (httpx.HTTPError, ValueError) as error:
                reason = type(error).__name__
            if self._is_stopped():
                raise StoreUnavailable(f"the schema registry at {self._where} does not answer ({reason})")
            if not has_told:
                log.warning("the schema registry does not answer; events wait", registry=self._where, reason=reason)
                has_told = True
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _is_base64(text: str) -> bool:
    try:
        return bool(base64.b64decode(text, validate=True))
    except ValueError:
        return False
