"""A runner whose answers say how long its steps took; see bench_phases.py."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from fib_tools.evaluate._runner import cupti, gpu, guard, loops, replays, session, timing, workload

__all__ = ["serve"]

_SPENT: list[tuple[str, float, float]] = []
"""A step, when it began by the machine's clock, and its seconds."""
_STEPS: tuple[tuple[Any, str], ...] = (
    (guard.Guard, "find_patched"),
    (guard.Guard, "count_tasks"),
    (guard.Guard, "describe_threads"),
    (gpu.Gpu, "__init__"),
    (gpu.Gpu, "synchronize"),
    (timing.ActivityTimer, "__init__"),
    (session._Runner, "_rehearse"),  # noqa: SLF001
    (gpu.Gpu, "persisting_l2_bytes"),
    (cupti.Cupti, "switch"),
    (cupti.Cupti, "collect"),
    (timing.ActivityTimer, "time"),
    (replays.Replays, "capture"),
    (replays.Replays, "refresh"),
    (replays.Replays, "replay"),
    (replays.Replays, "_deliver"),
    (loops.Looper, "_prepare"),
    (loops.Looper, "_capture"),
    (loops.Looper, "loop"),
    (workload.OpenWorkload, "make"),
    (session._Runner, "_start_device"),  # noqa: SLF001
    (session._Step, "before"),  # noqa: SLF001  # its parts are what this measures
    (session._Step, "call"),  # noqa: SLF001
    (session._Step, "after"),  # noqa: SLF001
    (session._Step, "check_inputs"),  # noqa: SLF001
)


def serve(payload: dict[str, Any], connection: Any) -> dict[str, Any]:
    """Obey the judge, and time every step."""
    for owner, name in _STEPS:
        setattr(owner, name, _timed(getattr(owner, name), f"{owner.__name__}.{name}"))
    for name in ("build_solution", "build_reference"):
        setattr(session, name, _timed(getattr(session, name), name))
    answer = session._Runner._answer  # noqa: SLF001

    def telling(self: Any, message: dict[str, Any]) -> dict[str, Any]:
        begun = time.perf_counter()
        given = answer(self, message)
        _SPENT.append((message["do"], begun, time.perf_counter() - begun))
        if "ok" in given:
            given["ok"]["spent"] = list(_SPENT)
        _SPENT.clear()
        return given

    session._Runner._answer = telling  # noqa: SLF001  # type: ignore[method-assign]
    return session.serve(payload, connection)


def _timed(method: Callable[..., Any], label: str) -> Callable[..., Any]:
    def timed(*arguments: Any, **more: Any) -> Any:
        begun = time.perf_counter()
        try:
            return method(*arguments, **more)
        finally:
            _SPENT.append((label, begun, time.perf_counter() - begun))

    return timed
