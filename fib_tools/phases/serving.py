"""An engine that serves a model on this machine: what it needs, which runs of it, and under which lock."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fib_tools.capture.engine import EngineOptions, RunOutcome
from fib_tools.capture.runs import EngineRun, NotCovered
from fib_tools.errors import MissingDependencyError, RequestError
from fib_tools.host.env import engine_environment, read_gpu_settings
from fib_tools.host.gpu_lock import Lease, acquire
from fib_tools.host.gpus import discover_gpus
from fib_tools.phases.context import Context
from fib_tools.phases.survey import Survey
from fib_tools.phases.trace_plan import TraceSubject
from fib_tools.phases.trace_result import RunLine

__all__ = [
    "check_machine",
    "check_runs",
    "check_weights",
    "describe_run",
    "hold_gpus",
    "list_not_covered",
    "make_options",
    "make_subject",
]

_SIDE_BY_SIDE = 4
"""Engines on one GPU: cut to a few layers they are small, and most of their time goes into compiling."""
_LOCK_SECONDS = 3600.0


def check_weights(context: Context, weights: str | None) -> str | None:
    """Return where real weights are; a path that an agent names lies in the workspace.

    Raises:
        RequestError: an absolute path where no folder is.
    """
    if weights is None or not (Path(weights).is_absolute() or weights.startswith((".", "~")) or Path(weights).exists()):
        return weights
    folder = context.check_readable(Path(weights).expanduser()).resolve()
    if not (folder / "config.json").is_file():
        raise RequestError("no weights there: it has no config.json", where=weights, todo="pass a model's folder")
    return str(folder)


def check_machine(*, purpose: str, without: str) -> None:
    """Look for SGLang and a GPU before anything is read; `without` says what a machine that has none can do.

    Raises:
        MissingDependencyError: one is not here.
    """
    if not _has_sglang():
        raise MissingDependencyError("sglang", purpose=purpose, install="pip install 'fib-tools[gpu]'")
    if not discover_gpus(read_gpu_settings()).visible:
        raise MissingDependencyError(
            "a visible NVIDIA GPU with its driver",
            purpose=purpose,
            install=f"pip install 'fib-tools[gpu]' and this command on a machine with a GPU; {without}",
        )


def _has_sglang() -> bool:
    return importlib.util.find_spec("sglang") is not None


def make_subject(survey: Survey) -> TraceSubject:
    """Take of a survey what runs are planned from."""
    return TraceSubject(
        model=survey.config.slug,
        config=survey.config.config,
        facts=survey.facts,
        points=survey.inventory.points,
    )


def check_runs(model: str, runs: Sequence[EngineRun], not_covered: Sequence[NotCovered]) -> None:
    """Refuse a plan without a run.

    Raises:
        RequestError: with the reasons.
    """
    if not runs:
        reasons = "; ".join(f"{item.subject}: {item.reason}" for item in not_covered)
        raise RequestError(f"no run can show the kernels of {model!r}: {reasons}", todo="pass --tp-list or --gpus")


@contextmanager
def hold_gpus(context: Context, runs: Sequence[EngineRun], *, command: str, subject: str) -> Iterator[Lease]:
    """Hold as many GPUs as the largest run takes."""
    count = max(run.gpus for run in runs)
    context.progress(f"waiting for {count} GPU", 0, 0)
    with acquire(count, timeout=_LOCK_SECONDS, command=command) as lease:
        context.progress(f"serving {subject}", 0, len(runs))
        yield lease


def make_options(
    context: Context,
    runs: Sequence[EngineRun],
    lease: Lease,
    *,
    timeout: float,
    rerun: bool,
    tick: Callable[[], None] = lambda: None,
) -> EngineOptions:
    """Say how the runs are made: side by side where they are small and share one GPU."""
    is_shared = all(run.weights is None and run.gpus == 1 for run in runs)
    return EngineOptions(
        environment={**engine_environment(), **lease.environment},
        descriptors=lease.descriptors,
        jobs=_SIDE_BY_SIDE if is_shared else 1,
        timeout=timeout,
        stage_timeout=timeout,
        rerun=rerun,
        report=lambda text: context.progress(text, 0, len(runs)),
        tick=tick,
    )


def describe_run(
    run: EngineRun, outcome: RunOutcome | None, *, dumps: int = 0, otherwise: str = "would run"
) -> RunLine:
    """Say what became of a run, or what is said of one without an outcome."""
    return RunLine(
        name=run.name,
        status=outcome.status if outcome else otherwise,
        seconds=outcome.seconds if outcome else 0.0,
        gpus=run.gpus,
        points=run.points,
        overrides=run.overrides,
        stages=outcome.stages if outcome else {},
        dumps=dumps,
        error=outcome.error if outcome else "",
        notes=outcome.notes if outcome else (),
    )


def list_not_covered(runs: Sequence[EngineRun]) -> list[NotCovered]:
    """List what the runs cannot show, each once."""
    return list(dict.fromkeys(item for run in runs for item in run.not_covered))
