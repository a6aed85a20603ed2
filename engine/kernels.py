"""The one place that compiles: `kernel` marks a function for Numba, `warm` (engine.runtime) compiles everything once.

Numba's on-disk cache misses an edit of a callee in another file and breaks when several processes compile at once.
So each module's kernels are cached in a folder named by a hash of its source, of every engine module it imports,
however indirectly, and of the versions that matter; one process compiles under a file lock; and
`OPPORTUNE_NO_COMPILE=1` fails loudly instead of compiling.

A kernel module is a file called `kernel.py` or `*_kernel.py` below `engine/`; only those import `kernel`.
"""

from __future__ import annotations

import ast
import fcntl
import hashlib
import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy

_ROOT = Path(__file__).resolve().parent


def cache_root() -> Path:
    """Where compiled kernels live: OPPORTUNE_CACHE_DIR, or the user's cache folder."""
    chosen = os.environ.get("OPPORTUNE_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME")
    return (Path(chosen) if chosen else Path.home() / ".cache") / "opportune" / "kernels"


def kernel_sources() -> list[Path]:
    """List the kernel modules."""
    return sorted({*_ROOT.rglob("kernel.py"), *_ROOT.rglob("*_kernel.py")})


@cache
def fingerprint(source: Path) -> str:
    """Hash a module together with all engine modules it can reach, and with the versions and the kind of machine."""
    digest = hashlib.sha256(_platform())
    for path in sorted(_closure(source)):
        digest.update(path.relative_to(_ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:20]


@cache
def _platform() -> bytes:
    from importlib.metadata import version

    facts = (sys.version, numpy.__version__, version("numba"), version("llvmlite"), platform.machine())
    checked = ("bounds",) if os.environ.get("NUMBA_BOUNDSCHECK") else ()
    return "\0".join((*facts, os.environ.get("NUMBA_CPU_NAME", ""), *checked)).encode()


def _closure(source: Path) -> set[Path]:
    reached, waiting = set(), [source]
    while waiting:
        path = waiting.pop()
        if path not in reached:
            reached.add(path)
            waiting.extend(_imports(path))
    return reached


@cache
def _imports(path: Path) -> tuple[Path, ...]:
    """List the engine modules that a module names in its import statements."""
    names = []
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    found = []
    for name in names:
        if name.startswith(f"{_ROOT.name}."):
            module = _ROOT.joinpath(*name.split(".")[1:]).with_suffix(".py")
            if module.is_file():
                found.append(module)
    return tuple(found)


CACHE = cache_root()
CACHE.mkdir(parents=True, exist_ok=True)
os.environ["NUMBA_CACHE_DIR"] = str(CACHE)

import numba  # noqa: E402  (the cache folder must be set before Numba reads its configuration)

F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """Compile `function` on first call: cached on disk, without the GIL, without bounds checks, without fastmath."""
    return _jit(function)


def lean_kernel(function: F) -> F:
    """As `kernel`, for one that allocates nothing: without reference counts on the arrays it is given.

    Numba counts references whenever an array is taken out of a tuple; for calls of some 50 ns that was half the cost.
    Everything it calls must be lean too, or its callees count again.
    """
    return _jit(function, _nrt=False)


def inlined_kernel(function: F) -> F:
    """As `kernel`, for a small function called within loops: its code is copied into each caller."""
    return _jit(function, forceinline=True)


def inlined_lean_kernel(function: F) -> F:
    """Lean and inlined: a call that hands over a tuple of arrays copies some hundred words otherwise."""
    return _jit(function, _nrt=False, forceinline=True)


def _jit(function: F, **options: bool) -> F:
    # Numba asks for the folder when it wraps a function, so every module can have its own.
    numba.config.CACHE_DIR = str(CACHE / fingerprint(Path(function.__code__.co_filename).resolve()))
    compiled: F = numba.njit(cache=True, nogil=True, error_model="numpy", **options)(function)
    if os.environ.get("OPPORTUNE_NO_COMPILE"):
        _refuse_to_compile(compiled)
    return compiled


def _refuse_to_compile(dispatcher: Any) -> None:
    """Let the dispatcher load from the cache only: a silent compilation of seconds would pass for a slow start."""

    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise RuntimeError(
            f"{dispatcher.py_func.__module__}.{dispatcher.py_func.__name__} is not in the kernel cache {CACHE} and "
            "OPPORTUNE_NO_COMPILE is set; run `opportune warm` as the same user first"
        )

    dispatcher._compiler.compile = refuse


@contextmanager
def compile_lock() -> Iterator[None]:
    """Let one process at a time compile into the shared cache."""
    with (CACHE / "compile.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)


def warm_mark() -> Path:
    """The file that says that all kernels, as they are now, were compiled."""
    every = hashlib.sha256("".join(fingerprint(source) for source in kernel_sources()).encode())
    return CACHE / f"warm-{every.hexdigest()[:20]}"


def is_warm() -> bool:
    """Say whether `warm` has finished once for these sources."""
    return warm_mark().exists()
