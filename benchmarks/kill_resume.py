"""Kill an onboarding at random moments, resume it, and compare the dataset with one that was never interrupted.

python benchmarks/kill_resume.py [--times 50] [--model llama-3.2-1b] [--seed 0]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def onboard(model: str, workspace: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "fib_tools",
        "onboard",
        model,
        "--workspace",
        str(workspace),
        "--offline",
        "--quiet",
        "--json",
    ]


def digest(workspace: Path) -> tuple[str, int]:
    """Hash names and contents of everything in the dataset and the manifest, but the time that it took."""
    total = hashlib.sha256()
    files = sorted(path for path in workspace.rglob("*") if path.is_file() and "lock" not in path.name)
    for path in files:
        total.update(str(path.relative_to(workspace)).encode() + b"\0" + read(path, workspace))
    return total.hexdigest(), len(files)


def read(path: Path, workspace: Path) -> bytes:
    if path.parent != workspace or not path.name.startswith("onboard_"):
        return path.read_bytes()
    if path.suffix == ".html":
        return b""
    manifest = {key: value for key, value in json.loads(path.read_bytes()).items() if key != "times"}
    return json.dumps(manifest).encode()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--model", default="llama-3.2-1b")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    root = Path(tempfile.mkdtemp(prefix="fib-kill-"))
    subprocess.run(onboard(options.model, root / "whole"), check=True, stdout=subprocess.DEVNULL)
    began = time.perf_counter()
    shutil.rmtree(root / "whole")
    subprocess.run(onboard(options.model, root / "whole"), check=True, stdout=subprocess.DEVNULL)
    length = time.perf_counter() - began
    expected, count = digest(root / "whole")
    print(f"{options.model}: {count} files, {length:.1f} s uninterrupted, sha256 {expected[:16]}")
    same = killed = 0
    for index in range(options.times):
        workspace = root / f"run{index}"
        moment = rng.uniform(0.05, length)
        child = subprocess.Popen(onboard(options.model, workspace), stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            child.wait(timeout=moment)
        except subprocess.TimeoutExpired:
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
            killed += 1
        at_kill = digest(workspace)[1] if workspace.exists() else 0
        resumed = subprocess.run(onboard(options.model, workspace), check=False, stdout=subprocess.DEVNULL)
        outcome = digest(workspace)
        same += outcome == (expected, count) and resumed.returncode == 0
        print(
            f"{index:3d} killed at {moment:5.2f} s with {at_kill:3d} files; resumed: exit {resumed.returncode}, identical {outcome[0] == expected}",
            flush=True,
        )
        shutil.rmtree(workspace)
    shutil.rmtree(root)
    print(f"{killed} killed of {options.times}; {same} resumed to the identical dataset and manifest")
    return 0 if same == options.times else 1


if __name__ == "__main__":
    sys.exit(main())
