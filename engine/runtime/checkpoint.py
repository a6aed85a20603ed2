"""Checkpoints: the state at one position, written so that a crash leaves the old or the new one, never half of it.

The format is in docs/contracts.md. A checkpoint that cannot be used is a value with a reason, never an error: the
state is then rebuilt by replay.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import google_crc32c
import msgspec
import numpy as np
from numpy.lib.format import descr_to_dtype, dtype_to_descr

from engine.clock import monotonic_s
from engine.errors import StoreUnavailable
from engine.runtime.ownership import sync_folder

MAGIC = "opportune-checkpoint"
FORMAT = 3
_READABLE = (2, FORMAT)
"""2 knew no held events; whoever knows 2 alone would lose them, and so must not read 3."""
_BLOCK = 4096
_ALIGN = 64
_CHUNK = 8 << 20
_CRC_FIELD = b',"crc32c":'  # of everything before it; always the last field
KEEP = 2
_UNFINISHED = ".partial"
_ABANDONED_S = 600.0
BEGINS_WITHIN_S = 10.0
_LOOK_S = 0.002
_UNKNOWN = 255
"""What the writing child ends with where no error of the system says why; those are smaller."""


@dataclass(slots=True)
class Checkpoint:
    """State as of `position`, the last record it reflects (-1: none)."""

    position: int
    now_ms: int
    arrays: dict[str, np.ndarray]
    objects: dict[str, Any] = field(default_factory=dict)  # what JSON can hold
    engine: str = ""
    content_version: str = ""
    partition: int = 0


def write(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write and fsync a checkpoint, then drop all but the newest two; raise StoreUnavailable if the disk refuses."""
    folder.mkdir(parents=True, exist_ok=True)
    return _write(*_names(folder, checkpoint), checkpoint)


def _names(folder: Path, checkpoint: Checkpoint) -> tuple[Path, Path]:
    """Return what it is called, and what while it is written: a zombie may write one of the same position (F4)."""
    target = folder / f"{max(checkpoint.position, 0):020d}.checkpoint"
    return target, target.with_suffix(f".{secrets.token_hex(4)}{_UNFINISHED}")


