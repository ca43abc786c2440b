"""What holds a kernel up, from what the evaluator timed anyway: cold and warm, its launches, and the limit of the device.

A profiler's counters say more of the best attempt, where `evaluate.inspection.ncu` can read them; this holds everywhere.
"""

from __future__ import annotations

from fib_tools.draft.attempt import ShapeResult

__all__ = ["explain_time"]

_AT_LIMIT = 90.0
"""Percent: copies and products that are tuned by hand reach about as much."""
_LATENCY_MS = 0.003
"""Two or three trips to memory, one after the other, and a launch."""
_LAUNCH_US = 1.0
"""Between two kernels of a graph on Hopper."""
_MUCH, _LITTLE = 0.25, 0.05
"""Shares of the time that a warm L2 saves."""
_FAR = 70.0


def explain_time(result: ShapeResult) -> str:
    """Say in a few words what takes the time; nothing where the figures do not tell."""
    time, percent = result.milliseconds, result.percent
    if not time:
        return ""
    if percent is not None and percent >= _AT_LIMIT:
        return "at the limit: leave it as it is"
    if result.launches > 2:
        between = (result.launches - 1) * _LAUNCH_US
        return f"{result.launches} launches, some {between:.0f} us between them: fuse"
    if time < _LATENCY_MS:
        return "latency: fewer dependent steps, more threads for each row"
    saved = 1 - result.warm_ms / time if result.warm_ms else None
    if saved is not None and saved >= _MUCH:
        return f"waits for memory (a warm L2 saves {saved:.0%}): more bytes in flight, loads earlier"
    if saved is not None and saved <= _LITTLE and percent is not None and percent < _FAR:
        return "not held up by memory (a warm L2 saves nothing): arithmetic, occupancy or barriers"
    return ""
