"""A dataset that is ready to be submitted, by this project's own writers; only what a GPU would say is made up."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import bench_dataset
import tiny_model
from fib_tools.architecture.structure_schema import NotTraceable
from fib_tools.capture.collection.candidates import Candidate
from fib_tools.capture.collection.documents import make_draft, write_drafts
from fib_tools.dataset.store import Dataset
from fib_tools.evaluate.engines.items import hash_definition, hash_solution
from fib_tools.evaluate.engines.traces import write_results
from fib_tools.model.definition import Definition
from fib_tools.model.evidence import Evidence
from fib_tools.model.solution import BASELINE, Solution
from fib_tools.model.workload import Origin, Workload
from fib_tools.op_types.inputs import generate_inputs
from fib_tools.op_types.sizes import SIZES, choose_test_axes
from fib_tools.operations import get_operation
from fib_tools.phases import reference_tests, survey
from fib_tools.phases.baselines import write_baselines
from fib_tools.phases.context import Context, Workspace
from fib_tools.phases.manifests import find_manifest, save_manifest
from fib_tools.phases.reference_runs import TestRun
from fib_tools.phases.reference_test_file import find_ground_truth
from fib_tools.phases.reference_tests import write_or_run_tests

__all__ = [
    "EMBEDDING",
    "MODEL",
    "NORM",
    "add_traces",
    "add_workloads",
    "make_submittable",
    "make_workspace",
    "pass_tests",
]

MODEL = "tiny"
NORM, EMBEDDING = "rmsnorm_h64", "embedding_v128_d64"
"""The Definitions of `make_workspace`: one of a kernel that FlashInfer has, one of one that it lacks."""


_KERNEL_TEST = "test_the_kernel_agrees_with_the_reference"
_BYTES = 1 << 12


def make_workspace(folder: Path) -> None:
    """Make a workspace with a small model, two of its kernels onboarded and ready to be submitted."""
    context = Context(workspace=Workspace(root=folder / "work"), offline=True)
    config = {name: value for name, value in tiny_model.CONFIG.items() if value is not None}
    (folder / MODEL).mkdir()
    (folder / MODEL / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(survey, "_trace", lambda _config: NotTraceable(model_type="llama", reason="left out by the test"))
        options = {"model": str(folder / MODEL), "op_types": ("rmsnorm", "embedding")}
        get_operation("onboard").run(context, options)
    found = find_manifest(context.workspace, MODEL)
    assert found is not None
    kernels = tuple(kernel for kernel in found[1].kernels if kernel.name in {NORM, EMBEDDING})
    chosen = found[1].model_copy(update={"repo_id": "maker/tiny", "kernels": kernels})
    save_manifest(context.workspace, found[0], chosen)
    for path in [*context.dataset.root.glob("definitions/*/*.json")]:
        if path.stem not in {NORM, EMBEDDING}:
            path.unlink()
    make_submittable(context)


def make_submittable(context: Context, *, origin: Origin = "real") -> None:
    """Bring every Definition of a dataset to where it can be submitted."""
    write_or_run_tests(context, "write", all=True)
    pass_tests(context)
    write_baselines(context)
    for definition in context.dataset.load_definitions()[0].values():
        add_workloads(context.dataset, definition, origin=origin)
        add_traces(context.dataset, definition)


def pass_tests(context: Context) -> None:
    """Run the reference tests as on a GPU where each kernel agrees."""
    apis = {
        name: [wrapper.api for wrapper in find_ground_truth(definition).wrappers][:1]
        for name, definition in context.dataset.load_definitions()[0].items()
    }

    def run(files: Mapping[str, Path], **_options: Any) -> Iterator[TestRun]:
        for name in files:
            outcome = "passed" if apis[name] else "skipped"
            kernel = {"kernel": apis[name][0]} if apis[name] else {}
            record = {"test": _KERNEL_TEST, "outcome": outcome, "gpu": "NVIDIA H200", "metrics": ["all hit"], **kernel}
            yield TestRun(name=name, records=tuple({**record, "size": size} for size in SIZES))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference_tests, "run_tests", run)
        write_or_run_tests(context, "run", all=True, device="cuda")


def add_workloads(dataset: Dataset, definition: Definition, *, origin: Origin = "real") -> None:
    """Collect two Workloads, their index tensors in blobs."""
    drafts = []
    for size in SIZES[:2]:
        axes = choose_test_axes(definition, size)
        inputs = generate_inputs(definition, {**definition.const_axes, **axes}, byte_budget=_BYTES)
        whole = {name: value for name, value in inputs.items() if hasattr(value, "is_floating_point")}
        tensors = {
            name: value for name, value in whole.items() if not value.is_floating_point() and value.numel() < _BYTES
        }
        scalars = {name: inputs[name] for name, spec in definition.inputs.items() if spec.shape is None}
        candidate = Candidate(axes=axes, tensors=tensors, scalars=scalars, scales={}, features=(), count=3)
        drafts.append(make_draft(definition, candidate, origin))
    write_drafts(dataset, definition, drafts)


def add_traces(dataset: Dataset, definition: Definition, **changes: Any) -> None:
    """Measure the first baseline on every Workload."""
    solutions = [
        item for item in dataset.load_solutions(definition.op_type, definition.name) if item.author == BASELINE
    ]
    workloads = {item.uuid: item for item in dataset.load_workloads(definition.op_type, definition.name)}
    results = [
        _measure(definition, solution, item, changes) for solution in solutions[:1] for item in workloads.values()
    ]
    write_results(dataset, results, lambda _name, uuid: workloads[uuid])


def _measure(definition: Definition, solution: Solution, workload: Workload, changes: Mapping[str, Any]) -> Evidence:
    case = bench_dataset.Case(
        definition=definition.name,
        op_type=definition.op_type,
        author=BASELINE,
        solution=solution.name,
        axes=workload.axes,
        **changes,
    )
    evidence = bench_dataset.make_evidence(case)
    update = {
        "definition_hash": hash_definition(definition),
        "workload": workload.uuid,
        "solution_hash": hash_solution(solution),
    }
    return evidence.model_copy(update={"subject": evidence.subject.model_copy(update=update)})
