"""gemm_fp8: products of e4m3 matrices, scaled by block, by tensor, or by token and channel.

A kernel sums what it multiplies in float32 and applies the scales; the reference does the same, so that only the
order of the sum differs. Block scales as in DeepSeek-V3 (2024), section 3.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import dedent
from typing import Any, ClassVar

from pydantic import Field

from fib_tools.model.definition import Axis, Definition, TensorSpec
from fib_tools.model.naming import format_name
from fib_tools.op_types.base import (
    KernelType,
    MetaTensor,
    OpType,
    Parameters,
    TemplateCall,
    const,
    source,
    tensor,
    var,
)
from fib_tools.op_types.gemm_work import product_work
from fib_tools.op_types.ground_truth import BLACKWELL, HOPPER, HOPPER_ON, GroundTruth, Wrapper, no_kernel
from fib_tools.op_types.input_request import InputRequest
from fib_tools.op_types.low_bit import DECODE_E4M3, count_blocks, spread

__all__ = ["OP_TYPE", "GemmFp8BlockParameters", "GemmFp8Parameters"]

_FP8 = "float8_e4m3fn"
_ROWS = 4
_BLOCK_API = "flashinfer.gemm.gemm_base.gemm_fp8_nt_groupwise"


class GemmFp8Parameters(Parameters):
    """The size of a weight."""

    n: int = Field(gt=0)
    k: int = Field(gt=0)


class GemmFp8BlockParameters(GemmFp8Parameters):
    """The size of a weight, and of the blocks that share a scale."""

    silent: ClassVar[Mapping[str, Any]] = {"block_n": 128, "block_k": 128}

    block_n: int = Field(default=128, gt=0)
    block_k: int = Field(default=128, gt=0)


_BLOCK = """
    @torch.no_grad()
    def run(A, B, A_scale, B_scale):
        features = A.shape[-1]
        a = decode_e4m3(A) * A_scale.repeat_interleave(BLOCK_K, dim=-1)[:, :features]
        parts = []
        for rows, scale in zip(B.split(BLOCK_N), B_scale):
            scaled = a * scale.repeat_interleave(BLOCK_K)[:features]
            parts.append(scaled @ decode_e4m3(rows).T)
        return torch.cat(parts, dim=-1).to(torch.bfloat16)
"""

_TENSOR = """
    @torch.no_grad()
    def run(A, B, A_scale, B_scale):
        a = decode_e4m3(A)
        product = torch.cat([a @ decode_e4m3(rows).T for rows in B.split(128)], dim=-1)
        return (product * (A_scale * B_scale)).to(torch.bfloat16)
"""

_CHANNEL = """
    @torch.no_grad()
    def run(A, B, A_scale, B_scale):
        a = decode_e4m3(A)
        product = torch.cat([a @ decode_e4m3(rows).T for rows in B.split(128)], dim=-1)
        return (product * A_scale[:, None] * B_scale).to(torch.bfloat16)
