"""Start-up times of commands that need no torch, beside the interpreter alone and the peer's import.

python benchmarks/startup.py [--runs 9]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

FIB = [sys.executable, "-m", "fib_tools"]
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "fib --help": [*FIB, "--help"],
    "fib discover": [*FIB, "discover", "--offline"],
    "fib validate --help": [*FIB, "validate", "--help"],
    "fib status": [*FIB, "status"],
    "import flashinfer_bench": [sys.executable, "-c", "import flashinfer_bench"],
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args()
    print(
        f"{os.cpu_count()} cores, python {sys.version.split()[0]}; wall seconds: minimum, median, maximum of {options.runs}"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, command in COMMANDS.items():
            seconds = []
            for _ in range(options.runs + 1):
                began = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True, cwd=folder)
                seconds.append(time.perf_counter() - began)
            kept = sorted(seconds[1:])
            print(f"{name:26s} {kept[0]:.3f} {statistics.median(kept):.3f} {kept[-1]:.3f}")


if __name__ == "__main__":
    main()
