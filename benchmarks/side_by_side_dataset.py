"""The dataset of side_by_side.py: six Definitions with float inputs, a dozen Workloads and four Solutions each.

Of each Definition there are two Solutions of several torch kernels, one Triton kernel, and its twin: the same kernel
under another name, which must take the same time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fib_tools.dataset.store import Dataset
from fib_tools.model.definition import Definition
from fib_tools.model.solution import BuildSpec, Language, Solution, SourceFile
from fib_tools.model.trace import Trace
from fib_tools.model.workload import RandomInput, Workload, workload_uuid
from fib_tools.op_types.registry import get_kernel_type

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096, 8192)
Kernel = tuple[str, dict[str, int]]
KERNELS: tuple[Kernel, ...] = (
    ("rmsnorm", {"hidden_size": 7168}),
    ("rmsnorm", {"hidden_size": 128}),
    ("fused_add_rmsnorm", {"hidden_size": 4096}),
    ("layernorm", {"hidden_size": 4096}),
    ("silu_and_mul", {"intermediate_size": 4096}),
    ("gelu_and_mul", {"intermediate_size": 4096}),
)
TWIN = "triton_twin"

_HEAD = "import torch\nimport torch.nn.functional as F\n\n\n"
_TRITON = "import torch\nimport triton\nimport triton.language as tl\n\n\n@triton.jit\n"
_RMS = """def compute(x, w):
    f = x.float()
    return (f * torch.rsqrt(f.square().mean(-1, keepdim=True) + 1e-6) * w.float()).to(x.dtype)
"""
_TORCH = {
    "rmsnorm": ("hidden_states, weight", _RMS, "compute(hidden_states, weight)"),
    "fused_add_rmsnorm": (
        "hidden_states, residual, weight",
        _RMS.replace("x, w):\n    f = x.float()", "x, r, w):\n    f = x.float() + r.float()").replace(
            "    return (", "    y = ("
        )
        + "    return y, f.to(r.dtype)\n",
        "compute(hidden_states, residual, weight)",
    ),
    "layernorm": (
        "hidden_states, weight, bias",
        (
            "def compute(x, w, b):\n    f = x.float()\n    f = f - f.mean(-1, keepdim=True)\n"
            "    f = f * torch.rsqrt(f.square().mean(-1, keepdim=True) + 1e-5)\n"
            "    return (f * w.float() + b.float()).to(x.dtype)\n"
        ),
        "compute(hidden_states, weight, bias)",
    ),
    "silu_and_mul": (
        "input",
        "def compute(x):\n    a, b = x.float().chunk(2, dim=-1)\n    return (F.silu(a) * b).to(x.dtype)\n",
        "compute(input)",
    ),
    "gelu_and_mul": (
        "input",
        "def compute(x):\n    a, b = x.float().chunk(2, dim=-1)\n    return (F.gelu(a) * b).to(x.dtype)\n",
        "compute(input)",
    ),
}
_ROW = """    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    mask = at < width
    x = tl.load(X + row * width + at, mask=mask, other=0.0).to(tl.float32)
