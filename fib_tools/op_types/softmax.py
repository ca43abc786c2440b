"""softmax: probabilities of each row's elements, as attention over a fixed number of keys and routers have them.

Computed in float32 after the row's maximum is taken off, so that no exponential overflows (Milakov and Gimelshein, Online
normalizer calculation for softmax, 2018, section 2).
"""

from __future__ import annotations

from pydantic import Field

from fib_tools.model.definition import Definition
from fib_tools.model.naming import format_name
from fib_tools.op_types.base import KernelType, OpType, Parameters, const, source, tensor, var
from fib_tools.op_types.ground_truth import GroundTruth, Wrapper
from fib_tools.op_types.tolerance import rounded

__all__ = ["OP_TYPE", "SoftmaxParameters"]


class SoftmaxParameters(Parameters):
    """The length of a row; how many rows there are varies."""

    dim: int = Field(gt=0)
    dtype: str = "float32"


_REFERENCE = """
    @torch.no_grad()
    def run(input):
        return torch.softmax(input.to(torch.float32), dim=-1).to(input.dtype)
"""
_KERNEL = """
    @torch.no_grad()
    def run(input):
        return torch.nn.functional.softmax(input, dim=-1)
"""


def _define(parameters: SoftmaxParameters) -> Definition:
    return Definition(
        name=format_name("softmax", ("d", parameters.dim)),
        description="Softmax of each row: exp(x - max) over the sum of that.",
        op_type="softmax",
        axes={"length": var("Rows."), "dim": const(parameters.dim, "Elements of one row.")},
        inputs={"input": tensor(parameters.dtype, "length dim", "Scores.")},
        outputs={"output": tensor(parameters.dtype, "length dim", "Probabilities; each row's sum is 1.")},
        reference=source(_REFERENCE),
    )


def _ground_truth(parameters: SoftmaxParameters) -> GroundTruth:
    del parameters
    return GroundTruth(wrappers=(Wrapper(kind="torch", api="torch.nn.functional.softmax", body=_KERNEL),))


OP_TYPE = OpType(
    name="softmax",
    kernels=(
        KernelType(
            id="softmax",
            op_type="softmax",
            summary="exp(x - max(x)) / sum(exp(x - max(x))) for each row",
            parameters=SoftmaxParameters,
            define=_define,
            ground_truth=_ground_truth,
            policy=rounded,
        ),
    ),
)
