"""Apply: the best Solution of each Definition, in the folder that FlashInfer's trace_apply takes its kernels from.

FLASHINFER_TRACE_APPLY=1 FLASHINFER_TRACE_APPLY_PATH=<folder> then has FlashInfer call them in an engine. It routes by
name alone: a Definition is applied only where FlashInfer has a template for its call, and under that template's name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from fib_tools.dataset.store import Dataset
from fib_tools.errors import FormatError, RequestError
from fib_tools.evaluate.application.application import find_interface, make_application, make_documents
from fib_tools.evaluate.application.application_check import Checked, Dispatch, check_dispatch, find_needed_gpu
from fib_tools.evaluate.application.choice import Choice, Subject, choose_best
from fib_tools.evaluate.report.report_reading import Reading, read_measurements
from fib_tools.gate.recognise import recognise
from fib_tools.gate.templates import TemplateResult, instantiate
from fib_tools.host.env import read_gpu_settings
from fib_tools.host.files import storage_errors
from fib_tools.host.folders import replace_folder, stage_folder
from fib_tools.host.gpus import discover_gpus
from fib_tools.model.definition import Definition
from fib_tools.model.summary import Result, Summary, Table
from fib_tools.op_types.base import MetaTensor, TemplateCall
from fib_tools.op_types.registry import find_kernel_type
from fib_tools.phases.context import Context
from fib_tools.phases.reference_runs import has_gpu
from fib_tools.phases.request import COMMAND_LINE_ONLY, choose_definitions

__all__ = ["ApplyEntry", "ApplyResult", "apply_solutions"]

_FOLDER = "trace-apply"
_MARK = "fib_apply.json"
"""Says that a folder is ours to replace."""
_SHOWN = 30


class ApplyEntry(Result):
    """What became of one Definition."""

    definition: str
    op_type: str
    status: Literal["applied", "would apply", "skipped", "failed"]
    """`failed`: FlashInfer did not dispatch a call to it, and it is not in the folder."""
    solution: str = ""
    author: str = ""
    ratio: float | None = None
    """How many times as fast as the fastest baseline, the geometric mean over the Workloads, weighted by their counts."""
    milliseconds: float | None = None
    """The same mean of its times; of the best one also where that is refused."""
    routed_as: str = ""
    """The name that FlashInfer computes for such a call."""
    not_routed: dict[str, Any] = Field(default_factory=dict)
    """What the Definition fixes and FlashInfer does not look at: calls with other values are dispatched as well."""
    falls_back: str = ""
    """The const axis with another length of which a call fell back in the check."""
    reason: str = ""


class ApplyResult(Result):
    """The folder, and what is in it."""

    rows = "entries"
    row_fields = ("definition", "status", "solution", "ratio", "reason")

    dataset: str
    hardware: str
    folder: str
    """Where FLASHINFER_TRACE_APPLY_PATH is to point."""
    checked: str = ""
    """The device that the check ran on; empty without a check."""
    entries: tuple[ApplyEntry, ...]

    @property
    def has_errors(self) -> bool:
        """A Solution that FlashInfer does not dispatch to is an error; a Definition without one is none."""
        return any(entry.status == "failed" for entry in self.entries)

    def summary(self) -> Summary:
        """Show what failed, what is applied, and what was measured in vain before all else; then how to use it."""
        order = ("failed", "applied", "would apply", "skipped")
        ranked = sorted(self.entries, key=lambda entry: (order.index(entry.status), entry.milliseconds is None))
        rows = tuple(
            (
                entry.definition,
                entry.status,
                f"{entry.ratio:.2f}x" if entry.ratio else "",
                entry.reason or entry.solution,
            )
            for entry in ranked[:_SHOWN]
        )
        columns = ("definition", "status", "baseline", "solution or reason")
        tables = (Table(title=f"best on {self.hardware}", columns=columns, rows=rows),) if rows else ()
        counts = Counter(entry.status for entry in self.entries)
        said = ", ".join(f"{count} {status}" for status, count in counts.items()) or "no Definition is selected"
        more = (f"... and {len(ranked) - _SHOWN} more; --json has all",) * (len(ranked) > _SHOWN)
        use = f"FLASHINFER_TRACE_APPLY=1 FLASHINFER_TRACE_APPLY_PATH={self.folder}"
        lines = (f"to use it: {use}",) * bool(counts["applied"])
        checked = f"; checked on {self.checked}" if self.checked else "; not checked"
        kept = "; the folder stays as it was" * bool(counts["failed"] and not counts["applied"])
        return Summary(
            tables=tables, lines=(*more, *lines, f"{self.folder}: {said}{checked * bool(counts['applied'])}{kept}")
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Candidate:
    """A Definition on its way into the folder."""

    definition: Definition
    choice: Choice
    call: TemplateCall | None = None
    fi_name: str = ""
    dispatch: Dispatch | None = None
    checked: Checked | None = None
    reason: str = ""
    """Why it is not applied."""


def apply_solutions(
    context: Context,
    *,
    out: Annotated[
        Path | None,
        Field(description="The folder to write; trace-apply in the workspace if left out."),
        COMMAND_LINE_ONLY,
    ] = None,
    definitions: Annotated[tuple[str, ...] | None, Field(description="Only these Definitions, by name.")] = None,
    authors: Annotated[tuple[str, ...] | None, Field(description="Only Solutions of these authors.")] = None,
    hardware: Annotated[
        str | None, Field(description="The GPU's model, as Traces spell it: NVIDIA H200. This machine's if left out.")
    ] = None,
    least_ratio: Annotated[
        float,
        Field(ge=0, description="Only what is so many times as fast as the fastest baseline; 0 needs no baseline."),
    ] = 1.0,
    check: Annotated[
        bool, Field(description="Run FlashInfer with the folder, and see that calls are dispatched and fall back.")
    ] = True,
    dry_run: Annotated[bool, Field(description="Say what would be written, and write nothing.")] = False,
) -> ApplyResult:
    """Write the best Solution of each Definition into a folder for FlashInfer's trace_apply, and check it by running.

    Only what fib bench measured on this GPU model counts, and only what passed on every Workload. The folder is
    replaced as a whole, by what the check saw dispatched. On a GPU the check runs Solutions with your rights.

    Exit status 0: written; 1: a Solution is not dispatched, and is left out; 2: the request cannot be served.
    """
    dataset = Dataset.open(context.dataset.root)
    target = (out or context.workspace.root / _FOLDER).absolute()
    _check_target(target)
    loaded, _ = dataset.load_definitions()
    chosen = choose_definitions(loaded, definitions, where=str(dataset.root))
    reading = read_measurements(dataset, definitions={definition.name for definition in chosen})
    if hardware and reading.measurements:
        reading = reading.take_device(hardware, where=str(dataset.root))
    device = hardware or _find_hardware(reading)
    context.progress(f"choosing for {len(chosen)} Definitions", 0, len(chosen))
    candidates = [
        _Candidate(
            definition=definition,
            choice=_choose(dataset, definition, reading, device, authors, least_ratio=least_ratio),
        )
        for definition in chosen
    ]
    _check_choice(target, candidates, device, is_dry=dry_run)
    candidates = _route(candidates)
    on_gpu = has_gpu()
    _check_means(context, candidates, check=check and not dry_run, on_gpu=on_gpu)
    if not dry_run:
        candidates = _write(context, target, candidates, device, check=check, on_gpu=on_gpu)
    entries = tuple(_report(candidate, dry_run=dry_run) for candidate in candidates)
    checked = next((each.checked.device for each in candidates if each.checked), "")
    return ApplyResult(dataset=str(dataset.root), hardware=device, folder=str(target), checked=checked, entries=entries)


def _check_choice(target: Path, candidates: Sequence[_Candidate], device: str, *, is_dry: bool) -> None:
    """Keep a folder that works rather than empty it.

    Raises:
        RequestError: nothing qualifies, and the folder has what did before.
    """
    if not is_dry and (target / _MARK).is_file() and not any(each.choice.solution for each in candidates):
        what = f"no Solution qualifies on {device}; the folder stays as it is"
        raise RequestError(what, where=str(target), todo="check --hardware and --least-ratio, or remove the folder")


def _check_target(target: Path) -> None:
    with storage_errors(target):
        if target.exists() and not target.is_dir():
            raise RequestError("it is a file", where=str(target), todo="pass another --out")
        if target.is_dir() and any(target.iterdir()) and not (target / _MARK).is_file():
            raise RequestError("fib apply did not write this folder", where=str(target), todo="pass another --out")


def _find_hardware(reading: Reading) -> str:
    gpus = discover_gpus(read_gpu_settings()).visible
    if gpus:
        return gpus[0].name
    said = f", one of {reading.devices}" if reading.measurements else ""
    raise RequestError("there is no GPU here, and so no model to choose for", todo=f"pass --hardware{said}")


def _choose(
    dataset: Dataset,
    definition: Definition,
    reading: Reading,
    device: str,
    authors: tuple[str, ...] | None,
    *,
    least_ratio: float,
) -> Choice:
    try:
        solutions = dataset.load_solutions(definition.op_type, definition.name)
        workloads = dataset.load_workloads(definition.op_type, definition.name)
    except FormatError as error:
        return Choice(reason=str(error))
    wanted = [each for each in solutions if authors is None or each.author in authors]
    subject = Subject(
        definition=definition.name,
        solutions=wanted,
        workloads={workload.uuid: workload.count for workload in workloads},
        device=device,
    )
    return choose_best(subject, reading.measurements, reading.evidence, least_ratio=least_ratio)


def _route(candidates: Sequence[_Candidate]) -> list[_Candidate]:
    """Find what FlashInfer calls each Definition, and refuse those that share a name."""
    called = [replace(each, call=_find_call(each.definition)) for each in candidates]
    calls = [each.call for each in called if each.call is not None]
    wanted = any(each.choice.solution is not None for each in called)
    results = iter(instantiate(calls) if wanted else ())
    answers = [next(results, None) if each.call is not None else None for each in called]
    named = [
        replace(each, fi_name=answer.fi_name or "" if answer else "")
        for each, answer in zip(called, answers, strict=True)
    ]
    shared = Counter(each.fi_name for each in named if each.fi_name)
    return [
        _prepare(each, answer, is_shared=shared[each.fi_name] > 1) if each.choice.solution else _give_up(each)
        for each, answer in zip(named, answers, strict=True)
    ]


def _find_call(definition: Definition) -> TemplateCall | None:
    found = recognise(definition)
    kernel = find_kernel_type(found.kernel) if found is not None else None
    return kernel.find_template_call(found.parameters) if found is not None and kernel is not None else None


def _give_up(candidate: _Candidate) -> _Candidate:
    return replace(candidate, reason=candidate.choice.reason)


def _prepare(candidate: _Candidate, answer: TemplateResult | None, *, is_shared: bool) -> _Candidate:
    solution, call = candidate.choice.solution, candidate.call
    if call is None or solution is None or answer is None or answer.raw is None:
        return replace(
            candidate, reason=(answer.reason if answer else "") or "FlashInfer has no template for this call"
        )
    if is_shared:
        what = f"FlashInfer calls another Definition of this dataset {candidate.fi_name} too"
        return replace(candidate, reason=f"{what}, and would give its calls to this one; name one with --definitions")
    try:
        interface = find_interface(candidate.definition, candidate.fi_name, answer.raw)
        application = make_application(candidate.definition, solution, interface, call.fi_api)
    except FormatError as error:
        return replace(candidate, reason=error.what)
    dispatch = Dispatch(
        application=application, fi_api=call.fi_api, parameters=answer.parameters, plain=_list_plain(call.arguments)
    )
    return replace(candidate, dispatch=dispatch)


def _list_plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in arguments.items()
        if value is not None and not isinstance(value, (MetaTensor, tuple, list, Mapping))
    }


def _check_means(context: Context, candidates: Sequence[_Candidate], *, check: bool, on_gpu: bool) -> None:
    """Refuse a check that cannot be made here, before anything is written."""
    if not check:
        return
    dispatches = [each.dispatch for each in candidates if each.dispatch]
    needing = find_needed_gpu(dispatches)
    if needing and not on_gpu:
        what = f"to check that {needing} is dispatched takes a GPU, and torch sees none"
        raise RequestError(what, todo="run it on the GPU's machine, or pass --no-check")
    if dispatches and on_gpu and context.is_confined:
        what = "on a GPU the check runs Solutions with the rights of the user, so an agent may not start it"
        raise RequestError(what, todo="run in a shell: fib apply, or leave the check out")


def _write(
    context: Context, target: Path, candidates: list[_Candidate], device: str, *, check: bool, on_gpu: bool
) -> list[_Candidate]:
    """Replace the folder by what passes the check; where nothing does, it stays as it was."""
    ready = [each for each in candidates if each.dispatch]
    if check and ready:
        candidates = _check(context, target, candidates, device, on_gpu=on_gpu)
    passed = [each for each in candidates if each.dispatch and not (each.checked and each.checked.problem)]
    if passed or not ready:
        with stage_folder(target) as staged:
            _write_documents(staged, passed, device)
            replace_folder(staged, target)
    return candidates


def _check(
    context: Context, target: Path, candidates: Sequence[_Candidate], device: str, *, on_gpu: bool
) -> list[_Candidate]:
    """Write all of it into a folder beside the place, and see what FlashInfer dispatches to."""
    dispatches = [each.dispatch for each in candidates if each.dispatch]
    context.progress(f"checking {len(dispatches)} Solutions by running FlashInfer", 0, len(dispatches))
    with stage_folder(target) as staged:
        _write_documents(staged, candidates, device)
        answers = iter(check_dispatch(staged, dispatches, on_gpu=on_gpu))
        return [replace(each, checked=next(answers)) if each.dispatch else each for each in candidates]


def _write_documents(folder: Path, candidates: Sequence[_Candidate], device: str) -> None:
    applications = [each.dispatch.application for each in candidates if each.dispatch]
    with storage_errors(folder):
        for relative, data in make_documents(applications, _facts(candidates, device)).items():
            path = folder.joinpath(*relative.split("/"))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def _facts(candidates: Sequence[_Candidate], device: str) -> dict[str, Any]:
    applied = [each for each in candidates if each.dispatch and each.choice.solution]
    return {
        "hardware": device,
        "applied": {
            each.fi_name: {
                "definition": each.definition.name,
                "solution": each.choice.solution.name if each.choice.solution else "",
                "hash": each.choice.solution.hash if each.choice.solution else "",
                "ratio": each.choice.ratio,
            }
            for each in applied
        },
    }


def _report(candidate: _Candidate, *, dry_run: bool) -> ApplyEntry:
    definition, solution = candidate.definition, candidate.choice.solution
    own: dict[str, Any] = {"definition": definition.name, "op_type": definition.op_type}
    own |= {"ratio": candidate.choice.ratio, "milliseconds": candidate.choice.milliseconds}
    if solution is not None:
        own |= {"solution": solution.name, "author": solution.author}
    if candidate.dispatch is None:
        return ApplyEntry(status="skipped", reason=candidate.reason, routed_as=candidate.fi_name, **own)
    seen = candidate.dispatch.application.interface.keys.values()
    own |= {
        "routed_as": candidate.fi_name,
        "not_routed": {name: value for name, value in candidate.dispatch.plain.items() if name not in seen},
    }
    if candidate.checked and candidate.checked.problem:
        return ApplyEntry(status="failed", reason=candidate.checked.problem, **own)
    falls_back = candidate.checked.falls_back if candidate.checked else ""
    return ApplyEntry(status="would apply" if dry_run else "applied", falls_back=falls_back, **own)
