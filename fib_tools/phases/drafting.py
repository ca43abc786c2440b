"""What every way to draft a kernel begins with: the Definition with its Workloads, and what there is to beat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from fib_tools.dataset.layout import Kind, Location
from fib_tools.dataset.store import Dataset
from fib_tools.draft.bench import Bench, make_target
from fib_tools.draft.inspection import Inspector
from fib_tools.draft.judging import Judging
from fib_tools.draft.memory import Memory
from fib_tools.draft.run_folder import RunFolder
from fib_tools.draft.target import Target
from fib_tools.errors import RequestError
from fib_tools.evaluate.engines.items import Bundle, Options
from fib_tools.evaluate.engines.traces import write_results
from fib_tools.evaluate.report.report_schema import Measurement
from fib_tools.host.hardware import find_hardware
from fib_tools.host.locks import hold_dataset
from fib_tools.model.canonical import content_hash
from fib_tools.model.definition import Definition
from fib_tools.model.evidence import Evidence
from fib_tools.model.solution import BASELINE, Language, Solution
from fib_tools.phases.baselines import make_baselines
from fib_tools.phases.bench_bundles import make_bundle
from fib_tools.phases.bench_plan import limit_time
from fib_tools.phases.context import Context
from fib_tools.phases.request import check_definitions
from fib_tools.phases.trace_best import find_best

__all__ = [
    "Kept",
    "find_definition",
    "find_elsewhere",
    "find_runs",
    "keep_solution",
    "list_runs",
    "make_bench",
    "measure_target",
    "open_judging",
    "open_memory",
    "shorten_name",
]

_FOLDER = "optimize"
_MOST_TOGETHER = 8
_NAME_LENGTH, _HASH_LENGTH = 60, 8
"""Of a Definition's name in that of a run, and of what tells long ones apart."""


def find_runs(context: Context) -> Path:
    """Name the folder of all searches."""
    return context.workspace.root / _FOLDER


def list_runs(runs: Path, definition: str) -> list[str]:
    """List the runs of `fib optimize` about a Definition, the newest last."""
    return sorted(path.parent.name for path in runs.glob(f"[0-9]*-{shorten_name(definition)}-*/run.json"))


def open_judging(context: Context, bench: Bench, folder: RunFolder, tell: Callable[[str], None]) -> Judging:
    """Make ready to judge the drafts of a run."""
    return Judging(
        folder=folder,
        workloads=bench.workloads,
        untried=bench.untried,
        time_limit=bench.options.limits.evaluation_seconds,
        evaluate=bench.evaluate,
        inspect=Inspector(bench),
        memory=open_memory(context, folder.plan.target),
        tell=tell,
    )


def shorten_name(definition: str) -> str:
    """Give what stands for a Definition in the name of a run: its own name, or of a long one a part and a hash."""
    if len(definition) <= _NAME_LENGTH:
        return definition
    return f"{definition[: _NAME_LENGTH - _HASH_LENGTH - 1]}-{content_hash(definition)[:_HASH_LENGTH]}"


def open_memory(context: Context, target: Target) -> Memory:
    """Open what is remembered of the failures of a Definition, in this language on this device."""
    return Memory(find_runs(context) / "memory", target)


def make_bench(context: Context, definition: str, *, device: str, gpus: int = 1, time_limit: float = 30.0) -> Bench:
    """Load the Definition and all its Workloads, and make ready to evaluate.

    Raises:
        RequestError: there is no such Definition, or it has no Workload.
    """
    dataset = Dataset.open(context.dataset.root)
    options = Options.model_validate({"device": device, "limits": limit_time(time_limit, together=_MOST_TOGETHER)})
    return Bench(
        dataset=dataset,
        bundle=_find_bundle(context, dataset, definition),
        options=options,
        hardware=find_hardware(device)[0],
        gpus=0 if device == "cpu" else gpus,
        tell=lambda text: context.progress(text, 0, 0),
    )


def find_definition(dataset: Dataset, name: str) -> Definition:
    """Find a Definition.

    Raises:
        RequestError: there is none of this name.
    """
    loaded, _ = dataset.load_definitions()
    check_definitions([name], loaded, where=str(dataset.root))
    return loaded[name]


def _find_bundle(context: Context, dataset: Dataset, name: str) -> Bundle:
    definition = find_definition(dataset, name)
    found = dataset.load_workloads(definition.op_type, name)
    if not found:
        file = Location(kind=Kind.WORKLOADS, op_type=definition.op_type, definition=name)
        todo = f"collect some in {file} of the dataset first: a kernel that is tuned for invented sizes is of no use"
        raise RequestError(f"{name} has no Workload", where=str(dataset.root), todo=todo)
    return make_bundle(context, definition, found, ())


def measure_target(bench: Bench, language: Language, *, only_known: bool = False) -> Target:
    """Find what is to be beaten; what the dataset has evidence on is not measured again, and with `only_known` nothing is."""
    device = bench.options.device
    _, capability = find_hardware(device)
    made = [solution for solution, _ in make_baselines(bench.bundle.definition) if solution.spec.fits(capability)]
    baselines = made if device == "cuda" else []
    if baselines and not only_known:
        bench.tell(f"measuring the baseline: {', '.join(solution.name for solution in baselines)}")
    found = bench.recall(baselines, bench.hardware) if only_known else bench.evaluate(baselines)
    return make_target(bench, language, capability=capability, baselines=baselines, found=found)


def find_elsewhere(dataset: Dataset, target: Target) -> list[Measurement]:
    """Find what was measured on other GPUs than the one at hand."""
    name = target.definition.name
    known = find_best(dataset, {name})
    cpus = {each.gpu.name for each in known.evidence.values() if each.gpu.is_cpu}
    return [each for each in known.measurements.get(name, ()) if each.device not in {target.hardware, *cpus}]


class Kept(NamedTuple):
    """A Solution as it stands in the dataset, and the files of Traces that are new or changed."""

    solution: Solution
    files: tuple[str, ...]


def keep_solution(bench: Bench, solution: Solution, evidence: Sequence[Evidence]) -> Kept:
    """Put a Solution and its Traces into the dataset; one that runs the same and stands there already is taken instead.

    Names of Solutions are unique in a dataset, and a draft's follows from what runs.
    """
    dataset, definition = bench.dataset, bench.bundle.definition
    workloads = {workload.uuid: workload for workload in bench.bundle.workloads}
    with hold_dataset(dataset.root, purpose="writing Traces"):
        standing = dataset.load_solutions(definition.op_type, definition.name)
        same = [each for each in standing if each.hash == solution.hash and each.author != BASELINE]
        kept = same[0] if same else solution
        if not same:
            dataset.write_solution(definition.op_type, kept)
        name = {"solution": kept.name, "author": kept.author}
        named = [each.model_copy(update={"subject": each.subject.model_copy(update=name)}) for each in evidence]
        return Kept(kept, write_results(dataset, named, lambda _, uuid: workloads[uuid]).files)
