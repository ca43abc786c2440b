"""Baselines: the real kernel behind each Definition as a Solution, so that others have something to beat.

A baseline calls FlashInfer's kernel, or SGLang's; torch's only on GPUs that have no other. It is never the reference.
Its name ends in a hash of what runs, so that a changed baseline is another Solution and its Traces stay its own.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from fib_tools.dataset.store import Dataset, Written
from fib_tools.errors import FormatError, PathError, RequestError
from fib_tools.host.packages import find_versions
from fib_tools.model.definition import Definition
from fib_tools.model.solution import BASELINE, BuildSpec, Language, Solution, SourceFile
from fib_tools.model.summary import Result, Summary, Table
from fib_tools.op_types.ground_truth import GroundTruth, Wrapper
from fib_tools.phases.context import Context
from fib_tools.phases.reference_test_file import find_ground_truth
from fib_tools.phases.request import check_op_types, choose_definitions

__all__ = ["BaselineEntry", "BaselinesResult", "make_baselines", "write_baselines"]

_FILE = "main.py"
_HASH_LENGTH = 6
_SHOWN = 30
_PACKAGES: Mapping[str, tuple[str, str]] = {
    "flashinfer": ("FlashInfer", "flashinfer-python"),
    "sglang": ("SGLang", "sglang"),
    "torch": ("torch", "torch"),
}
"""How the source of a kernel is called, and the package that has its version."""

_Status = Literal["written", "unchanged", "would write", "no kernel", "refused"]


class BaselineEntry(Result):
    """What became of one Definition's baseline: a row for each kernel, or one that says why there is none."""

    definition: str
    op_type: str
    status: _Status
    solution: str = ""
    kernel: str = ""
    """What is called, dotted."""
    hardware: tuple[str, ...] = ()
    """The compute capabilities that have the kernel, such as sm90."""
    has_setup: bool = False
    """Planning is declared apart from the run."""
    reason: str = ""


class BaselinesResult(Result):
    """The baselines of a dataset."""

    rows = "entries"
    row_fields = ("definition", "status", "solution", "reason")

    dataset: str
    entries: tuple[BaselineEntry, ...]

    @property
    def has_errors(self) -> bool:
        """A Definition without a kernel is none; a file that cannot be read or written over is one."""
        return any(entry.status == "refused" for entry in self.entries)

    def summary(self) -> Summary:
        """Show what was refused, what has no kernel, what was written, then how many there are of each."""
        order = ("refused", "no kernel", "would write", "written")
        ranked = [entry for status in order for entry in self.entries if entry.status == status]
        rows = tuple((entry.definition, entry.status, entry.solution or entry.reason) for entry in ranked[:_SHOWN])
        tables = (Table(title="baselines", columns=("definition", "status", "baseline"), rows=rows),) if rows else ()
        more = (f"... and {len(ranked) - _SHOWN} more",) if len(ranked) > _SHOWN else ()
        counts: dict[str, int] = {}
        for entry in self.entries:
            counts[entry.status] = counts.get(entry.status, 0) + 1
        said = ", ".join(f"{count} {status}" for status, count in counts.items()) or "no Definition is selected"
        return Summary(tables=tables, lines=(*more, f"{self.dataset}: {said}"))


def write_baselines(
    context: Context,
    action: Annotated[Literal["write"], Field(description="write: put the Solutions into the dataset.")] = "write",
    *,
    definitions: Annotated[tuple[str, ...] | None, Field(description="Only these Definitions, by name.")] = None,
    op_types: Annotated[tuple[str, ...] | None, Field(description="Only Definitions of these op_types.")] = None,
    dry_run: Annotated[bool, Field(description="Say what would be written, and write nothing.")] = False,
) -> BaselinesResult:
    """Write the real kernel of each Definition as a Solution of the author `baseline`.

    Nothing is run, and a Solution that stands there is never overwritten: evaluate them with fib bench.

    Exit status 0: all are written or have no kernel, and each of these says why; 1: something was refused; 2: no dataset.
    """
    del action  # there is one yet; the command says what it does
    dataset = Dataset.open(context.dataset.root)
    check_op_types(op_types)
    loaded, faults = dataset.load_definitions()
    chosen = choose_definitions(loaded, definitions, op_types, where=str(dataset.root))
    broken = () if definitions is not None or op_types is not None else faults
    entries = [_broken(fault) for fault in broken]
    for done, definition in enumerate(chosen):
        context.progress(f"baseline of {definition.name}", done, len(chosen))
        entries += _write_all(dataset, definition, dry_run=dry_run)
    return BaselinesResult(dataset=str(dataset.root), entries=tuple(entries))


