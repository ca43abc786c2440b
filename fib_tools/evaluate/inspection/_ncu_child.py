"""The job in which ncu runs: it is confined first, and starts ncu then, so that ncu and all below it are confined alike."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["run_ncu"]

_TARGET = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from fib_tools.evaluate.inspection._ncu_target import main; main(sys.argv[2])"
)
_LONGEST = 2 << 20
_SAID_LENGTH = 4000


def run_ncu(payload: dict[str, Any]) -> dict[str, Any]:
    """Run ncu on one call of the Solution; give its report, or what it said in place of one."""
    report, call = Path("ncu.csv"), Path("call.json")
    call.write_text(json.dumps(payload["call"]), encoding="utf-8")
    target = [sys.executable, "-I", "-c", _TARGET, json.dumps(sys.path), str(call.absolute())]
    try:
        done = subprocess.run(  # noqa: S603  # in the sandbox
            [payload["program"], *payload["options"], "--log-file", str(report.absolute()), *target],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=payload["seconds"],
            check=False,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )
    except subprocess.TimeoutExpired:
        return {"report": "", "said": f"it took longer than {payload['seconds']:g} s"}
    except OSError as error:
        return {"report": "", "said": f"it cannot be started: {error.strerror}"}
    text = report.read_bytes()[:_LONGEST].decode(errors="replace") if report.is_file() else ""
    return {"report": text, "said": done.stdout[-_SAID_LENGTH:].decode(errors="replace")}
