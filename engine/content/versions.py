"""Hashes that say whether two pieces of content mean the same (rules L10, D5)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

import numpy as np

from engine.definitions import Fence

_NOT_DECIDING = frozenset({"file", "version"})


def state_hash(parts: Sequence[Sequence[np.ndarray]], settings: Mapping[str, Any]) -> str:
    """Hash a fence's geometry and settings: presence belongs to it (rule L10). Names, kinds and tags are no part.

    settings must hold plain values whose repr says all of them (text, numbers, None, tuples of these).
    """
    digest = hashlib.blake2b(repr(sorted(settings.items())).encode(), digest_size=12)
    for part in parts:
        digest.update(f"|{[len(ring) for ring in part]}".encode())
        for ring in part:
            digest.update(np.ascontiguousarray(ring, np.int64).tobytes())
    return digest.hexdigest()


def content_version(*parts: Any) -> str:
    """Hash everything a decision may depend on, in 16 hexadecimal digits."""
    return _digest(parts, 8)


def definition_hash(kind: str, definition: Any) -> str:
    """Hash a pattern as it is written: what users did so far belongs to it (rule L10)."""
    return _digest((kind, definition), 12)


def fence_summary(fences: Sequence[Fence]) -> list[tuple[str, ...]]:
    """Say in a few words each what a decision may depend on; the state hash stands for geometry and settings."""
    return [
        (
            one.id,
            one.name,
            one.kind,
            "\0".join(sorted(one.tags)),
            one.time_zone or "",
            one.state_hash,
            f"{one.crowd_at}",
        )
        for one in fences
    ]


def _digest(value: Any, size: int) -> str:
    digest = hashlib.blake2b(digest_size=size)
    _feed(digest.update, value)
    return digest.hexdigest()


def _feed(update: Any, value: Any) -> None:
    """Feed a value in a form that no other value shares: a letter for its type, its length, its bytes."""
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, tuple | list) and value and all(type(item) is str for item in value):
        lengths = np.fromiter(map(len, value), np.int64, len(value))
        update(f"t{len(value)}".encode() + lengths.tobytes() + "".join(value).encode())
    elif isinstance(value, np.ndarray):
        update(f"a{value.dtype.str}{value.shape}".encode())
        update(np.ascontiguousarray(value).tobytes())
    elif is_dataclass(value):
        update(f"o{type(value).__name__}{{".encode())
        for field in fields(value):
            if field.name not in _NOT_DECIDING:
                update(field.name.encode() + b"=")
                _feed(update, getattr(value, field.name))
        update(b"}")
    elif isinstance(value, Mapping):
        update(f"m{len(value)}".encode())
        for key in sorted(value):
            _feed(update, key)
            _feed(update, value[key])
    elif isinstance(value, frozenset | set):
        _feed(update, sorted(value))
    elif isinstance(value, tuple | list):
        update(f"l{len(value)}".encode())
        for item in value:
            _feed(update, item)
    else:
        text = repr(value).encode()
        update(f"{type(value).__name__}{len(text)}:".encode() + text)
