"""The one place that compiles: `kernel` marks a function for Numba, `warm` compiles everything once.

Numba's on-disk cache misses an edit of a callee in another file and breaks when several processes compile at once.
So the cache folder is named by a hash of every kernel source and of the versions that matter, one process compiles
under a file lock, and `OPPORTUNE_NO_COMPILE=1` fails loudly instead of compiling.

A kernel module is a file called `kernel.py` or `*_kernel.py` below `engine/`; only those import `kernel`.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy

_ROOT = Path(__file__).parent


def kernel_sources() -> list[Path]:
    """List the files whose text decides what the compiled code does."""
    return sorted({*_ROOT.rglob("kernel.py"), *_ROOT.rglob("*_kernel.py"), _ROOT / "model.py", _ROOT / "kernels.py"})


def fingerprint() -> str:
    """Hash the kernel sources together with the versions of Python, numpy, numba and the machine's architecture."""
    from importlib.metadata import version

    digest = hashlib.sha256()
    for part in (sys.version, numpy.__version__, version("numba"), version("llvmlite"), platform.machine()):
        digest.update(part.encode() + b"\0")
    digest.update(os.environ.get("NUMBA_CPU_NAME", "").encode() + b"\0")
    for path in kernel_sources():
        digest.update(path.relative_to(_ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:20]


def cache_root() -> Path:
    """Where compiled kernels live: OPPORTUNE_CACHE_DIR, or the user's cache folder."""
    chosen = os.environ.get("OPPORTUNE_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME")
    return Path(chosen) / "opportune" if chosen else Path.home() / ".cache" / "opportune"


CACHE = cache_root() / f"kernels-{fingerprint()}"
CACHE.mkdir(parents=True, exist_ok=True)
os.environ["NUMBA_CACHE_DIR"] = str(CACHE)

import numba  # noqa: E402  (the cache folder must be set before Numba reads its configuration)

numba.config.CACHE_DIR = str(CACHE)

F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """Compile `function` on first call: cached on disk, without the GIL, without bounds checks, without fastmath."""
    compiled: F = numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    if os.environ.get("OPPORTUNE_NO_COMPILE"):
        _refuse_to_compile(compiled)
    return compiled


def lean_kernel(function: F) -> F:
    """As `kernel`, for one that allocates nothing: without reference counts on the arrays it is given.

    Numba counts references whenever an array is taken out of a tuple; for calls of some 50 ns that was half the cost.
    Everything it calls must be lean too, or its callees count again.
    """
    compiled: F = numba.njit(cache=True, nogil=True, error_model="numpy", _nrt=False)(function)
    if os.environ.get("OPPORTUNE_NO_COMPILE"):
        _refuse_to_compile(compiled)
    return compiled


def inlined_kernel(function: F) -> F:
    """As `kernel`, for a small function called within loops: its code is copied into each caller."""
    compiled: F = numba.njit(cache=True, nogil=True, error_model="numpy", forceinline=True)(function)
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


def is_warm() -> bool:
    """Say whether `warm` has finished once for these sources."""
    return (CACHE / "warm").exists()
