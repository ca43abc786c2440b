"""Calibrate: tolerances of Definitions from errors of trusted kernels, and what injected faults they catch.

Everything untrusted runs in the sandbox, on the CPU or, with its devices opened to it, on a GPU under the GPU lock.
On a CPU no real kernel runs: the bounds stay the op_type's, and the faults are judged by them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from fib_tools.dataset.store import Dataset
from fib_tools.errors import FibError, FormatError, RequestError
from fib_tools.evaluate.calibration.calibration import (
    Calibration,
    Case,
    calibrate,
    find_calibration,
    find_tolerances,
    hash_kernel,
    save_calibration,
)
from fib_tools.gate.recognise import find_kernel
from fib_tools.host.env import kernel_caches
from fib_tools.host.gpu_sandbox import open_gpu_sandbox
from fib_tools.host.hardware import find_hardware
from fib_tools.host.packages import find_versions
from fib_tools.host.sandbox import Limits, Outcome, Sandbox
from fib_tools.model.base import read_strict, to_document
from fib_tools.model.canonical import content_hash
from fib_tools.model.definition import Definition, DType
from fib_tools.model.summary import Result, Summary, Table
from fib_tools.op_types.inputs import list_distributions
from fib_tools.op_types.registry import list_modules
from fib_tools.op_types.sizes import choose_test_axes
from fib_tools.op_types.tolerance import Tolerance
from fib_tools.phases.context import Context
from fib_tools.phases.reference_runs import has_gpu
from fib_tools.phases.reference_test_file import find_ground_truth
from fib_tools.phases.request import check_op_types, choose_definitions

__all__ = ["CalibrateEntry", "CalibrateResult", "calibrate_definitions"]

_ENTRY = "fib_tools.evaluate.calibration._calibrate_child:measure_confined"
_PRELOAD = ("torch", "fib_tools.evaluate.calibration._calibrate_child")
_SIZES = {"cpu": ("small",), "cuda": ("small", "medium")}
_MEMORY = {"cpu": 12 << 30, "cuda": 96 << 30}
_PROCESSES = 512
"""On a GPU kernels are compiled in the child."""
_FILE_BYTES = 1 << 30
_JOBS = {"cpu": 2, "cuda": max(3, min(8, (os.cpu_count() or 1) // 3))}
"""At once; nothing is timed, so that they may share a GPU. Most of their time is importing on a few cores."""
_SHOWN = 40
_PACKAGES = ("torch", "triton", "flashinfer-python", "sglang", "sgl-kernel", "sglang-kernel")
"""What trusted kernels come from."""
_PROCEDURE = 4
"""Counts the changes of what is measured, and of how bounds are chosen from it."""


class CalibrateEntry(Result):
    """What became of one Definition."""

    name: str
    op_type: str
    status: Literal["calibrated", "kept", "refused", "failed", "would calibrate"]
    """`refused`: a trusted kernel does not fit the bounds, or a fault that must be caught is not; they are not used.

    `kept`: the same was measured before.
    """
    reason: str = ""
    basis: str = ""
    """`kernels` where bounds follow from errors of real kernels, else `policy`."""
    caught: int = 0
    """Faults that the bounds catch."""
    missed: tuple[str, ...] = ()
    """Faults that they let pass."""
    worst_trusted: float | None = None
    """The largest error of a trusted kernel as a share of its bound."""
    least_fault: float | None = None
    """The smallest fault that is caught, as a multiple of its bound."""
    path: str = ""
    """Where the calibration was written."""
    calibration: Calibration | None = None


class CalibrateResult(Result):
    """The calibrations that were made."""

    rows = "entries"
    row_fields = ("name", "status", "reason", "basis", "worst_trusted", "least_fault")

    dataset: str
    device: str
    entries: tuple[CalibrateEntry, ...]

    @property
    def has_errors(self) -> bool:
        """Bounds that were refused are an error, and so is a Definition that could not be measured."""
        return any(entry.status in {"refused", "failed"} for entry in self.entries)

    def summary(self) -> Summary:
        """Show the margins of each Definition, those with a problem first."""
        order = ("failed", "refused", "would calibrate", "calibrated", "kept")
        ranked = sorted(self.entries, key=lambda entry: order.index(entry.status))
        columns = ("definition", "status", "basis", "worst trusted", "least fault", "missed", "reason")
        rows = tuple(_row(entry) for entry in ranked[:_SHOWN])
        tables = (Table(title="calibrations", columns=columns, rows=rows),) if rows else ()
        more = (f"... and {len(ranked) - _SHOWN} more",) if len(ranked) > _SHOWN else ()
        counts = {status: sum(1 for entry in ranked if entry.status == status) for status in order}
        said = ", ".join(f"{count} {status}" for status, count in counts.items() if count) or "nothing selected"
        return Summary(tables=tables, lines=(*more, f"{self.dataset}: {said} on {self.device}"))


def _row(entry: CalibrateEntry) -> tuple[str, ...]:
    margins = ("" if value is None else f"{value:.3g}" for value in (entry.worst_trusted, entry.least_fault))
    return entry.name, entry.status, entry.basis, *margins, ", ".join(entry.missed), entry.reason


def calibrate_definitions(
    context: Context,
    *,
    definitions: Annotated[tuple[str, ...] | None, Field(description="Only these Definitions, by name.")] = None,
    op_types: Annotated[tuple[str, ...] | None, Field(description="Only Definitions of these op_types.")] = None,
    all: Annotated[bool, Field(description="Every Definition of the dataset.")] = False,  # noqa: A002  # users know --all
    device: Annotated[
        Literal["auto", "cpu", "cuda"], Field(description="Where to measure; auto takes a GPU where torch sees one.")
    ] = "auto",
    seeds: Annotated[int, Field(ge=1, le=16, description="Seeds for each size and distribution of inputs.")] = 2,
    time_limit: Annotated[
        int, Field(ge=1, le=7200, description="Seconds for one Definition, the compiling of its kernels included.")
    ] = 900,
    fresh: Annotated[
        bool, Field(description="Measure also what was measured before, by the same kernels on such a GPU.")
    ] = False,
    dry_run: Annotated[bool, Field(description="Say what would be calibrated, and do nothing.")] = False,
) -> CalibrateResult:
    """Choose the tolerances of Definitions from the float64 errors of trusted kernels, and check that faults are caught.

    Exit status 0: all calibrated; 1: bounds were refused or could not be measured; 2: it could not be run.
    """
    dataset = Dataset.open(context.dataset.root)
    chosen = _select(dataset, definitions, op_types, everything=all)
    where: Literal["cpu", "cuda"] = ("cuda" if has_gpu() else "cpu") if device == "auto" else device
    if where == "cuda" and not has_gpu():
        raise RequestError("torch sees no GPU", todo="use --device cpu, which measures the references alone")
    machine = _find_machine(where)
    requests = [_make_request(definition, where, seeds, machine) for definition in chosen]
    standing = {} if fresh else _find_standing(context, requests)
    entries = [_describe(request.definition, standing[request.key]) for request in requests if request.key in standing]
    waiting = [request for request in requests if request.key not in standing]
    if dry_run:
        entries += [_entry(request.definition, status="would calibrate") for request in waiting]
    elif waiting:
        entries += _calibrate_all(context, waiting, where, time_limit=time_limit)
    return CalibrateResult(dataset=str(dataset.root), device=where, entries=tuple(entries))


def _select(
    dataset: Dataset, names: Sequence[str] | None, op_types: Sequence[str] | None, *, everything: bool
) -> list[Definition]:
    if not (names or op_types or everything):
        raise RequestError("no Definition is selected", todo="pass names, --op-types, or --all")
    check_op_types(op_types)
    loaded, _ = dataset.load_definitions()
    return choose_definitions(loaded, names or None, op_types or None, where=str(dataset.root))


def _entry(definition: Definition, **own: Any) -> CalibrateEntry:
    return CalibrateEntry(name=definition.name, op_type=definition.op_type, **own)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Request:
    """What is to be measured of one Definition."""

    definition: Definition
    payload: dict[str, Any]
    key: str
    """A hash of all that the measurement follows from."""


def _find_machine(device: Literal["cpu", "cuda"]) -> dict[str, Any]:
    """Find what of this machine every measurement follows from."""
    return {
        "hardware": find_hardware(device)[0] if device == "cuda" else device,
        "versions": find_versions(_PACKAGES),
    }


def _make_request(
    definition: Definition, device: Literal["cpu", "cuda"], seeds: int, machine: Mapping[str, Any]
) -> _Request:
    payload = _make_payload(definition, device, seeds)
    parts = {
        **{name: value for name, value in payload.items() if name not in {"document", "caches"}},
        "definition": hash_kernel(definition),
        **machine,
        "procedure": _PROCEDURE,
    }
    return _Request(definition=definition, payload=payload, key=content_hash(parts))


def _find_standing(context: Context, requests: Sequence[_Request]) -> dict[str, Calibration]:
    """Find what was measured before, by the keys of the requests."""
    found = ((request.key, find_calibration(context.workspace.root, request.definition)) for request in requests)
    return {key: calibration for key, calibration in found if calibration is not None and calibration.request == key}


def _calibrate_all(
    context: Context, requests: Sequence[_Request], device: Literal["cpu", "cuda"], *, time_limit: float
) -> Iterator[CalibrateEntry]:
    """Measure each Definition in a child of its own; entries come in the order of completion."""
    folders = kernel_caches()[1] if device == "cuda" else ()  # the kernels that are compiled there are no Solution's
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    limits = Limits(
        wall_seconds=time_limit,
        memory_bytes=_MEMORY[device],
        file_bytes=_FILE_BYTES,
        processes=_PROCESSES if device == "cuda" else 0,
        gpu=device == "cuda",
        writable=tuple(map(str, folders)),
    )
    context.progress(f"calibrating {len(requests)} Definitions on {device}", 0, len(requests))
    with _open_sandbox(device) as sandbox:
        payloads = (request.payload for request in requests)
        outcomes = sandbox.run_many(_ENTRY, payloads, jobs=_JOBS[device], limits=limits)
        for done, outcome in enumerate(outcomes, start=1):
            entry = _conclude(context, requests[outcome.index], outcome, device)
            context.progress(f"{entry.name}: {entry.status}", done, len(requests))
            yield entry


@contextmanager
def _open_sandbox(device: str) -> Iterator[Sandbox]:
    """Open the sandbox; with a GPU it is locked, and its jobs see the packages that kernels come from."""
    if device == "cpu":
        with Sandbox((*_PRELOAD, *list_modules())) as sandbox:
            yield sandbox
        return
    with open_gpu_sandbox((*_PRELOAD, *list_modules()), command="fib calibrate") as sandbox:
        yield sandbox


def _find_policies(definition: Definition) -> dict[str, Tolerance]:
    return find_tolerances(definition, find_kernel(definition))


def _make_payload(definition: Definition, device: str, seeds: int) -> dict[str, Any]:
    policies = _find_policies(definition)
    values = [name for name, policy in policies.items() if _is_measured(definition, name, policy)]
    truth = find_ground_truth(definition)
    # where only the GPU's own kernels count, those of a CPU would say nothing
    wrappers = truth.wrappers if device == "cuda" else ()
    return {
        "document": to_document(definition),
        "kernels": {wrapper.api: wrapper.source for wrapper in wrappers},
        "values": values,
        "same": [name for name, policy in policies.items() if policy.how == "values" and name not in values],
        "cases": _list_cases(definition, device, seeds),
        "caches": kernel_caches()[0] if device == "cuda" else {},
        "device": device,
    }


def _is_measured(definition: Definition, output: str, policy: Tolerance) -> bool:
    dtype = definition.outputs[output].dtype
    is_number = dtype is DType.BFLOAT16 or (dtype.value.startswith("float") and dtype is not DType.FLOAT4_E2M1)
    return is_number and policy.how == "values" and policy.rtol + policy.atol > 0


def _list_cases(definition: Definition, device: str, seeds: int) -> list[dict[str, Any]]:
    """List sizes, distributions and seeds; a source is broken at the first of each alone, which is most of the work."""
    cases = []
    for size in _SIZES[device]:
        try:
            axes = choose_test_axes(definition, size)
        except FormatError:
            continue  # constraints that no length of this size meets; if none fits, the child finds no case
        cases += [
            {
                "axes": axes,
                "seed": seed,
                "distribution": distribution.value,
                "breaks_source": seed == 0 and size == _SIZES[device][0],
            }
            for distribution in list_distributions(definition)
            for seed in range(seeds)
        ]
    return cases


def _conclude(context: Context, request: _Request, outcome: Outcome, device: Literal["cpu", "cuda"]) -> CalibrateEntry:
    """Choose the bounds from what the child says it measured, and keep them."""
    definition = request.definition
    try:
        calibration = _read(definition, outcome, device).model_copy(update={"request": request.key})
    except FibError as error:
        return _entry(definition, status="failed", reason=str(error))
    standing = find_calibration(context.workspace.root, definition)
    if standing is not None and standing.basis == "kernels" and calibration.basis == "policy":
        reason = "; ".join([*calibration.refused, "one that real kernels were measured for stays"])
        return _describe(definition, calibration).model_copy(update={"reason": reason})
    path = save_calibration(context.workspace.root, definition, calibration)
    return _describe(definition, calibration, status="calibrated").model_copy(update={"path": str(path)})


def _describe(
    definition: Definition, calibration: Calibration, status: Literal["calibrated", "kept"] = "kept"
) -> CalibrateEntry:
    outputs = calibration.outputs.values()
    shares = [share for output in outputs for share in output.trusted.values()]
    least = [output.least_fault for output in outputs if output.least_fault is not None]
    return _entry(
        definition,
        status="refused" if calibration.refused else status,
        reason="; ".join(calibration.refused),
        basis=calibration.basis,
        caught=sum(fault.state == "caught" for fault in calibration.faults),
        missed=tuple(fault.name for fault in calibration.faults if fault.state == "missed"),
        worst_trusted=max(shares, default=None),
        least_fault=min(least, default=None),
        calibration=calibration,
    )


def _read(definition: Definition, outcome: Outcome, device: Literal["cpu", "cuda"]) -> Calibration:
    """Read the child's answer.

    Raises:
        FibError: it failed, has no case that worked, or is not of the form it must have.
    """
    if outcome.error is not None:
        raise outcome.error
    answer = outcome.value or {}
    found = answer.get("cases")
    where = f"the measurement of {definition.name}"
    cases = [read_strict(Case, case, where=where) for case in found] if isinstance(found, list) else []
    notes = answer.get("unavailable")
    unavailable = {str(key): str(value) for key, value in notes.items()} if isinstance(notes, dict) else {}
    if not cases:
        raise FormatError(f"nothing could be measured: {next(iter(unavailable.values()), 'no case')}", where=where)
    libs = answer.get("libs")
    return calibrate(
        definition,
        _find_policies(definition),
        cases,
        device=device,
        unavailable=unavailable,
        gpu=str(answer.get("gpu", "")),
        libs={str(key): str(value) for key, value in libs.items()} if isinstance(libs, dict) else {},
    )
