"""Many HTTP clients at once on one server: errors, latency, and whether its memory grows.

python benchmarks/mcp_load.py [--clients 32] [--seconds 60]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

CALLS = (
    ("fib_show_status", {}),
    ("fib_get_job", {}),
    ("fib_discover_models", {"limit": 5}),
    ("fib_show_status", {"fields": ["onboardings"]}),
)
WARM_SECONDS = 5.0


@dataclass
class Tally:
    seconds: dict[str, list[float]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    fib = [sys.executable, "-m", "fib_tools"]
    with tempfile.TemporaryDirectory() as folder:
        onboard = ["onboard", "kimi-k2", "--offline", "--quiet", "--workspace", folder]
        subprocess.run([*fib, *onboard], check=True, capture_output=True)
        command = [*fib, "mcp", "--http", "0", "--offline", "--quiet", "--workspace", folder]
        token = {**os.environ, "FIB_MCP_TOKEN": ""}
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=token) as server:
            url = server.stderr.readline().split()[-1]
            headers = {"Authorization": f"Bearer {server.stderr.readline().split()[-1]}"}
            tally = Tally()
            anyio.run(hammer, url, headers, options, server.pid, tally)
            server.terminate()
    report(options, tally)


async def hammer(url: str, headers: dict[str, str], options: argparse.Namespace, pid: int, tally: Tally) -> None:
    end = time.monotonic() + WARM_SECONDS + options.seconds
    async with anyio.create_task_group() as group:
        for number in range(options.clients):
            group.start_soon(call, url, headers, end, number, tally)
        await anyio.sleep(WARM_SECONDS)
        tally.seconds.clear()  # connecting and the first imports are not what is measured
        while time.monotonic() < end:
            tally.resident.append(resident(pid))
            await anyio.sleep(1)


async def call(url: str, headers: dict[str, str], end: float, number: int, tally: Tally) -> None:
    async with (
        httpx2.AsyncClient(headers=headers, timeout=30) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        while time.monotonic() < end:
            name, arguments = CALLS[number % len(CALLS)]
            number += 1
            began = time.perf_counter()
            try:
                answer = await client.call_tool(name, arguments)
                if answer.is_error:
                    tally.errors.append(str(answer.content))
            except Exception as error:
                tally.errors.append(repr(error))
            tally.seconds.setdefault(name, []).append(time.perf_counter() - began)


def resident(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


def report(options: argparse.Namespace, tally: Tally) -> None:
    every = [value for values in tally.seconds.values() for value in values]
    print(f"{os.cpu_count()} cores (clients on the same), {options.clients} clients, {options.seconds:g} s")
    print(f"{'tool':22s} {'calls':>7s} {'median ms':>10s} {'p99 ms':>8s} {'max ms':>8s}")
    for name, values in [*sorted(tally.seconds.items()), ("all", every)]:
        spread = statistics.quantiles(values, n=100)
        row = [1000 * value for value in (statistics.median(values), spread[98], max(values))]
        print(f"{name:22s} {len(values):7d} {row[0]:10.1f} {row[1]:8.1f} {row[2]:8.1f}")
    first, last = tally.resident[0], tally.resident[-1]
    print(f"errors {len(tally.errors)} {tally.errors[:2] or ''}; {len(every) / options.seconds:.0f} calls/s")
    print(
        f"server's resident memory: {first / 1024:.0f} MiB at the start, {last / 1024:.0f} at the end ({last / first - 1:+.1%})"
    )


if __name__ == "__main__":
    main()