"""


def _define(
    parameters: GemmFp8Parameters, kind: str, *, how: str, scales: Mapping[str, TensorSpec], body: str
) -> Definition:
    blocks: dict[str, Axis] = {}
    constraints = []
    constants = {}
    if isinstance(parameters, GemmFp8BlockParameters):
        n, k = parameters.block_n, parameters.block_k
        blocks = {
            "num_n_blocks": const(count_blocks(parameters.n, n), f"Blocks of {n} output features."),
            "num_k_blocks": const(count_blocks(parameters.k, k), f"Blocks of {k} input features."),
        }
        constraints = [f"num_n_blocks == (N + {n - 1}) // {n}", f"num_k_blocks == (K + {k - 1}) // {k}"]
        constants = {"BLOCK_N": n, "BLOCK_K": k}
    return Definition(
        name=format_name(kind, ("n", parameters.n), ("k", parameters.k)),
        description=f"Matrix multiplication of e4m3 numbers, C = A @ B.T, {how}.",
        op_type="gemm_fp8",
        axes={
            "M": var("Rows of A: tokens."),
            "N": const(parameters.n, "Output features."),
            "K": const(parameters.k, "Input features."),
            **blocks,
        },
        constraints=constraints,
        inputs={
            "A": tensor(_FP8, "M K", "The quantised activations."),
            "B": tensor(_FP8, "N K", "The quantised weight, one row for each output feature."),
            **scales,
        },
        outputs={"C": tensor("bfloat16", "M N", "The product.")},
        reference=source(dedent(DECODE_E4M3) + "\n" + dedent(body), **constants),
    )


def _define_block(parameters: GemmFp8BlockParameters) -> Definition:
    n, k = parameters.block_n, parameters.block_k
    return _define(
        parameters,
        "gemm_fp8_block_scale",
        how=f"with a scale for each 1x{k} block of A and each {n}x{k} block of B",
        scales={
            "A_scale": tensor("float32", "M num_k_blocks", f"What {k} values of a row of A are multiplied by."),
            "B_scale": tensor("float32", "num_n_blocks num_k_blocks", f"What a {n}x{k} block of B is multiplied by."),
        },
        body=_BLOCK,
    )


def _define_tensor(parameters: GemmFp8Parameters) -> Definition:
    return _define(
        parameters,
        "gemm_fp8",
        how="with one scale for A and one for B",
        scales={
            "A_scale": tensor("float32", "", "What A is multiplied by."),
            "B_scale": tensor("float32", "", "What B is multiplied by."),
        },
        body=_TENSOR,
    )


def _define_channel(parameters: GemmFp8Parameters) -> Definition:
    return _define(
        parameters,
        "gemm_fp8_channel",
        how="with a scale for each row of A (token) and each row of B (output channel)",
        scales={
            "A_scale": tensor("float32", "M", "What each row of A is multiplied by."),
            "B_scale": tensor("float32", "N", "What each row of B is multiplied by."),
        },
        body=_CHANNEL,
    )


def _block_template(parameters: GemmFp8BlockParameters) -> TemplateCall | None:
    """The API's other granularities leave no mark in the template."""
    n, k = parameters.block_n, parameters.block_k
    if (n, k) != (128, 128):
        return None
    columns = count_blocks(parameters.k, k)
    return TemplateCall(
        fi_api=_BLOCK_API,
        arguments={
            "a": MetaTensor(shape=(_ROWS, parameters.k), dtype=_FP8),
            "b": MetaTensor(shape=(parameters.n, parameters.k), dtype=_FP8),
            "a_scale": MetaTensor(shape=(_ROWS, columns), dtype="float32"),
            "b_scale": MetaTensor(shape=(count_blocks(parameters.n, n), columns), dtype="float32"),
        },
    )


def _weight_scale(request: InputRequest) -> Any:
    middle = request.axes.get("K", 1) ** -0.5
    return spread(0.5 * middle, 1.5 * middle)(request)


_BLOCK_HOPPER = """
    @torch.no_grad()
    def run(A, B, A_scale, B_scale):
        # The kernel's TMA reads the scales of A column by column, each column padded to four rows.
        rows = A.shape[0]
        columns = torch.zeros(A_scale.shape[1], (rows + 3) // 4 * 4, dtype=torch.float32, device=A.device)
        columns[:, :rows] = A_scale.T
        return fp8_blockscale_gemm_sm90(A, B, columns.T[:rows], B_scale, out_dtype=torch.bfloat16)
"""

_BLOCK_TRITON = """
    @torch.no_grad()
    def run(A, B, A_scale, B_scale):
        return w8a8_block_fp8_matmul_triton(A, B, A_scale, B_scale, [BLOCK_N, BLOCK_K], torch.bfloat16)
"""

_BLOCK_BLACKWELL = """
    @torch.no_grad()
    def run(A, B, A_scale, B_scale):
        return gemm_fp8_nt_groupwise(A, B, A_scale, B_scale, scale_major_mode="K", out_dtype=torch.bfloat16)
"""

_TENSOR_KERNEL = """
    @torch.no_grad()
    def run(A, B, A_scale, B_scale):
        product = flashinfer.bmm_fp8(
            A[None], B.T[None], A_scale.reshape(1), B_scale.reshape(1), torch.bfloat16, backend="cublas"
        )
        return product[0]
"""

_CHANNEL_KERNEL = """
    @torch.no_grad()
    def run(A, B, A_scale, B_scale):
        return sgl_kernel.fp8_scaled_mm(A, B.T, A_scale, B_scale, torch.bfloat16)
"""


