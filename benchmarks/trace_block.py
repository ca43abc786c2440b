"""One block of a made-up Llama, Llama-3.2-1B's shape, as a Perfetto trace, from each format: seconds, bytes, operators.

python benchmarks/trace_block.py [--layers 2] [--folder DIR]

Seconds are those of the command, from its start to the file. Exit status 1 where a format has other operators than
safetensors.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from collect_workloads import fib
from load_weights import FILES, write
from machine import describe_machine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    print(describe_machine(("torch", "transformers", "perfetto")))
    print(f"{'format':14}{'s':>6}{'KB':>6}{'slices':>8}{'operators':>11}  others than those of safetensors")
    differ = 0
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        write(folder, options.layers)
        first: list[tuple[str, str, str]] = []
        for kind, file in FILES.items():
            begun = time.perf_counter()
            words = ("--layer", "0", "--out", str(folder / "block.pftrace"), "--workspace", str(folder / "work"))
            _, found = fib("trace", "block", "--model", str(folder / file), *words, log=folder / "log.txt")
            seconds = time.perf_counter() - begun
            operators = [(each["path"], each["op_type"], each["definition"]) for each in found["operators"]]
            first = first or operators
            others = {path for path, *_ in set(operators) ^ set(first)}
            differ += len(others)
            size = found["bytes"] / 1e3
            print(
                f"{kind:14}{seconds:6.1f}{size:6.0f}{found['slices']:8}{len(operators):11}  {', '.join(sorted(others)) or '-'}"
            )
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
