"""Counters of a Solution's kernels by Nsight Compute, where it is installed and this user may read them.

ncu runs in the sandbox and not around it. Around it, its launcher would have no bounds and would read what a library
inside the Solution's process sends: whoever holds that process could send what it likes. So a job is confined first, as a
runner of the evaluation is (Landlock, the system call filter, limits, no privileges to be gained), and starts ncu then:
ncu, what it injects, and the Solution have the same bounds, which nothing below them can lift; the one thing more that they
may read is the folder of ncu's program. The price is that ncu has no more rights than the Solution: it speaks with its target through shared memory, since
the filter knows no network, and reads counters only where the driver permits that to everybody, since capabilities are
gone. Where it cannot do with that it fails, and the reason is told.

Only Solutions that have passed are run so. What the report says is the word of the processes in the sandbox: it is read
with suspicion and shown to whoever drafts, and no verdict or Trace rests on it. Clocks are left as they are.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from fib_tools.evaluate.inspection.ncu_report import KernelCounters, explain_failure, read_report
from fib_tools.evaluate.inspection.sample import Sample, Setting
from fib_tools.host.env import engine_environment
from fib_tools.host.sandbox import Sandbox
from fib_tools.model.base import Model

__all__ = ["PRELOAD", "Profile", "find_ncu", "profile_solution"]

PRELOAD = ("fib_tools.evaluate.inspection._ncu_child",)
_ENTRY = "fib_tools.evaluate.inspection._ncu_child:run_ncu"
_ELSEWHERE = "/usr/local/cuda/bin"
_MARGIN_SECONDS = 20.0
"""For the job to tell that ncu took too long."""
_SHOWN = 3
_REASON_LENGTH = 240
_OPTIONS = (
    *("--config-file", "off", "--csv", "--page", "raw", "--print-units", "base", "--print-kernel-base", "function"),
    *("--section", "SpeedOfLight", "--section", "LaunchStats", "--section", "Occupancy", "--section", "WarpStateStats"),
    *("--target-processes", "application-only", "--communicator", "shmem"),
    *("--profile-from-start", "off", "--launch-count", "16"),
    # as the evaluation does: a cold L2, and the clocks that the driver chooses
    *("--cache-control", "all", "--clock-control", "none"),
)


class Profile(Model):
    """The kernels of one call, the longest first."""

    axes: dict[str, int]
    kernels: tuple[KernelCounters, ...] = ()
    launches: int = 0
    """How many there are; some are shown."""
    problem: str = ""
    """Why there are no figures."""


def find_ncu() -> Path | None:
    """Find the program; None where it is not installed."""
    found = shutil.which("ncu", path=f"{engine_environment()['PATH']}:{_ELSEWHERE}")
    return Path(found) if found else None


def profile_solution(sandbox: Sandbox, program: Path, setting: Setting, sample: Sample) -> Profile:
    """Profile one call of a Solution that has passed; the sandbox lets its jobs read the program's folder."""
    payload = {
        "program": str(program),
        "options": list(_OPTIONS),
        "call": setting.describe(sample),
        "seconds": max(1.0, setting.seconds - _MARGIN_SECONDS),
    }
    axes = dict(sample.workload.axes)
    outcome = next(iter(sandbox.run_many(_ENTRY, [payload], jobs=1, limits=setting.limits)))
    if outcome.error is not None:
        return Profile(axes=axes, problem=f"ncu failed: {outcome.error.what}"[:_REASON_LENGTH])
    answer = outcome.value or {}
    report, said = str(answer.get("report", "")), str(answer.get("said", ""))
    kernels = read_report(report)
    if not kernels:
        return Profile(axes=axes, problem=f"ncu failed: {explain_failure(report + said)}"[:_REASON_LENGTH])
    longest = sorted(kernels, key=lambda kernel: -kernel.microseconds)[:_SHOWN]
    return Profile(axes=axes, kernels=tuple(longest), launches=len(kernels))
