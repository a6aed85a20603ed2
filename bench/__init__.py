"""Benchmarks: one file a stage and the ends. `python -m bench` prints a table, `python -m bench NAME --json` lines."""
