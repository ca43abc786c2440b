"""layernorm: normalisation by mean and variance, as in the index keys of sparse attention and older models.

Ba, Kiros and Hinton, Layer Normalization (2016): y = (x - mean(x)) / sqrt(var(x) + eps) * w + b, the variance with
divisor n.
Scale and bias are float32, as FlashInfer's kernel takes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from fib_tools.model.definition import Definition
from fib_tools.model.naming import format_name
from fib_tools.op_types.base import KernelType, OpType, Parameters, const, source, tensor, var
from fib_tools.op_types.ground_truth import GroundTruth, Wrapper
from fib_tools.op_types.tolerance import rounded

__all__ = ["OP_TYPE", "LayerNormParameters"]


class LayerNormParameters(Parameters):
    """The size and constants of one norm."""

    silent: ClassVar[Mapping[str, Any]] = {"eps": 1e-5}

    hidden_size: int = Field(gt=0)
    eps: float = Field(default=1e-5, gt=0)
    bias: bool = True
    dtype: str = "bfloat16"


_REFERENCE = """
    @torch.no_grad()
    def run(hidden_states, weight{bias_argument}):
        x = hidden_states.to(torch.float32)
        x = x - x.mean(dim=-1, keepdim=True)
        scale = torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + EPS)
        return (x * scale * weight.to(torch.float32){bias_term}).to(hidden_states.dtype)
"""


def _define(parameters: LayerNormParameters) -> Definition:
    inputs = {
        "hidden_states": tensor(parameters.dtype, "batch_size hidden_size", "The rows to normalise."),
        "weight": tensor("float32", "hidden_size", "The learned scale."),
    }
    argument, term = "", ""
    if parameters.bias:
        inputs["bias"] = tensor("float32", "hidden_size", "The learned shift.")
        argument, term = ", bias", " + bias.to(torch.float32)"
    formula = "(x - mean(x)) / sqrt(var(x) + eps) * weight" + (" + bias" if parameters.bias else "")
    return Definition(
        name=format_name("layernorm", "" if parameters.bias else "nobias", ("h", parameters.hidden_size)),
        description=f"LayerNorm: {formula}, eps = {parameters.eps}.",
        op_type="layernorm",
        axes={
            "batch_size": var("Rows: tokens, or tokens times heads for a norm over heads."),
            "hidden_size": const(parameters.hidden_size, "Elements that are normalised together."),
        },
        inputs=inputs,
        outputs={"output": tensor(parameters.dtype, "batch_size hidden_size", "The normalised rows.")},
        reference=source(_REFERENCE.format(bias_argument=argument, bias_term=term), EPS=parameters.eps),
    )


_KERNEL = """
    @torch.no_grad()
    def run(hidden_states, weight{bias_argument}):
        {bias}return flashinfer.norm.layernorm(hidden_states, weight, bias, eps=EPS)
"""


def _ground_truth(parameters: LayerNormParameters) -> GroundTruth:
    argument, line = (", bias", "") if parameters.bias else ("", "bias = torch.zeros_like(weight)\n        ")
    wrapper = Wrapper(
        kind="flashinfer",
        api="flashinfer.norm.layernorm",
        imports=("import flashinfer",),
        constants={"EPS": parameters.eps},
        body=_KERNEL.format(bias_argument=argument, bias=line),
    )
    return GroundTruth(wrappers=(wrapper,))


OP_TYPE = OpType(
    name="layernorm",
    kernels=(
        KernelType(
            id="layernorm",
            op_type="layernorm",
            summary="(x - mean(x)) / sqrt(var(x) + eps) * weight + bias",
            parameters=LayerNormParameters,
            define=_define,
            fi_api="flashinfer.norm.layernorm",
            # No template: FlashInfer's always has the bias, and a reference that fixes eps at 1e-6.
            sglang_symbols=("sglang.srt.layers.layernorm.LayerNorm",),
            ground_truth=_ground_truth,
            policy=rounded,
        ),
    ),
    input_code={"hidden_states": "draw.rows_of_many_sizes({shape}, {dtype})"},
)
