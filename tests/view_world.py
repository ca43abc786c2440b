"""A small dataset with everything that `fib view` shows, the hostile and the broken included."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import example_dataset
from bench_dataset import CPU, HOSTILE, Case, sample_cases, write_cases
from example_timeline import make_timeline
from fib_tools.capture.perfetto import format_trace
from fib_tools.dataset.store import Dataset
from fib_tools.model.canonical import canonical_bytes
from fib_tools.model.definition import Definition
from fib_tools.model.manifest import FiStatus, Manifest, ManifestKernel, Phase1Status, SglStatus
from fib_tools.model.trace import Trace
from fib_tools.op_types.registry import get_kernel_type

NORM = "rmsnorm_h7168"
GEMM = "gemm_n7168_k2048"
ODD = "<img src=x onerror=alert(1)>"
"""The name of a file; no page can have it."""


def make_definitions() -> list[Definition]:
    """Make a few real ones, two of them of a model that the package knows."""
    built = [
        get_kernel_type("rmsnorm").build({"hidden_size": 7168, "eps": 1e-6}),
        get_kernel_type("gemm").build({"n": 7168, "k": 2048}),
        get_kernel_type("silu_and_mul").build({"intermediate_size": 2048}),
    ]
    tags = ["model:kimi-k2", "tp:8", "status:verified"]
    return [each.model_copy(update={"tags": [*each.tags, *tags]}) for each in built]


def make_hostile(name: str = HOSTILE) -> dict[str, Any]:
    """Make a Definition that says everywhere what must not run."""
    return {
        **example_dataset.DEFINITION,
        "name": name,
        "description": HOSTILE,
        "tags": [f"model:{HOSTILE}", f"fi_api:{HOSTILE}", HOSTILE, "status:javascript:alert(1)"],
        "axes": {
            "rows": {"type": "var", "description": HOSTILE},
            "len_indptr": {"type": "var"},
            "n": {"type": "const", "value": 4},
        },
        "reference": f"# {HOSTILE}\ndef run(x, indptr, scale):\n    return {HOSTILE!r}\n",
    }


def write_world(root: Path) -> Path:
    """Write a workspace: dataset, manifest, trace; give its folder."""
    data = root / "flashinfer-trace"
    dataset = Dataset(data)
    cases = [case for case in sample_cases() if case.definition in {NORM, GEMM, "silu_and_mul_i2048"}]
    other = [replace(case, gpu=CPU) for case in cases if case.author == "ana" and case.definition == NORM]
    write_cases(data, [*cases, *other])
    for definition in make_definitions():
        dataset.write_definition(definition)
        own = {case.uuid: case for case in cases if case.definition == definition.name}
        _write_workloads(dataset, definition, list(own.values()))
        for author, name in sorted(
            {(case.author, case.solution) for case in cases if case.definition == definition.name}
        ):
            _write_solution(data, definition.op_type, definition.name, author, name, definition.reference)
    _write_hostile(data)
    example_dataset.write(data, "definitions/copy/broken.json", "{")
    (root / "onboard_kimi-k2_2026-11-22.json").write_bytes(canonical_bytes(make_manifest()))
    (root / "traces").mkdir()
    (root / "traces" / "kimi-k2_layer0.pftrace").write_bytes(
        format_trace(make_timeline(layers=1, modules=1, operators=2))
    )
    return root


def _write_workloads(dataset: Dataset, definition: Definition, cases: list[Case]) -> None:
    workloads = [
        case.workload.model_copy(update={"count": 1 << place, "origin": ("real", "dummy", "synthetic")[place % 3]})
        for place, case in enumerate(sorted(cases, key=lambda case: case.axes["batch_size"], reverse=True))
    ]
    dataset.write_workloads(
        definition.op_type, [Trace(definition=definition.name, workload=workload) for workload in workloads]
    )


def _write_solution(data: Path, op_type: str, definition: str, author: str, name: str, source: str) -> None:
    document = {
        **example_dataset.SOLUTION,
        "name": name,
        "author": author,
        "definition": definition,
        "description": "Computes it.",
        "sources": [
            {"path": "main.py", "content": source},
            {"path": "kernel.cu", "content": "__global__ void f() {}\n"},
        ],
    }
    example_dataset.write(data, f"solutions/{author}/{op_type}/{definition}/{name}.json", document)


def _write_hostile(data: Path) -> None:
    for file, name in (("hostile", HOSTILE), (ODD, ODD)):
        example_dataset.write(data, f"definitions/copy/{file}.json", make_hostile(name))
    workload = {**example_dataset.WORKLOAD, "uuid": HOSTILE}
    example_dataset.write(data, "workloads/copy/hostile.jsonl", [{"definition": HOSTILE, "workload": workload}])
    _write_solution(data, "copy", "hostile", "ana", "hostile", f"# {HOSTILE}\ndef run():\n    '''</pre></code>'''\n")
    line = {"definition": HOSTILE, "workload": workload, "solution": HOSTILE, "evaluation": example_dataset.EVALUATION}
    example_dataset.write(data, "traces/ana/copy/hostile.jsonl", [line])


def make_manifest() -> Manifest:
    """Make one of two kernels, of which the dataset has one."""
    common: dict[str, Any] = {
        "tp": (8,),
        "ep": (1,),
        "phase1_status": Phase1Status.NEW,
        "fi_status": FiStatus.SUPPORTED,
        "fi_trace_template": True,
        "sgl_status": SglStatus.INTEGRATED,
    }
    modules = "model.layers.*.input_layernorm, model.layers.*.post_attention_layernorm"
    norm = ManifestKernel(
        name=NORM, op_type="rmsnorm", kernel="rmsnorm", parameters={}, module=modules, layers=61, **common
    )
    missing = ManifestKernel(
        name="gemm_n1_k1", op_type="gemm", kernel="gemm", parameters={}, module="lm_head", **{**common, "tp": (2, 8)}
    )
    serving = ("tp8 on H200 (sgl-cookbook)",)
    return Manifest(model="kimi-k2", repo_id="moonshotai/Kimi-K2-Instruct", kernels=(norm, missing), serving=serving)
