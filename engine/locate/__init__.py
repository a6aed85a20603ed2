"""Fences as arrays, and the index that finds which of them a fix touches (rules L2-L7)."""

from engine.locate.index import FenceIndex
from engine.locate.shapes import compile_fences

__all__ = ["FenceIndex", "compile_fences"]
