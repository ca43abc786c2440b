"""gemm: matrix products of unquantised numbers, plain and batched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from fib_tools.model.definition import Definition, TensorSpec
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
from fib_tools.op_types.ground_truth import GroundTruth, Wrapper
from fib_tools.op_types.input_request import InputRequest

__all__ = ["OP_TYPE", "BmmParameters", "GemmParameters"]

_ROWS = 4
_MM_API = "flashinfer.gemm.gemm_base.mm_bf16"
_BMM_API = "flashinfer.gemm.gemm_base.bmm_bf16"


class GemmParameters(Parameters):
    """The size of a weight, and whether a bias follows."""

    silent: ClassVar[Mapping[str, Any]] = {"dtype": "bfloat16"}

    n: int = Field(gt=0)
    k: int = Field(gt=0)
    bias: bool = False
    dtype: str = "bfloat16"


class BmmParameters(Parameters):
    """The size of a batch of weights."""

    silent: ClassVar[Mapping[str, Any]] = {"dtype": "bfloat16"}

    b: int = Field(gt=0)
    n: int = Field(gt=0)
    k: int = Field(gt=0)
    dtype: str = "bfloat16"


_GEMM = """
    @torch.no_grad()
    def run(A, B):
        a = A.to(torch.float32)
        return torch.cat([a @ rows.to(torch.float32).T for rows in B.split(4096)], dim=-1).to(A.dtype)
"""

_GEMM_BIAS = """
    @torch.no_grad()
    def run(A, B, bias):
        a = A.to(torch.float32)
        product = torch.cat([a @ rows.to(torch.float32).T for rows in B.split(4096)], dim=-1)
        return (product + bias.to(torch.float32)).to(A.dtype)
"""

_BMM = """
    @torch.no_grad()
    def run(A, B):
        return torch.bmm(A.to(torch.float32), B.to(torch.float32)).to(A.dtype)
"""


def _define_gemm(parameters: GemmParameters) -> Definition:
    dtype = parameters.dtype
    inputs: dict[str, TensorSpec] = {
        "A": tensor(dtype, "M K", "The activations."),
        "B": tensor(dtype, "N K", "The weight, one row for each output feature."),
    }
    if parameters.bias:
        inputs["bias"] = tensor(dtype, "N", "Added to every row of the product.")
    formula = "A @ B.T + bias" if parameters.bias else "A @ B.T"
    kind = "gemm_bias" if parameters.bias else "gemm"
    return Definition(
        name=format_name(kind, ("n", parameters.n), ("k", parameters.k)),
        description=f"General matrix multiplication: C = {formula}.",
        op_type="gemm",
        axes={
            "M": var("Rows of A: tokens."),
            "N": const(parameters.n, "Output features."),
            "K": const(parameters.k, "Input features."),
        },
        inputs=inputs,
        outputs={"C": tensor(dtype, "M N", "The product.")},
        reference=source(_GEMM_BIAS if parameters.bias else _GEMM),
    )


def _define_bmm(parameters: BmmParameters) -> Definition:
    dtype = parameters.dtype
    return Definition(
        name=format_name("bmm", ("b", parameters.b), ("n", parameters.n), ("k", parameters.k)),
        description="Batched matrix multiplication: C[i] = A[i] @ B[i], as MLA absorbs its projections with.",
        op_type="gemm",
        axes={
            "batch_size": const(parameters.b, "Matrices: attention heads."),
            "M": var("Rows of each A: tokens."),
            "N": const(parameters.n, "Output features."),
            "K": const(parameters.k, "Input features."),
        },
        inputs={
            "A": tensor(dtype, "batch_size M K", "The activations of each head."),
            "B": tensor(dtype, "batch_size K N", "The weight of each head."),
        },
        outputs={"C": tensor(dtype, "batch_size M N", "The products.")},
        reference=source(_BMM),
    )


def _gemm_template(parameters: GemmParameters) -> TemplateCall | None:
    """The template has no bias, and the API computes in bfloat16 only."""
    if parameters.bias or parameters.dtype != "bfloat16":
        return None
    return TemplateCall(
        fi_api=_MM_API,
        arguments={
            "a": MetaTensor(shape=(_ROWS, parameters.k)),
            "b": MetaTensor(shape=(parameters.k, parameters.n)),
        },
    )


def _bmm_template(parameters: BmmParameters) -> TemplateCall | None:
    if parameters.dtype != "bfloat16":
        return None
    return TemplateCall(
        fi_api=_BMM_API,
        arguments={
            "A": MetaTensor(shape=(parameters.b, _ROWS, parameters.k)),
            "B": MetaTensor(shape=(parameters.b, parameters.k, parameters.n)),
        },
    )


_GEMM_KERNEL = """
    @torch.no_grad()
    def run(A, B{bias_argument}):
        return torch.nn.functional.linear(A, B{bias_argument})
"""

_BMM_KERNEL = """
    @torch.no_grad()
    def run(A, B):
        return torch.bmm(A, B)
"""


def _gemm_ground_truth(parameters: GemmParameters) -> GroundTruth:
    body = _GEMM_KERNEL.format(bias_argument=", bias" if parameters.bias else "")
    return GroundTruth(wrappers=(Wrapper(kind="torch", api="torch.nn.functional.linear", body=body),))


def _bmm_ground_truth(parameters: BmmParameters) -> GroundTruth:
    del parameters
    return GroundTruth(wrappers=(Wrapper(kind="torch", api="torch.bmm", body=_BMM_KERNEL),))


def _weight(request: InputRequest) -> Any:
    return request.normal(request.axes.get("K", 1) ** -0.5)


OP_TYPE = OpType(
    name="gemm",
    kernels=(
        KernelType(
            id="gemm",
            op_type="gemm",
            summary="C = A @ B.T, with or without a bias",
            parameters=GemmParameters,
            define=_define_gemm,
            fi_api=_MM_API,
            template=_gemm_template,
            sglang_symbols=("torch.nn.functional.linear",),
            ground_truth=_gemm_ground_truth,
        ),
        KernelType(
            id="bmm",
            op_type="gemm",
            summary="C[i] = A[i] @ B[i]",
            parameters=BmmParameters,
            define=_define_bmm,
            fi_api=_BMM_API,
            template=_bmm_template,
            sglang_symbols=("torch.bmm",),
            ground_truth=_bmm_ground_truth,
        ),
    ),
    input_rules={"B": _weight},
    input_code={"B": "draw.normal({shape}, {dtype}, scale={K}**-0.5)"},
    axis_sizes={"M": 6},
    work=product_work,
)
