"""A stand-in for the engine's child: does what the request's config says, in the files a real one writes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
folder = Path(os.environ["FIB_DUMP_DIR"])
behaviour = request["config"].get("behaviour", "succeed")


def tell(**entry: Any) -> None:
    with Path(request["progress"]).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(entry) + "\n")


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def stage(name: str) -> None:
    tell(stage=name, event="begin")
    tell(stage=name, event="end", seconds=0.5)


tell(event="started", pid=os.getpid())
(folder / "seen.json").write_text(
    json.dumps({"arguments": request["arguments"], "environment": dict(os.environ)}), encoding="utf-8"
)
stage("import")
if behaviour == "crash":
    say("[2026-11-21 10:00:00] Scheduler hit an exception: Traceback (most recent call last):")
    say('  File "scheduler.py", line 1, in run\n    start()\nValueError: heads do not divide')
    sys.exit(1)
if behaviour == "memory" and request["arguments"]["max_total_tokens"] > 5000:
    say('Traceback (most recent call last):\n  File "x.py", line 1, in y\n    alloc()')
    say("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB.")
    sys.exit(1)
if behaviour == "killed":
    say("Traceback (most recent call last):\n  File 'x.py', line 1, in y\nRuntimeError: the worker died")
    os.kill(os.getpid(), signal.SIGKILL)
if behaviour == "hang":
    tell(stage="start", event="begin")
    # one child that ignores SIGTERM, in a session of its own
    stray = subprocess.Popen(
        [sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"],
        start_new_session=True,
    )
    (folder / "pids.json").write_text(json.dumps([os.getpid(), stray.pid]), encoding="utf-8")
    while True:
        time.sleep(60)
stage("start")
stage("greedy")
dumps = folder / "dumps" / "rank0"
dumps.mkdir(parents=True)
(dumps / "toy.json").write_text("{}", encoding="utf-8")
tell(event="versions", versions={"sglang": "0.0"})
tell(event="done", failures=["min-p: RuntimeError: no such sampler"] if behaviour == "partial" else [])
stage("shutdown")
