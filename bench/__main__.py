"""Run benchmarks: `python -m bench [NAME ...] [--json] [--smoke]`.

Each benchmark is a module of this folder with `run(smoke: bool) -> list[dict]`; a row has `name`, `value`, `unit`, and
where a peer ran in the same process `peer` and `ratio`. Absolute times depend on the machine: quote ratios.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import platform
import sys
from importlib.metadata import version

import bench

NOT_BENCHMARKS = {"__main__", "workload", "stopwatch"}


def names() -> list[str]:
    found = {module.name for module in pkgutil.iter_modules(bench.__path__)} - NOT_BENCHMARKS
    return sorted(name for name in found if hasattr(importlib.import_module(f"bench.{name}"), "run"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which, of: {', '.join(names())}; none: all")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--smoke", action="store_true", help="small sizes: does it run, not how fast")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(names())
    if unknown:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(names())}")
    if not arguments.json:
        packages = ", ".join(f"{name} {version(name)}" for name in ("numba", "numpy", "msgspec", "orjson", "shapely"))
        print(f"Python {platform.python_version()}, {packages}; {platform.processor() or platform.machine()}")
    for name in arguments.names or names():
        for row in importlib.import_module(f"bench.{name}").run(arguments.smoke):
            print(json.dumps(row) if arguments.json else as_line(row), flush=True)
    return 0


def as_line(row: dict) -> str:
    peer = f"   {row['ratio']:.2f}x of {row['peer']}" if "ratio" in row else ""
    value = f"{row['value']:,.0f}" if abs(row["value"]) >= 100 else f"{row['value']:,.3f}"
    return f"{row['name']:<52}{value:>16} {row['unit']}{peer}"


if __name__ == "__main__":
    sys.exit(main())
