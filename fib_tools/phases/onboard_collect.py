"""Phase 3 of an onboarding: every Definition compared with its real kernel, given Workloads, and its baselines measured.

What came of each step is in the manifest, kernel by kernel, so that a run goes on where one before it ended, on
whatever machine the workspace was carried to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from fib_tools.dataset.store import Dataset
from fib_tools.errors import FibError, RequestError, TimeUpError
from fib_tools.host.env import read_gpu_settings
from fib_tools.host.gpus import discover_gpus
from fib_tools.host.hardware import find_hardware
from fib_tools.host.locks import hold
from fib_tools.model.base import Model
from fib_tools.model.manifest import Manifest
from fib_tools.model.progress import Step, StepRecord
from fib_tools.model.summary import Result, Summary, Table
from fib_tools.phases.carrying import describe_carrying
from fib_tools.phases.collect_options import CollectOptions
from fib_tools.phases.collect_record import Recorder, find_records, load_manifest
from fib_tools.phases.collect_steps import FAILED, NO_ENGINE, STEPS, Outcomes, Work, describe_basis, shorten
from fib_tools.phases.context import Context
from fib_tools.phases.request import ModelOptions
from fib_tools.phases.time_budget import TIME_IS_UP, TimeBudget

__all__ = ["CollectedKernels", "StepLine", "collect_kernels"]

_RETRIED = frozenset({FAILED, NO_ENGINE})
_CHEAP = frozenset({Step.BASELINE, Step.SIZES})
"""Steps that need no GPU and are always looked through."""


class StepLine(Model):
    """What a step did in this run."""

    step: Step
    kernels: int
    """That were open."""
    outcomes: dict[str, int]
    """How many came to each status."""
    seconds: float
    problem: str = ""


class CollectedKernels(Result):
    """What phase 3 did."""

    model: str
    machine: str
    kernels: int
    """With a Definition in the dataset."""
    steps: tuple[StepLine, ...] = ()
    stopped: str = ""
    """Why the run ended before its end."""

    @property
    def has_errors(self) -> bool:
        """A step that could not be done is an error, a test that failed is one; time that is over is none."""
        return any(line.problem or line.outcomes.get(FAILED) for line in self.steps)

    def summary(self) -> Summary:
        """Show the steps, then what went wrong."""
        rows = tuple(
            (line.step.value, str(line.kernels), _count(line.outcomes), f"{line.seconds:.1f}") for line in self.steps
        )
        columns = ("step", "open", "came to", "seconds")
        tables = (
            (Table(title=f"phase 3 of {self.model} on {self.machine}", columns=columns, rows=rows),) if rows else ()
        )
        problems = tuple(f"{line.step.value}: {line.problem}" for line in self.steps if line.problem)
        done = () if rows else (f"phase 3: nothing is left to do for {self.kernels} kernels",)
        return Summary(tables=tables, lines=(*problems, *((self.stopped,) if self.stopped else ()), *done))


def _count(outcomes: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {status}" for status, count in outcomes.items())


def collect_kernels(
    context: Context,
    asked: Manifest,
    options: ModelOptions,
    how: CollectOptions,
    *,
    skip_existing: bool = True,
    dry_run: bool = False,
) -> CollectedKernels:
    """Take the kernels of a manifest through the steps of phase 3; nobody else may be at it in this workspace.

    Raises:
        RequestError: a GPU is needed and there is none; it says how to carry the workspace to one.
    """
    if context.is_confined:
        raise RequestError(
            "phase 3 runs an engine and tests with the rights of the user, so an agent may not start it",
            todo=f"run in a shell: fib onboard {asked.model} --phases 3",
        )
    dataset = Dataset.open(context.dataset.root)
    loaded, _ = dataset.load_definitions()
    staged = {item.staged for item in asked.members}
    names = sorted(name for name in loaded if name in staged)
    work = Work(
        context=context,
        dataset=dataset,
        manifest=asked,
        definitions={name: loaded[name] for name in names},
        options=options,
        how=how,
        budget=TimeBudget.of_minutes(how.max_minutes),
        skip_existing=skip_existing,
    )
    if dry_run:
        return _preview(work)
    with hold(context.workspace.root / ".collect.lock", purpose=f"phase 3 of {asked.model}"):
        return _run(work)


def _list_steps(work: Work) -> list[Step]:
    return [step for step in Step if step.value not in work.how.skip_steps]


def _preview(work: Work) -> CollectedKernels:
    open_ones = {step: len(_list_todo(work, step)) for step in _list_steps(work)}
    lines = (
        StepLine(step=step, kernels=count, outcomes={"would be done": count}, seconds=0.0)
        for step, count in open_ones.items()
        if count
    )
    machine = f"a machine with {'a GPU' if work.how.device == 'cuda' else 'a CPU'}"
    return CollectedKernels(
        model=work.manifest.model, machine=machine, kernels=len(work.definitions), steps=tuple(lines)
    )


def _run(work: Work) -> CollectedKernels:
    steps = _list_steps(work)
    has_device = work.how.device == "cpu" or bool(discover_gpus(read_gpu_settings()).visible)
    if not has_device:
        _require_nothing(work, [step for step in steps if step not in _CHEAP])
        steps = [step for step in steps if step in _CHEAP]
    machine = find_hardware(work.how.device if has_device else "cpu")[0]
    lines: list[StepLine] = []
    stopped = ""
    for step in steps:
        todo = _list_todo(work, step)
        if not todo:
            continue
        if work.budget.left == 0:
            stopped = TIME_IS_UP
            break
        line, stopped = _run_step(work, step, todo, machine)
        if line.outcomes or line.problem:
            lines.append(line)
        if stopped:
            break
    names = tuple(work.definitions)
    return CollectedKernels(
        model=work.manifest.model, machine=machine, kernels=len(names), steps=tuple(lines), stopped=stopped
    )


def _require_nothing(work: Work, steps: Sequence[Step]) -> None:
    """Refuse to go on without a GPU where one is needed.

    Raises:
        RequestError: with the way to one.
    """
    waiting = {name for step in steps for name in _list_open(work, step)}
    if waiting:
        notes = "; ".join(discover_gpus(read_gpu_settings()).notes)
        raise RequestError(
            f"phase 3 needs a GPU, and there is none here: {len(waiting)} kernels of {work.manifest.model} wait for one",
            where=notes or None,
            todo=describe_carrying(work.context, work.manifest.model),
        )


def _list_todo(work: Work, step: Step) -> list[str]:
    """List the Definitions that a step is still to be done for, or is to be tried again for."""
    if step in _CHEAP or not work.skip_existing:
        return list(work.definitions)
    records = _find_records(work, step)
    again = [name for name, record in records.items() if record.status in _RETRIED]
    return sorted({*_list_open(work, step), *again})


def _list_open(work: Work, step: Step) -> list[str]:
    records = _find_records(work, step)
    return [
        name
        for name in work.definitions
        if name not in records or records[name].basis != describe_basis(work, step, name)
    ]


def _find_records(work: Work, step: Step) -> dict[str, StepRecord]:
    found = find_records(load_manifest(work.context, work.manifest.model)[1], step)
    return {name: record for name, record in found.items() if name in work.definitions}


def _run_step(work: Work, step: Step, todo: Sequence[str], machine: str) -> tuple[StepLine, str]:
    """Do one step; what it cannot do is its problem, and the next ones go on. The text says whether time is over."""
    before = load_manifest(work.context, work.manifest.model)[1].times
    recorder = Recorder(context=work.context, model=work.manifest.model, step=step, machine=machine, before=before)

    def write(outcomes: Outcomes, *, is_late: bool = False) -> None:
        records = {
            name: StepRecord(status=status, detail=detail, basis=describe_basis(work, step, name), machine=machine)
            for name, (status, detail) in outcomes.items()
        }
        recorder.write(records, is_late=is_late)

    work.context.progress(f"phase 3, {step.value}", 0, 0)
    problem = stopped = ""
    try:
        STEPS[step](work, todo, write)
    except TimeUpError as error:
        stopped = str(error)
        write({}, is_late=True)
    except FibError as error:
        problem = str(error)
        write({name: (FAILED, shorten(problem)) for name in todo if name not in recorder.records})
    counts = Counter(record.status for record in recorder.records.values())
    line = StepLine(step=step, kernels=len(todo), outcomes=dict(counts), seconds=recorder.seconds, problem=problem)
    return line, stopped
