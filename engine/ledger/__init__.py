"""Caps, claims and what was decided: one contract, and its embedded home."""
