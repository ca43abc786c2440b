"""A dataset of some size for `view.py`: models onboarded by the product, with Workloads, Solutions and Traces.

Definitions, tags, manifests and baselines are the product's own. Workloads have the sizes of the reference tests'
axes; the Solutions of other authors and all times are made up, and are no figures of a GPU.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from bench_dataset import Case, make_evidence  # noqa: E402  # the path must be there first
from fib_tools.dataset.layout import Kind, Location  # noqa: E402
from fib_tools.dataset.store import Dataset  # noqa: E402
from fib_tools.errors import FormatError  # noqa: E402
from fib_tools.evaluate.engines.traces import make_trace  # noqa: E402
from fib_tools.model.canonical import canonical_bytes, format_line  # noqa: E402
from fib_tools.model.definition import Definition, TensorSpec  # noqa: E402
from fib_tools.model.solution import BASELINE, BuildSpec, Language, Solution, SourceFile  # noqa: E402
from fib_tools.model.trace import EvaluationStatus, Trace  # noqa: E402
from fib_tools.model.workload import Workload, workload_uuid  # noqa: E402
from fib_tools.op_types.axes import choose_axes  # noqa: E402
from fib_tools.op_types.size_workloads import describe_inputs  # noqa: E402
from fib_tools.operations import get_operation  # noqa: E402
from fib_tools.phases.context import Context, Workspace  # noqa: E402

__all__ = ["MODELS", "fill_dataset", "onboard_models"]

MODELS = (
    "kimi-k2",
    "deepseek-v3",
    "qwen3-30b-a3b",
    "llama-3.1-8b",
    "qwen3-235b-a22b",
    "gpt-oss-120b",
    "llama-3.1-70b",
    "glm-4.5",
    "mixtral-8x7b",
    "gemma-3-27b",
    "qwen3-next-80b-a3b",
    "llama-4-scout-17b-16e",
    "nemotron-h-56b",
    "minimax-m2.7",
    "deepseek-v4-flash",
    "qwen3-32b",
    "mimo-v2-flash",
    "exaone-4.0-32b",
    "phi-4",
    "glm-5",
)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
_FREE = ("batch_size", "num_seqs", "num_tokens", "total_q", "seq_len", "M", "m", "nnz")
_AUTHORS = {BASELINE: 0.72, "claude-opus": 0.84, "gpt": 0.61}
_BYTES = {"float32": 4, "int32": 4, "int64": 8, "float8_e4m3fn": 1, "float8_e5m2": 1, "int8": 1, "bool": 1}
_SOURCE = '''"""{name}: one program a row, {width} elements at a time."""

import torch
import triton
import triton.language as tl


@triton.jit
def _kernel(x, out, stride, width, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    kept = at < width
    values = tl.load(x + row * stride + at, mask=kept, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, axis=0) / width + 1e-6)
    tl.store(out + row * stride + at, (values * scale).to(out.dtype.element_ty), mask=kept)


def run({inputs}):
    rows, width = {first}.shape[0], {first}.shape[-1]
    out = torch.empty_like({first})
    _kernel[(rows,)]({first}, out, {first}.stride(0), width, BLOCK=triton.next_power_of_2(width), num_warps=8)
    return out
'''


@dataclass(frozen=True, kw_only=True)
class _Case(Case):
    """A case on a Workload of the dataset."""

    given: Workload

    @property
    def uuid(self) -> str:
        return self.given.uuid

    @property
    def workload(self) -> Workload:
        return self.given


def onboard_models(workspace: Path, wanted: int, say: Callable[[str], None]) -> int:
    """Onboard models one after the other until there are so many Definitions; give their number."""
    context = Context(workspace=Workspace(root=workspace), offline=True)
    count = 0
    for model in MODELS:
        get_operation("onboard").run(context, {"model": model})
        count = sum(1 for _ in context.dataset.definition_files())
        say(f"{model}: {count} Definitions")
        if count >= wanted:
            break
    get_operation("baselines").run(context, {})
    return count


def fill_dataset(dataset: Dataset, definitions: int) -> dict[str, int]:
    """Write Workloads, Solutions and Traces for the first Definitions, drop those over the number; give counts."""
    counts = {"workloads": 0, "solutions": 0, "traces": 0}
    for place, file in enumerate(list(dataset.definition_files())):
        if place >= definitions:
            file.path.unlink()
            continue
        definition = dataset.load_definition(file.relative)
        lots = random.Random(definition.name)
        workloads = list(_make_workloads(definition, lots))
        if workloads:
            lines = [Trace(definition=definition.name, workload=each) for each in workloads]
            dataset.write_workloads(definition.op_type, lines)
        counts["workloads"] += len(workloads)
        counts["traces"] += _write_traces(dataset, definition, workloads, lots)
        counts["solutions"] += len(dataset.load_solutions(definition.op_type, definition.name))
    return counts


def _make_workloads(definition: Definition, lots: random.Random) -> Iterator[Workload]:
    free = next((name for name in _FREE if name in definition.var_axes), None)
    inputs = describe_inputs(definition)
    for size in _SIZES if free else ():
        try:
            axes = choose_axes(definition, {str(free): size, "num_kv_indices": size * 37, "num_pages": size * 40})
        except FormatError:
            continue
        own = {name: axes[name] for name in definition.var_axes}
        yield Workload(
            axes=own,
            inputs=inputs,
            uuid=workload_uuid(definition.name, own, inputs),
            count=max(1, int(lots.paretovariate(0.7) * 4096 / size)),
            origin=lots.choice(("real", "real", "dummy", "synthetic")),
        )


def _write_traces(dataset: Dataset, definition: Definition, workloads: list[Workload], lots: random.Random) -> int:
    count = 0
    for author, skill in _AUTHORS.items():
        if author != BASELINE and lots.random() < 0.4:
            continue
        solution = _find_solution(dataset, definition, author)
        if solution is None:
            continue
        lines = []
        for workload in workloads:
            evidence = make_evidence(_make_case(definition, workload, author, solution, skill, lots))
            at = str(Location(kind=Kind.EVIDENCE, file=evidence.key))
            path = dataset.root / at
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(canonical_bytes(evidence))
            lines.append(format_line(make_trace(evidence, workload)))
        at_traces = Location(kind=Kind.TRACES, author=author, op_type=definition.op_type, definition=definition.name)
        dataset.write_traces(at_traces, lines)
        count += len(lines)
    return count


def _find_solution(dataset: Dataset, definition: Definition, author: str) -> str | None:
    if author == BASELINE:
        own = [each for each in dataset.load_solutions(definition.op_type, definition.name) if each.author == author]
        return own[0].name if own else None
    first = next(name for name, spec in definition.inputs.items() if spec.shape is not None)
    words = {"name": definition.name, "width": "4096", "inputs": ", ".join(definition.inputs), "first": first}
    source = _SOURCE.format(**words)
    solution = Solution(
        name=f"triton_rows_{definition.op_type}",
        definition=definition.name,
        author=author,
        description="One program a row; the row stays in registers.",
        spec=BuildSpec(
            language=Language.TRITON,
            target_hardware=["sm90"],
            entry_point="main.py::run",
            destination_passing_style=False,
        ),
        sources=[SourceFile(path="main.py", content=source)],
    )
    dataset.write_solution(definition.op_type, solution)
    return solution.name


def _make_case(
    definition: Definition, workload: Workload, author: str, solution: str, skill: float, lots: random.Random
) -> _Case:
    axes = {**definition.const_axes, **workload.axes}
    flops = 2 * math.prod(axes.get(name, 1) for name in ("M", "N", "K", "B")) if {"M", "N", "K"} <= axes.keys() else 0
    fails = author != BASELINE and lots.random() < 0.03
    return _Case(
        definition=definition.name,
        op_type=definition.op_type,
        author=author,
        solution=solution,
        axes=workload.axes,
        percent=min(97.0, 100 * skill * lots.uniform(0.6, 1.12)),
        bytes=max(256, _count_bytes(definition, axes)),
        flops=flops,
        status=EvaluationStatus.INCORRECT_NUMERICAL if fails else EvaluationStatus.PASSED,
        detail="output[0, 3]: 0.0, the reference has 1.37; 4096 of 8192 values are outside" if fails else "",
        overhead_ms=0.0016 * lots.uniform(0.8, 1.6),
        given=workload,
    )


def _count_bytes(definition: Definition, axes: Mapping[str, int]) -> int:
    def size(spec: TensorSpec) -> int:
        return _BYTES.get(spec.dtype.value, 2) * math.prod(axes[name] for name in spec.shape or ())

    return sum(size(spec) for spec in (*definition.inputs.values(), *definition.outputs.values()))