def make_baselines(definition: Definition) -> tuple[tuple[Solution, Wrapper], ...]:
    """Make the baselines of a Definition, the best kernel first; none where no kernel is known."""
    return tuple((_make(definition, wrapper), wrapper) for wrapper in _choose(find_ground_truth(definition)))


def _choose(truth: GroundTruth) -> tuple[Wrapper, ...]:
    """Leave out torch's kernels for GPUs that have another."""
    others = {capability for each in truth.wrappers if each.kind != "torch" for capability in each.capabilities}
    return tuple(each for each in truth.wrappers if each.kind != "torch" or set(each.capabilities) - others)


def _make(definition: Definition, wrapper: Wrapper) -> Solution:
    spec = BuildSpec(
        language=Language.PYTHON,
        target_hardware=_spell_hardware(wrapper),
        entry_point=f"{_FILE}::run",
        dependencies=_list_dependencies(wrapper),
        destination_passing_style=False,
    )
    draft = Solution(
        name=wrapper.kind,
        definition=definition.name,
        author=BASELINE,
        description=_describe(wrapper),
        spec=spec,
        sources=[SourceFile(path=_FILE, content=wrapper.source)],
    )
    return draft.model_copy(update={"name": f"{wrapper.kind}_wrapper_{draft.hash[:_HASH_LENGTH]}"})


def _spell_hardware(wrapper: Wrapper) -> list[str]:
    """Spell compute capabilities as FlashInfer's own Solutions do, such as sm90."""
    return [f"sm{capability}" for capability in wrapper.capabilities]


def _list_dependencies(wrapper: Wrapper) -> list[str]:
    return sorted({"torch", *(line.split()[1].partition(".")[0] for line in wrapper.imports)})


def _describe(wrapper: Wrapper) -> str:
    name, package = _PACKAGES[wrapper.kind]
    version = find_versions([package]).get(package, "")
    planned = " Planning is apart, in setup." if wrapper.has_setup else ""
    return f"{wrapper.api}, as {name}{f' {version}' * bool(version)} has it.{planned}"


def _write_all(dataset: Dataset, definition: Definition, *, dry_run: bool) -> list[BaselineEntry]:
    baselines = make_baselines(definition)
    if not baselines:
        reason = find_ground_truth(definition).reason
        return [_entry(definition, status="no kernel", reason=reason)]
    return [_write_one(dataset, definition, solution, wrapper, dry_run=dry_run) for solution, wrapper in baselines]


def _write_one(
    dataset: Dataset, definition: Definition, solution: Solution, wrapper: Wrapper, *, dry_run: bool
) -> BaselineEntry:
    own: dict[str, Any] = {
        "solution": solution.name,
        "kernel": wrapper.api,
        "hardware": tuple(solution.spec.target_hardware),
        "has_setup": wrapper.has_setup,
    }
    if _is_reference(solution, definition):
        return _entry(definition, status="refused", reason="it would be a copy of the reference", **own)
    try:
        written = dataset.write_solution(definition.op_type, solution, dry_run=dry_run)
    except (RequestError, FormatError) as error:
        return _entry(definition, status="refused", reason=str(error), **own)
    if written is Written.UNCHANGED:
        return _entry(definition, status="unchanged", **own)
    return _entry(definition, status="would write" if dry_run else "written", **own)


def _is_reference(solution: Solution, definition: Definition) -> bool:
    return _read_run(solution.sources[0].content) == _read_run(definition.reference)


def _read_run(source: str) -> str:
    """Read what `run` does, whatever comments and spaces say."""
    functions = (node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef))
    return next((ast.dump(node) for node in functions if node.name == "run"), "")


def _entry(definition: Definition, **own: Any) -> BaselineEntry:
    return BaselineEntry(definition=definition.name, op_type=definition.op_type, **own)


def _broken(fault: FormatError | PathError) -> BaselineEntry:
    return BaselineEntry(definition=fault.where or "", op_type="", status="refused", reason=str(fault))
