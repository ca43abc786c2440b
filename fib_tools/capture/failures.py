"""Why an engine failed, in its own words: the traceback among thousands of log lines that is the cause."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["find_engine_error", "is_out_of_memory", "reduce_memory"]

_TRACEBACK = "Traceback (most recent call last)"
_CAUSES = ("Scheduler hit an exception", "TpModelWorkerClient hit an exception", "hit an exception")
"""What SGLang logs before the traceback of the process that failed first."""
_FRAMES = 4
"""Lines of the traceback that are shown: the last two frames."""
_MESSAGE = 6
"""Lines of a message that has several."""
_TAIL = 8
_MEMORY = re.compile(
    r"out of memory|OutOfMemoryError|CUDA_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation|Not enough memory",
    re.IGNORECASE,
)
_TOO_SMALL = "Not enough memory"
"""SGLang's word for weights that leave nothing of the share it was given."""


def find_engine_error(log: str) -> str:
    """Find the failure that the engine logged: the exception with its last frames, or else the last lines."""
    lines = [line.rstrip() for line in log.splitlines()]
    starts = [place for place, line in enumerate(lines) if _TRACEBACK in line]
    if not starts:
        return "\n".join([line for line in lines if line][-_TAIL:])
    named = [
        place
        for place in starts
        if any(cause in text for text in lines[max(0, place - 1) : place + 1] for cause in _CAUSES)
    ]
    return "\n".join(_cut(lines, (named or starts[-1:])[0]))


def _cut(lines: list[str], start: int) -> list[str]:
    """Cut a traceback out: what is indented belongs to it, and so does the message after."""
    place = start + 1
    while place < len(lines) and (lines[place].startswith((" ", "\t")) or not lines[place]):
        place += 1
    frames = [line for line in lines[start + 1 : place] if line.strip() and not set(line.strip()) <= {"^", "~"}]
    message: list[str] = []
    for line in lines[place : place + _MESSAGE]:
        if message and (not line or _TRACEBACK in line or line.startswith("[")):
            break
        message.append(line)
    return [*frames[-_FRAMES:], *message]


def is_out_of_memory(text: str) -> bool:
    """Tell whether the engine failed for want of GPU memory."""
    return _MEMORY.search(text) is not None


def reduce_memory(arguments: dict[str, Any], text: str) -> dict[str, Any]:
    """Ask for less: a quarter of the tokens; and of the GPU a larger share if the weights did not fit, else a smaller."""
    share = float(arguments.get("mem_fraction_static", 0.7))
    share = 0.92 if _TOO_SMALL in text else round(share * 0.6, 3)
    tokens = max(2048, int(arguments.get("max_total_tokens", 8192)) // 4)
    return {**arguments, "mem_fraction_static": share, "max_total_tokens": tokens}
