"""A small dataset to be benchmarked on a CPU: one Definition, two Workloads, and Solutions by name and source."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fib_tools.dataset.store import Dataset
from fib_tools.model.definition import Definition
from fib_tools.model.solution import BuildSpec, Language, Solution, SourceFile
from fib_tools.model.trace import Trace
from fib_tools.model.workload import RandomInput, Workload, workload_uuid
from fib_tools.op_types.registry import get_kernel_type

HONEST = """
import torch

def run(hidden_states, weight):
    x = hidden_states.float()
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
    return (x * weight.float()).to(hidden_states.dtype)
"""
DESTINATION = (
    HONEST.replace("weight):", "weight, output):").replace(
        "return (x * weight.float())", "output.copy_((x * weight.float())"
    )
    + ")"
)
HALF_ROW = HONEST.replace("x.square()", "x[..., : x.shape[-1] // 2].square()")
REMEMBERS = (
    HONEST.replace("def run(", "def compute(")
    + """
known = {}

def run(hidden_states, weight):
    key = hidden_states.shape
    if key not in known:
        known[key] = compute(hidden_states, weight)
    return known[key].clone()
"""
)


def norm(hidden_size: int = 64) -> Definition:
    return get_kernel_type("rmsnorm").build({"hidden_size": hidden_size})


def solution(
    name: str, source: str, *, author: str = "someone", destination: bool = False, definition: str = "rmsnorm_h64"
) -> Solution:
    spec = BuildSpec(
        language=Language.PYTHON,
        target_hardware=["cpu"],
        entry_point="main.py::run",
        destination_passing_style=destination,
    )
    return Solution(
        name=name, definition=definition, author=author, spec=spec, sources=[SourceFile(path="main.py", content=source)]
    )


def write_dataset(root: Path, sources: Mapping[str, str], sizes: tuple[int, ...] = (3, 8)) -> Dataset:
    """Write the Definition, a Workload for each size, and a Solution for each source."""
    (root / "definitions").mkdir(parents=True)
    dataset, definition = Dataset(root), norm()
    dataset.write_definition(definition)
    dataset.write_workloads(
        definition.op_type, [Trace(definition=definition.name, workload=workload(size)) for size in sizes]
    )
    for name, source in sources.items():
        dataset.write_solution(definition.op_type, solution(name, source, destination="output)" in source))
    return dataset


def workload(size: int) -> Workload:
    definition = norm()
    inputs = {name: RandomInput() for name in definition.inputs}
    axes = {"batch_size": size}
    return Workload(axes=axes, inputs=inputs, uuid=workload_uuid(definition.name, axes, inputs))
