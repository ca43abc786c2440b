"""gemm_w4a16: a product with a weight of 4-bit integers, in groups that share a scale.

The packing is that of compressed-tensors' `pack-quantized`: eight values to an int32, the first in the lowest bits,
each stored as value + 8. FlashInfer has no such product.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from fib_tools.model.definition import Definition
from fib_tools.model.naming import format_name
from fib_tools.op_types.base import KernelType, OpType, Parameters, const, source, tensor, var
from fib_tools.op_types.gemm_work import product_work
from fib_tools.op_types.input_request import InputRequest
from fib_tools.op_types.low_bit import INT4_RMS, count_blocks, packed_bytes, spread

__all__ = ["OP_TYPE", "GemmW4a16Parameters"]

_PER_WORD = 8


class GemmW4a16Parameters(Parameters):
    """The size of a weight, and how many input features share a scale."""

    n: int = Field(gt=0)
    k: int = Field(gt=0, multiple_of=_PER_WORD)
    group_size: int = Field(default=128, gt=0)


_W4A16 = """
    @torch.no_grad()
    def run(A, B, B_scale):
        a = A.to(torch.float32)
        shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=B.device)
        parts = []
        for words, scale in zip(B.split(128), B_scale.split(128)):
            values = ((words[..., None] >> shifts & 15) - 8).flatten(-2).to(torch.float32)
            factor = scale.to(torch.float32).repeat_interleave(GROUP_SIZE, dim=-1)[:, : values.shape[-1]]
            parts.append(a @ (values * factor).T)
        return torch.cat(parts, dim=-1).to(A.dtype)
"""


def _define(parameters: GemmW4a16Parameters) -> Definition:
    k, group = parameters.k, parameters.group_size
    return Definition(
        name=format_name("gemm_w4a16", ("g", group), ("n", parameters.n), ("k", k)),
        description=(
            f"Matrix multiplication with a weight of 4-bit integers: C = A @ B.T, with a scale for {group} values of B. "
            "Eight values to an int32, the first in the lowest bits, each stored as value + 8."
        ),
        op_type="gemm_w4a16",
        axes={
            "M": var("Rows of A: tokens."),
            "N": const(parameters.n, "Output features."),
            "K": const(k, "Input features."),
            "K_packed": const(k // _PER_WORD, "Words of a row."),
            "num_groups": const(count_blocks(k, group), "Scales of a row."),
        },
        constraints=[f"K_packed == K // {_PER_WORD}", f"num_groups == (K + {group - 1}) // {group}"],
        inputs={
            "A": tensor("bfloat16", "M K", "The activations."),
            "B": tensor("int32", "N K_packed", "The packed weight, one row for each output feature."),
            "B_scale": tensor("bfloat16", "N num_groups", f"What {group} values of a row of B are multiplied by."),
        },
        outputs={"C": tensor("bfloat16", "M N", "The product.")},
        reference=source(_W4A16, GROUP_SIZE=group),
    )


def _scale(request: InputRequest) -> Any:
    middle = request.axes.get("K", 1) ** -0.5 / INT4_RMS
    return spread(0.5 * middle, 1.5 * middle)(request)


OP_TYPE = OpType(
    name="gemm_w4a16",
    kernels=(
        KernelType(
            id="gemm_w4a16",
            op_type="gemm_w4a16",
            summary="C = A @ B.T with 4-bit integer weights",
            parameters=GemmW4a16Parameters,
            define=_define,
            sglang_symbols=("sglang.kernels.ops.gemm.gptq_marlin.gptq_marlin_gemm",),
        ),
    ),
    input_rules={"B": packed_bytes, "B_scale": _scale},
    packed=frozenset({"B"}),
    axis_sizes={"M": 6},
    work=product_work,
)