def _write(target: Path, unfinished: Path, checkpoint: Checkpoint) -> Path:
    folder = target.parent
    try:
        unfinished.touch()
        _remove_abandoned(folder, unfinished.stat().st_mtime)
        _write_file(unfinished, checkpoint)
        os.replace(unfinished, target)
        sync_folder(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise StoreUnavailable(f"checkpoint {target}: cannot be written ({error.strerror})") from error
    for old in _newest_first(folder)[KEEP:]:
        old.unlink(missing_ok=True)
    return target


def _remove_abandoned(folder: Path, now_s: float) -> None:
    """Remove what killed writers left; another owner of the partition may still be writing (F4)."""
    for left_over in folder.glob(f"*{_UNFINISHED}"):
        with contextlib.suppress(FileNotFoundError):
            if now_s - left_over.stat().st_mtime > _ABANDONED_S:
                left_over.unlink()


class WriterStuck(StoreUnavailable):
    """The child never began: it may wait for a lock that another thread held at the fork."""


class Pending:
    """A checkpoint being written by a forked child from its copy-on-write view of the arrays."""

    def __init__(self, pid: int, target: Path, unfinished: Path, position: int) -> None:
        self.position = position
        self.target = target
        self._unfinished = unfinished
        self._pid = pid
        self._status: int | None = None
        self._patient_until_s = monotonic_s() + BEGINS_WITHIN_S

    def done(self, *, wait: bool = False) -> bool:
        """Say whether it is written and durable; raise StoreUnavailable if writing failed.

        Raises WriterStuck for a child that has not begun within BEGINS_WITHIN_S; it is gone then.
        """
        while self._status is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self._status = status
            elif monotonic_s() > self._patient_until_s and not self._has_begun():
                os.kill(self._pid, signal.SIGKILL)
                _, self._status = os.waitpid(self._pid, 0)
                raise WriterStuck(f"checkpoint {self.target}: its writer never began")
            elif not wait:
                return False
            else:
                select.select([], [], [], _LOOK_S)  # time.sleep fails under libfaketime
        if self._status != 0:
            code = os.waitstatus_to_exitcode(self._status)
            reason = os.strerror(code) if 0 < code < _UNKNOWN else f"its writer ended with status {code}"
            raise StoreUnavailable(f"checkpoint {self.target}: cannot be written ({reason})")
        return True

    def _has_begun(self) -> bool:
        return self._unfinished.exists() or self.target.exists()


def write_in_background(folder: Path, checkpoint: Checkpoint) -> Pending:
    """Start writing a checkpoint without stopping the engine for longer than a fork (docs/storage.md, measured).

    The child sees the arrays as they are now, closes everything it inherited, writes and leaves; the parent goes on
    changing them. Ask `done()` before anything that the checkpoint allows (dropping segments) is done.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target, unfinished = _names(folder, checkpoint)
    with warnings.catch_warnings():
        # Newer Pythons warn that locks held by other threads stay locked in the child; it takes none of ours.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        return Pending(pid, target, unfinished, checkpoint.position)
    status = _UNKNOWN
    try:
        os.closerange(3, 65536)
        os.nice(5)
        _write(target, unfinished, checkpoint)
        status = 0
    except StoreUnavailable as error:
        status = getattr(error.__cause__, "errno", None) or _UNKNOWN
    finally:
        os._exit(status)


@dataclass(slots=True)
class Found:
    """The newest usable checkpoint, or None; `refused` names those passed over and why."""

    checkpoint: Checkpoint | None
    refused: list[str]


def read_newest(folder: Path, only: tuple[str, ...] = ("",)) -> Found:
    """Return the newest checkpoint that is whole and of a known format, with the arrays that `read` is asked for."""
    refused: list[str] = []
    for path in _newest_first(folder):
        answer = read(path, only)
        if isinstance(answer, Checkpoint):
            return Found(answer, refused)
        refused.append(f"{path.name}: {answer}")
    return Found(None, refused)


def read(path: Path, only: tuple[str, ...] = ("",)) -> Checkpoint | str:
    """Read one checkpoint; a text says why it is not usable. Arrays are owned and writable.

    only  what the names of the arrays wanted begin with; the others are passed over unread
    """
    try:
        with path.open("rb") as file:
            line = file.readline(256 << 20)
            header = msgspec.json.decode(line)
            if not isinstance(header, dict) or header.get("magic") != MAGIC:
                return "not a checkpoint"
            if header.get("format") not in _READABLE:
                return f"format {header.get('format')} is not {FORMAT}"
            text, _, crc = line.rstrip().removesuffix(b"}").rpartition(_CRC_FIELD)
            if crc != str(google_crc32c.value(text)).encode():
                return "the header's checksum is wrong"
            body = _padded(len(line), _BLOCK)
            arrays = {}
            for entry in header["arrays"]:
                if not entry["name"].startswith(only):
                    continue
                array = np.empty(entry["shape"], _dtype(entry))
                if array.nbytes != entry["bytes"]:
                    return f"array {entry['name']} has another size than its header says"
                file.seek(body + entry["offset"])
                view = _bytes_of(array)
                if file.readinto(view) != array.nbytes:
                    return f"array {entry['name']} is cut short"
                if _crc(view) != entry["crc32c"]:
                    return f"the checksum of array {entry['name']} is wrong"
                arrays[entry["name"]] = array
    except (OSError, msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
        return f"unreadable ({error})"
    return Checkpoint(
        position=header["position"],
        now_ms=header["now_ms"],
        arrays=arrays,
        objects=header["objects"],
        engine=header["engine"],
        content_version=header["content_version"],
        partition=header["partition"],
    )


def remove_all(folder: Path) -> None:
    """Delete every checkpoint, for `forget`: the next one is written without the user."""
    for path in folder.glob("*.checkpoint"):
        path.unlink(missing_ok=True)


# --- inside -----------------------------------------------------------------------------------------------------------


def _write_file(path: Path, checkpoint: Checkpoint) -> None:
    arrays = {name: np.ascontiguousarray(array) for name, array in checkpoint.arrays.items()}
    entries: list[dict[str, Any]] = []
    offset = 0
    for name, array in arrays.items():
        entries.append(
            {
                "name": name,
                "dtype": dtype_to_descr(array.dtype),
                "aligned": array.dtype.isalignedstruct,
                "shape": list(array.shape),
                "offset": offset,
                "bytes": array.nbytes,
                "crc32c": _crc(_bytes_of(array)),
            }
        )
        offset = _padded(offset + array.nbytes, _ALIGN)
    header: dict[str, Any] = {
        "magic": MAGIC,
        "format": FORMAT,
        "engine": checkpoint.engine,
        "content_version": checkpoint.content_version,
        "partition": checkpoint.partition,
        "position": checkpoint.position,
        "now_ms": checkpoint.now_ms,
        "arrays": entries,
        "objects": checkpoint.objects,
    }
    text = msgspec.json.encode(header).removesuffix(b"}")
    line = text + _CRC_FIELD + str(google_crc32c.value(text)).encode() + b"}"
    body = _padded(len(line) + 1, _BLOCK)
    with path.open("wb", buffering=0) as file:
        _write_all(file.fileno(), memoryview(line + b" " * (body - len(line) - 1) + b"\n"))
        at = 0
        for entry, array in zip(entries, arrays.values(), strict=True):
            if entry["offset"] > at:
                _write_all(file.fileno(), memoryview(bytes(entry["offset"] - at)))
            _write_all(file.fileno(), _bytes_of(array))
            at = entry["offset"] + array.nbytes
        os.fsync(file.fileno())


def _write_all(fd: int, view: memoryview) -> None:
    at = 0
    while at < len(view):
        at += os.write(fd, view[at : at + _CHUNK])


def _bytes_of(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data if array.nbytes else memoryview(bytearray())


def _crc(view: memoryview) -> int:
    crc = 0
    for at in range(0, len(view), _CHUNK):
        crc = google_crc32c.extend(crc, bytes(view[at : at + _CHUNK]))
    return crc


def _dtype(entry: dict[str, Any]) -> np.dtype[Any]:
    """Build the dtype a header entry describes.

    numpy's description drops that a layout was declared aligned. To Numba an aligned record is another type: without
    the mark every kernel would be compiled once more after a restart.
    """
    dtype = descr_to_dtype(_tuples(entry["dtype"]))
    if not entry.get("aligned") or dtype.names is None:
        return dtype
    fields = dtype.fields
    assert fields is not None
    layout = {
        "names": list(dtype.names),
        "formats": [fields[name][0] for name in dtype.names],
        "offsets": [fields[name][1] for name in dtype.names],
        "itemsize": dtype.itemsize,
    }
    return np.dtype(layout, align=True)  # type: ignore[call-overload,no-any-return]


def _tuples(described: Any) -> Any:
    """Give a dtype's description back the tuples that JSON made lists of."""
    if not isinstance(described, list):
        return described
    return [(name, _tuples(inner), *(tuple(size) for size in shape)) for name, inner, *shape in described]


def _padded(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.checkpoint"), reverse=True)
