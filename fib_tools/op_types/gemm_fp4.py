"""gemm_fp4: products of NVFP4 matrices.

FlashInfer's mm_fp4 has a trace template, but none that describes this: it gives the packed and the plain K the same
name, and its reference does not decode e2m1.
"""

from __future__ import annotations

from textwrap import dedent
from typing import Any

from pydantic import Field

from fib_tools.model.definition import Definition
from fib_tools.model.naming import format_name
from fib_tools.op_types.base import KernelType, OpType, Parameters, const, source, tensor, var
from fib_tools.op_types.gemm_work import product_work
from fib_tools.op_types.ground_truth import BLACKWELL, GroundTruth, Wrapper, no_kernel
from fib_tools.op_types.input_request import InputRequest
from fib_tools.op_types.low_bit import DECODE_E2M1, E2M1_RMS, packed_bytes, spread

__all__ = ["OP_TYPE", "GemmNvfp4Parameters"]

_GROUP = 16


class GemmNvfp4Parameters(Parameters):
    """The size of a weight."""

    n: int = Field(gt=0)
    k: int = Field(gt=0, multiple_of=_GROUP)


_NVFP4 = """
    def decode_halves(packed, scale):
        # The low half of a byte is an even feature, the high half the odd one after it.
        codes = packed.view(torch.uint8).to(torch.int16)
        factor = scale.to(torch.float32).repeat_interleave(8, dim=-1)
        return decode_e2m1(codes & 15) * factor, decode_e2m1(codes >> 4) * factor


    @torch.no_grad()
    def run(A, B, A_scale, B_scale, alpha):
        even, odd = decode_halves(A, A_scale)
        parts = []
        for rows, scale in zip(B.split(128), B_scale.split(128)):
            low, high = decode_halves(rows, scale)
            parts.append(even @ low.T + odd @ high.T)
        return (torch.cat(parts, dim=-1) * alpha).to(torch.bfloat16)
"""


def _define(parameters: GemmNvfp4Parameters) -> Definition:
    return Definition(
        name=format_name("gemm_nvfp4", ("n", parameters.n), ("k", parameters.k)),
        description=(
            "Matrix multiplication of NVFP4 numbers: C = alpha * A @ B.T. "
            "Values are e2m1, two to a byte, the first in the low half; the scales of 16 values lie row by row."
        ),
        op_type="gemm_fp4",
        axes={
            "M": var("Rows of A: tokens."),
            "N": const(parameters.n, "Output features."),
            "K": const(parameters.k, "Input features."),
            "K_packed": const(parameters.k // 2, "Bytes of a row."),
            "num_k_blocks": const(parameters.k // _GROUP, "Scales of a row."),
        },
        constraints=["K_packed == K // 2", f"num_k_blocks == K // {_GROUP}"],
        inputs={
            "A": tensor("int8", "M K_packed", "The quantised activations."),
            "B": tensor("int8", "N K_packed", "The quantised weight, one row for each output feature."),
            "A_scale": tensor("float8_e4m3fn", "M num_k_blocks", "What 16 values of a row of A are multiplied by."),
            "B_scale": tensor("float8_e4m3fn", "N num_k_blocks", "What 16 values of a row of B are multiplied by."),
            "alpha": tensor("float32", "", "The product of both matrices' scales over all."),
        },
        outputs={"C": tensor("bfloat16", "M N", "The product.")},
        reference=source(dedent(DECODE_E2M1) + "\n" + dedent(_NVFP4)),
    )


_KERNEL = """
    def interleave(scale):
        # The kernel reads scales in tiles of 128 x 4; an engine's quantiser and loader write them so.
        tiles = flashinfer.nvfp4_block_scale_interleave(scale.view(torch.uint8))
        return tiles.reshape(-1, -(-scale.shape[1] // 4) * 4)


    @torch.no_grad()
    def run(A, B, A_scale, B_scale, alpha):
        return flashinfer.mm_fp4(
            A.view(torch.uint8), B.view(torch.uint8).T, interleave(A_scale), interleave(B_scale).T, alpha.reshape(1),
            torch.bfloat16,
        )
"""
_TILE = 64


def _ground_truth(parameters: GemmNvfp4Parameters) -> GroundTruth:
    blackwell = "FlashInfer's mm_fp4 needs Blackwell (sm_100 and later)"
    if parameters.n % _TILE or parameters.k % _TILE:
        return no_kernel(f"{blackwell}, and n and k of multiples of {_TILE}")
    wrapper = Wrapper(
        kind="flashinfer",
        api="flashinfer.mm_fp4",
        imports=("import flashinfer",),
        body=_KERNEL,
        capabilities=BLACKWELL,
    )
    return GroundTruth(wrappers=(wrapper,), reason=blackwell)


def _alpha(request: InputRequest) -> Any:
    middle = request.axes.get("K", 1) ** -0.5 / E2M1_RMS**2
    return spread(0.5 * middle, 1.5 * middle)(request)


OP_TYPE = OpType(
    name="gemm_fp4",
    kernels=(
        KernelType(
            id="gemm_nvfp4",
            op_type="gemm_fp4",
            summary="C = alpha * A @ B.T in NVFP4",
            parameters=GemmNvfp4Parameters,
            define=_define,
            fi_api="flashinfer.gemm.gemm_base.mm_fp4",
            sglang_symbols=("flashinfer.mm_fp4",),
            ground_truth=_ground_truth,
        ),
    ),
    input_rules={
        "A": packed_bytes,
        "B": packed_bytes,
        "A_scale": spread(0.5, 1.5),
        "B_scale": spread(0.5, 1.5),
        "alpha": _alpha,
    },
    axis_sizes={"M": 6},
    work=product_work,
)
