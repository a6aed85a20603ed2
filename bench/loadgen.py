"""The load generator: bench/loadgen.c built by the system's compiler, or this file's slower twin as a process."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orjson

SOURCE = Path(__file__).with_name("loadgen.c")
MARK = b"@" * 13


def command(folder: Path) -> list[str]:
    """Return the command that starts a generator; compiles the C one into `folder` where a compiler is present."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is not None:
        target = folder / "loadgen"
        built = subprocess.run([compiler, "-O2", "-o", str(target), str(SOURCE)], capture_output=True, text=True)
        if built.returncode == 0:
            return [str(target)]
    return [sys.executable, "-m", "bench.loadgen"]


async def generate(host: str, port: int, rate: float, connections: int, lines: list[bytes]) -> tuple[dict, np.ndarray]:
    """Send lines at fixed instants; see loadgen.c for the meaning of everything."""
    idle: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    for _ in range(connections):
        idle.put_nowait(await asyncio.open_connection(host, port))
    acks = np.full(len(lines), -1, np.int64)
    refused = worst_late_ns = 0
    t0 = time.perf_counter_ns() + 50_000_000

    async def send(number: int, line: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal refused
        body = line.replace(MARK, b"%013d" % (time.time_ns() // 1_000_000))
        writer.write(b"POST /v1/events HTTP/1.1\r\nhost: engine\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(one[15:]) for one in head.lower().split(b"\r\n") if one.startswith(b"content-length:"))
        await reader.readexactly(length)
        if head[9:12] == b"202":
            acks[number] = (time.perf_counter_ns() - t0 - int(number * 1e9 / rate)) // 1000
        else:
            refused += 1
        idle.put_nowait((reader, writer))

    tasks = []
    for number, line in enumerate(lines):
        due = t0 + int(number * 1e9 / rate)
        if (left := due - time.perf_counter_ns()) > 0:
            await asyncio.sleep(left / 1e9)
        pair = await idle.get()
        worst_late_ns = max(worst_late_ns, time.perf_counter_ns() - due)
        tasks.append(asyncio.create_task(send(number, line, *pair)))
    await asyncio.wait_for(asyncio.gather(*tasks), 30)
    counts = {"sent": len(lines), "answered": len(lines), "refused": refused, "worst_late_us": worst_late_ns // 1000}
    return {"generator": "asyncio", "t0_ns": t0, **counts}, acks


def main() -> None:
    host, port, rate, connections, lines_file, ack_file = sys.argv[1:7]
    lines = Path(lines_file).read_bytes().splitlines()
    report, acks = asyncio.run(generate(host, int(port), float(rate), int(connections), lines))
    acks.tofile(ack_file)
    print(orjson.dumps(report).decode(), flush=True)


if __name__ == "__main__":
    main()