def _block_ground_truth(parameters: GemmFp8BlockParameters) -> GroundTruth:
    blocks = (parameters.block_n, parameters.block_k)
    triton = "sglang.srt.layers.quantization.fp8_utils"  # the kernel moves from version to version; this keeps its name
    wrappers = [
        Wrapper(
            kind="sglang",
            api=f"{triton}.w8a8_block_fp8_matmul_triton",
            imports=(f"from {triton} import w8a8_block_fp8_matmul_triton",),
            constants={"BLOCK_N": blocks[0], "BLOCK_K": blocks[1]},
            body=_BLOCK_TRITON,
            capabilities=HOPPER_ON,
        )
    ]
    if blocks == (128, 128) and parameters.k % 128 == 0:
        wrappers = [_flashinfer_blocks("gemm_fp8_nt_groupwise", _BLOCK_BLACKWELL, BLACKWELL), *wrappers]
        if parameters.n % 64 == 0:
            wrappers = [_flashinfer_blocks("fp8_blockscale_gemm_sm90", _BLOCK_HOPPER, HOPPER), *wrappers]
    return GroundTruth(wrappers=tuple(wrappers))


def _flashinfer_blocks(name: str, body: str, capabilities: tuple[int, ...]) -> Wrapper:
    return Wrapper(
        kind="flashinfer",
        api=f"flashinfer.gemm.{name}",
        imports=(f"from flashinfer.gemm import {name}",),
        body=body,
        capabilities=capabilities,
    )


def _tensor_ground_truth(parameters: GemmFp8Parameters) -> GroundTruth:
    if parameters.n % 16 or parameters.k % 16:
        return no_kernel("cuBLAS takes e4m3 matrices whose sides are multiples of 16")
    return GroundTruth(
        wrappers=(
            Wrapper(
                kind="flashinfer",
                api="flashinfer.bmm_fp8",
                imports=("import flashinfer",),
                body=_TENSOR_KERNEL,
                capabilities=(89, *HOPPER_ON),
            ),
        )
    )


def _channel_ground_truth(parameters: GemmFp8Parameters) -> GroundTruth:
    if parameters.n % 16 or parameters.k % 16:
        return no_kernel("the kernel takes e4m3 matrices whose sides are multiples of 16")
    return GroundTruth(
        wrappers=(
            Wrapper(
                kind="sglang",
                api="sgl_kernel.fp8_scaled_mm",
                imports=("import sgl_kernel",),
                body=_CHANNEL_KERNEL,
                capabilities=(89, *HOPPER_ON),
            ),
        )
    )


OP_TYPE = OpType(
    name="gemm_fp8",
    kernels=(
        KernelType(
            id="gemm_fp8_block",
            op_type="gemm_fp8",
            summary="C = A @ B.T in e4m3, scaled by block",
            parameters=GemmFp8BlockParameters,
            define=_define_block,
            fi_api=_BLOCK_API,
            template=_block_template,
            sglang_symbols=(
                "deep_gemm.fp8_gemm_nt",
                "flashinfer.gemm.fp8_blockscale_gemm_sm90",
                "flashinfer.gemm.gemm_fp8_nt_groupwise",
                "sglang.kernels.ops.gemm.fp8_blockwise_gemm.fp8_blockwise_scaled_mm",
            ),
            ground_truth=_block_ground_truth,
        ),
        KernelType(
            id="gemm_fp8_tensor",
            op_type="gemm_fp8",
            summary="C = A @ B.T in e4m3, one scale each",
            parameters=GemmFp8Parameters,
            define=_define_tensor,
            fi_api="flashinfer.gemm.gemm_base.bmm_fp8",
            sglang_symbols=("flashinfer.bmm_fp8", "sglang.kernels.ops.gemm.fp8_scaled_mm", "torch._scaled_mm"),
            ground_truth=_tensor_ground_truth,
        ),
        KernelType(
            id="gemm_fp8_channel",
            op_type="gemm_fp8",
            summary="C = A @ B.T in e4m3, scaled by token and channel",
            parameters=GemmFp8Parameters,
            define=_define_channel,
            sglang_symbols=("sglang.kernels.ops.gemm.fp8_scaled_mm", "torch._scaled_mm"),
            ground_truth=_channel_ground_truth,
        ),
    ),
    input_rules={"A_scale": spread(0.5, 1.5), "B_scale": _weight_scale},
    input_code={
        "A_scale": "draw.uniform({shape}, 0.5, 1.5)",
        "B_scale": "draw.uniform({shape}, 0.5, 1.5) * {K}**-0.5",
    },
    axis_sizes={"M": 6},
    work=product_work,
)
