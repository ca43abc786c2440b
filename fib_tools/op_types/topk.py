"""topk: the largest elements of each row and where they stand, as routers and samplers choose them."""

from __future__ import annotations

from pydantic import Field, model_validator

from fib_tools.model.definition import Definition
from fib_tools.model.naming import format_name
from fib_tools.op_types.base import KernelType, OpType, Parameters, const, source, tensor, var
from fib_tools.op_types.ground_truth import GroundTruth, Wrapper
from fib_tools.op_types.tolerance import chosen

__all__ = ["OP_TYPE", "TopkParameters"]


class TopkParameters(Parameters):
    """The length of a row, and how many of its elements are taken."""

    dim: int = Field(gt=0)
    k: int = Field(gt=0)
    dtype: str = "float32"

    @model_validator(mode="after")
    def _validate_a_row_has_so_many(self) -> TopkParameters:
        if self.k > self.dim:
            raise ValueError(f"k {self.k} is more than the row's {self.dim}")
        return self


_REFERENCE = """
    @torch.no_grad()
    def run(input):
        values, indices = torch.sort(input, dim=-1, descending=True, stable=True)
        return values[:, :K].contiguous(), indices[:, :K].contiguous()
"""
_KERNEL = """
    @torch.no_grad()
    def run(input):
        return tuple(torch.topk(input, K, dim=-1))
"""


def _define(parameters: TopkParameters) -> Definition:
    return Definition(
        name=format_name("topk", ("d", parameters.dim), ("k", parameters.k)),
        description="The k largest elements of each row, largest first, and their places.",
        op_type="topk",
        axes={
            "length": var("Rows."),
            "dim": const(parameters.dim, "Elements of one row."),
            "k": const(parameters.k, "Elements taken of each row."),
        },
        constraints=["k <= dim"],
        inputs={"input": tensor(parameters.dtype, "length dim", "The rows.")},
        outputs={
            "values": tensor(parameters.dtype, "length k", "The largest elements, largest first."),
            "indices": tensor("int64", "length k", "Where they stand in their row; of equal ones any."),
        },
        reference=source(_REFERENCE, K=parameters.k),
    )


def _ground_truth(parameters: TopkParameters) -> GroundTruth:
    wrapper = Wrapper(kind="torch", api="torch.topk", constants={"K": parameters.k}, body=_KERNEL)
    return GroundTruth(wrappers=(wrapper,))


OP_TYPE = OpType(
    name="topk",
    kernels=(
        KernelType(
            id="topk",
            op_type="topk",
            summary="the k largest elements of each row, and their places",
            parameters=TopkParameters,
            define=_define,
            ground_truth=_ground_truth,
            policy=chosen,
            policies={"indices": chosen},
        ),
    ),
)