"""
_GATED = """    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = at < width
    a = tl.load(X + row * 2 * width + at, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(X + row * 2 * width + width + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(Y + row * width + at, (GATE * b).to(Y.dtype.element_ty), mask=mask)


def run(input, output):
    rows, width = output.shape
    kernel[(rows, triton.cdiv(width, 1024))](input, output, width, BLOCK=1024, num_warps=4)
"""
_KERNELS = {
    "rmsnorm": _TRITON
    + "def kernel(X, W, Y, width, BLOCK: tl.constexpr):\n"
    + _ROW
    + """    scale = tl.rsqrt(tl.sum(x * x) / width + 1e-6)
    w = tl.load(W + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(Y + row * width + at, (x * scale * w).to(Y.dtype.element_ty), mask=mask)


def run(hidden_states, weight, output):
    rows, width = hidden_states.shape
    block = triton.next_power_of_2(width)
    kernel[(rows,)](hidden_states, weight, output, width, BLOCK=block, num_warps=min(8, max(1, block // 512)))
""",
    "fused_add_rmsnorm": _TRITON
    + "def kernel(X, R, W, Y, S, width, BLOCK: tl.constexpr):\n"
    + _ROW
    + """    x += tl.load(R + row * width + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(S + row * width + at, x.to(S.dtype.element_ty), mask=mask)
    scale = tl.rsqrt(tl.sum(x * x) / width + 1e-6)
    w = tl.load(W + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(Y + row * width + at, (x * scale * w).to(Y.dtype.element_ty), mask=mask)


def run(hidden_states, residual, weight, output, residual_output):
    rows, width = hidden_states.shape
    block = triton.next_power_of_2(width)
    kernel[(rows,)](hidden_states, residual, weight, output, residual_output, width, BLOCK=block, num_warps=8)
""",
    "layernorm": _TRITON
    + "def kernel(X, W, B, Y, width, BLOCK: tl.constexpr):\n"
    + _ROW
    + """    x = tl.where(mask, x - tl.sum(x) / width, 0.0)
    scale = tl.rsqrt(tl.sum(x * x) / width + 1e-5)
    w = tl.load(W + at, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(B + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(Y + row * width + at, (x * scale * w + b).to(Y.dtype.element_ty), mask=mask)


def run(hidden_states, weight, bias, output):
    rows, width = hidden_states.shape
    kernel[(rows,)](hidden_states, weight, bias, output, width, BLOCK=triton.next_power_of_2(width), num_warps=8)
""",
    "silu_and_mul": _TRITON
    + "def kernel(X, Y, width, BLOCK: tl.constexpr):\n"
    + _GATED.replace("GATE", "a * tl.sigmoid(a)"),
    "gelu_and_mul": _TRITON
    + "def kernel(X, Y, width, BLOCK: tl.constexpr):\n"
    + _GATED.replace("GATE", "0.5 * a * (1 + tl.erf(a * 0.7071067811865476))"),
}


def list_solutions(kernel: str, definition: Definition) -> list[Solution]:
    """Make the four Solutions of a Definition."""
    parameters, compute, call = _TORCH[kernel]
    outputs = ", ".join(definition.outputs)
    returns = f"{_HEAD}{compute}\n\ndef run({parameters}):\n    return {call}\n"
    copies = "\n".join(f"    {name}.copy_(made[{at}])" for at, name in enumerate(definition.outputs))
    made = f"made = {call}" if len(definition.outputs) > 1 else f"made = ({call},)"
    writes = f"{_HEAD}{compute}\n\ndef run({parameters}, {outputs}):\n    {made}\n{copies}\n"
    triton = _KERNELS[kernel]
    return [
        _solution("torch_returns", definition, Language.PYTHON, returns, writes=False),
        _solution("torch_writes", definition, Language.PYTHON, writes, writes=True),
        _solution("triton", definition, Language.TRITON, triton, writes=True),
        _solution(TWIN, definition, Language.TRITON, triton + "\n", writes=True),
    ]


def _solution(name: str, definition: Definition, language: Language, source: str, *, writes: bool) -> Solution:
    spec = BuildSpec(
        language=language,
        target_hardware=["cuda"],
        entry_point="main.py::run",
        destination_passing_style=writes,
    )
    return Solution(
        name=f"{name}_{definition.name}",
        definition=definition.name,
        author="bench",
        spec=spec,
        sources=[SourceFile(path="main.py", content=source)],
    )


def write_dataset(root: Path, rows: Sequence[int] = ROWS, kernels: Sequence[Kernel] = KERNELS) -> int:
    """Write the Definitions, each with a Workload for each number of rows; give the number of evaluations."""
    (root / "definitions").mkdir(parents=True)
    dataset = Dataset(root)
    for kernel, parameters in kernels:
        definition = get_kernel_type(kernel).build(parameters)
        dataset.write_definition(definition)
        inputs = {name: RandomInput() for name in definition.inputs}
        traces = []
        for length in rows:
            axes = dict.fromkeys(definition.var_axes, length)
            uuid = workload_uuid(definition.name, axes, inputs)
            traces.append(Trace(definition=definition.name, workload=Workload(axes=axes, inputs=inputs, uuid=uuid)))
        dataset.write_workloads(definition.op_type, traces)
        for solution in list_solutions(kernel, definition):
            dataset.write_solution(definition.op_type, solution)
    return 4 * len(kernels) * len(rows)
