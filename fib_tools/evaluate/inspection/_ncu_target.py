"""What ncu starts, in the sandbox: the Solution, called until it has compiled, then once with the profiler on."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from fib_tools.evaluate.inspection._call import Call

__all__ = ["main"]

_WARM_CALLS = 2
"""The first one compiles, and may choose among variants."""


def main(path: str) -> None:
    """Make the call that a file describes."""
    call = Call(json.loads(Path(path).read_text(encoding="utf-8")))
    for _ in range(_WARM_CALLS):
        call.make()
    if not torch.cuda.is_available():
        call.make()
        return
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    call.make()
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()
