"""From the spawn of `fib mcp` to its list of tools over stdio, beside a trivial server on the same SDK.

python benchmarks/mcp_start.py [--runs 10]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from mcp import Client, StdioServerParameters

BUDGET = 0.8
TRIVIAL = """
from mcp.server.mcpserver import MCPServer
server = MCPServer("trivial")
@server.tool()
def add(a: int, b: int) -> int:
    return a + b
server.run()
"""


async def measure(arguments: list[str], folder: str) -> tuple[float, int]:
    parameters = StdioServerParameters(
        command=sys.executable, args=arguments, cwd=folder, env={"HOME": folder, "PATH": os.environ["PATH"]}
    )
    began = time.perf_counter()
    async with Client(parameters) as client:
        listed = await client.list_tools()
        return time.perf_counter() - began, len(listed.tools)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=10)
    options = parser.parse_args()
    python = sys.version.split()[0]
    print(f"{os.cpu_count()} cores, python {python}, mcp {version('mcp')}; wall seconds of {options.runs} runs")
    medians = {}
    with tempfile.TemporaryDirectory() as folder:
        trivial = Path(folder) / "trivial.py"
        trivial.write_text(TRIVIAL, encoding="utf-8")
        servers = {"trivial SDK server": [str(trivial)], "fib mcp": ["-m", "fib_tools", "mcp"]}
        seconds: dict[str, list[float]] = {name: [] for name in servers}
        tools = {}
        for run in range(options.runs + 1):
            for name, arguments in servers.items():
                took, tools[name] = asyncio.run(measure(arguments, folder))
                if run:  # the first one warms the disk
                    seconds[name].append(took)
    print(f"{'server':20s} tools minimum median maximum")
    for name, values in seconds.items():
        medians[name] = statistics.median(values)
        print(f"{name:20s} {tools[name]:5d} {min(values):7.3f} {medians[name]:6.3f} {max(values):7.3f}")
    median = medians["fib mcp"]
    verdict = "within" if median <= BUDGET else "OVER"
    print(f"ratio {median / medians['trivial SDK server']:.2f}; {verdict} the budget of {BUDGET} s")


if __name__ == "__main__":
    main()
